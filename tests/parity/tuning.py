#!/usr/bin/env python3
"""Adapters of peft and AdapterHub on tiny encoders, and of peft on timm's ViT-S/16 and two networks of torchvision's, for `cargo test -p tl-engine --test parity tuning`.

Run by hand; nothing of it runs in CI:

    python3 -m venv venv && venv/bin/pip install numpy torch torchvision transformers timm peft adapters
    venv/bin/python tests/parity/tuning.py write [CASE...]

writes what peft saves for LoRA and IA3 into folders below `tests/parity/tuning`, and logits in float64 of these and of
AdapterHub's bottlenecks into `logits.json` there. Everything is filled by rule (rule.py) under the project's names. The
other way round,

    TL_PEFT_OUT=FOLDER cargo test -p tl-engine --test parity tuning
    venv/bin/python tests/parity/tuning.py check FOLDER

loads what the engine has written with `PeftModel.from_pretrained` and compares the logits; of networks with other heads
than the base has, whether every tensor finds its place and the head is left alone.
"""

import json
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import timm
import torch
import torchvision
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    DistilBertModel,
)

import rule

HERE = Path(__file__).parent / "tuning"
CLASSES, WORDS, ROOM, LENGTHS = 3, 20, 7, [7, 3, 1]
SHAPE = {"layers": 2, "hidden": 8, "heads": 2, "wide": 12, "words": WORDS, "positions": 12, "eps": 1e-12}
TOLERANCE = 1e-5
SIDE = 32


def bert(kind=BertForSequenceClassification):
    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=12,
        num_labels=CLASSES,
        attn_implementation="eager",
    )
    return kind(config)


def distilbert(kind=DistilBertForSequenceClassification):
    config = DistilBertConfig(
        vocab_size=WORDS,
        dim=8,
        n_layers=2,
        n_heads=2,
        hidden_dim=12,
        max_position_embeddings=12,
        num_labels=CLASSES,
        attn_implementation="eager",
    )
    return kind(config)


def vit():
    return timm.create_model("vit_small_patch16_224", img_size=SIDE, num_classes=CLASSES)


def resnet():
    return torchvision.models.resnet18(num_classes=CLASSES)


def mobilenet():
    return torchvision.models.mobilenet_v2(num_classes=CLASSES)


IMAGES = (vit, resnet, mobilenet)
CASES = {
    "bert_lora": (bert, LoraConfig(task_type="SEQ_CLS", r=4, lora_alpha=6, target_modules=["query", "value"])),
    "bert_rslora": (
        bert,
        LoraConfig(task_type="SEQ_CLS", r=2, lora_alpha=3, use_rslora=True, target_modules=["dense", "key"]),
    ),
    "bert_ia3": (bert, IA3Config(task_type="SEQ_CLS")),
    "distilbert_lora": (
        distilbert,
        LoraConfig(
            task_type="SEQ_CLS",
            r=8,
            lora_alpha=8,
            target_modules=["q_lin", "v_lin", "lin2"],
            modules_to_save=["pre_classifier", "classifier"],
        ),
    ),
    "vit_lora": (
        vit,
        LoraConfig(
            r=2,
            lora_alpha=3,
            target_modules=["blocks.0.attn.qkv", "blocks.11.attn.qkv", "blocks.11.mlp.fc2"],
            modules_to_save=["head"],
        ),
    ),
    # Names that are also the ends of others, and of norms, blocks and grouped convolutions.
    "resnet_lora": (
        resnet,
        LoraConfig(
            r=2,
            lora_alpha=3,
            lora_dropout=0.1,
            target_modules=r"conv1|layer2\.0\.downsample\.0",
            modules_to_save=["fc", "bn1"],
        ),
    ),
    "resnet_ia3": (
        resnet,
        IA3Config(
            target_modules=r"layer1\.0\.conv1|layer2\.0\.(conv2|downsample\.0)",
            feedforward_modules=["onv2"],
            modules_to_save=["fc"],
        ),
    ),
    "mobilenet_lora": (
        mobilenet,
        LoraConfig(
            r=2,
            lora_alpha=3,
            target_modules=r"features\.1\.conv\.1|features\.2\.conv\.0\.0",
            modules_to_save=["classifier.1"],
        ),
    ),
}
# What the engine writes for heads that the base does not have, and for a tensor in no module.
PLACED = {
    "bert_hidden": lambda: bert(BertModel),
    "minilm": lambda: bert(BertModel),
    "distilbert_bare": lambda: distilbert(DistilBertModel),
    "resnet_hidden": resnet,
    "vit_token": vit,
}
# By the names of their classes.
BOTTLENECKS = {"bert_pfeiffer": "SeqBnConfig", "bert_houlsby": "DoubleSeqBnConfig"}


def own(name):
    """The project's name of a parameter."""
    for part in ("base_model.model.", ".base_layer", ".default", ".modules_to_save"):
        name = name.replace(part, "")
    for prefix in ("bert.", "distilbert."):
        name = name.removeprefix(prefix)
    # AdapterHub's.
    name = name.replace("attention.output.adapters.t.", "attention_adapter.").replace("output.adapters.t.", "output_adapter.")
    name = name.replace("adapter_down.0.", "down.").replace("adapter_up.", "up.")
    return name.replace("pre_classifier.", "head.0.")


def fill(model):
    norms = {own(name).removesuffix(".running_mean") for name, _ in model.named_buffers() if name.endswith("running_mean")}
    with torch.no_grad():
        for name, p in model.named_buffers():
            if name.endswith((".running_mean", ".running_var")) and ".original_module" not in name:
                p.copy_(torch.from_numpy(rule.value(own(name), p.shape, True)))
        for name, p in model.named_parameters():
            known = own(name)
            if ".original_module" in name:
                p.zero_()
            elif known.endswith("ia3_l"):
                p.copy_(torch.from_numpy(1.0 + 0.5 * rule.uniform(known, p.shape)))
            else:
                p.copy_(torch.from_numpy(rule.value(known, p.shape, known.rsplit(".", 1)[0] in norms)))


def logits(model, of_images):
    model = model.double().eval()
    if of_images:
        pixels = rule.uniform("image", (2, SIDE, SIDE, 3)).astype(np.float32)
        with torch.no_grad():
            return model(torch.from_numpy(pixels).double().permute(0, 3, 1, 2)).reshape(-1).tolist()
    ids = rule.classes("input", len(LENGTHS) * ROOM, WORDS - 1).reshape(len(LENGTHS), ROOM) + 1
    mask = np.arange(ROOM)[None] < np.array(LENGTHS)[:, None]
    with torch.no_grad():
        out = model(input_ids=torch.from_numpy(ids * mask), attention_mask=torch.from_numpy(mask).long())
    return out.logits.reshape(-1).tolist()


def write(names):
    HERE.mkdir(exist_ok=True)
    found = json.loads((HERE / "logits.json").read_text())["logits"] if names else {}
    for name, (build, config) in CASES.items():
        if names and name not in names:
            continue
        model = get_peft_model(build(), config)
        fill(model)
        folder = HERE / name
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)
        (folder / "adapter_model.safetensors").chmod(0o644)
        found[name] = logits(model, build in IMAGES)
    for name, kind in BOTTLENECKS.items():
        if names and name not in names:
            continue
        import adapters

        model = bert()
        adapters.init(model)
        model.add_adapter("t", config=getattr(adapters, kind)(reduction_factor=2))
        model.set_active_adapters("t")
        fill(model)
        found[name] = logits(model, False)
    text = {"shape": SHAPE, "lengths": LENGTHS, "room": ROOM, "classes": CLASSES, "side": SIDE, "logits": found}
    (HERE / "logits.json").write_text(json.dumps(text, indent=1) + "\n")


def check(folder):
    wanted = json.loads((HERE / "logits.json").read_text())["logits"]
    # Layers that peft finds and the file does not have.
    warnings.filterwarnings("error", message="Found missing adapter keys")
    for name, (build, config) in CASES.items():
        model = build()
        fill(model)
        # What the adapter's own files must bring.
        for part in config.modules_to_save or ["classifier"]:
            model.get_submodule(part).reset_parameters()
        model = PeftModel.from_pretrained(model, folder / name)
        placed(model, folder / name)
        most = max(1.0, *map(abs, wanted[name]))
        away = max(abs(a - b) / most for a, b in zip(logits(model, build in IMAGES), wanted[name]))
        print(f"{name}: {away:.1e} away")
        assert away < TOLERANCE, name
    for name, build in PLACED.items():
        model = PeftModel.from_pretrained(build(), folder / name)
        print(f"{name}: {placed(model, folder / name)} tensors in their places")


def placed(model, folder):
    """Whether every tensor of the file is in the model, but for those of a head that it does not have."""
    inside = {}
    for name, tensor in model.state_dict().items():
        if ".original_module." not in name:
            inside[name.replace(".modules_to_save.default", "").replace(".default", "")] = tensor
    count = 0
    for name, tensor in load_file(folder / "adapter_model.safetensors").items():
        if not name.startswith("base_model.model.own_head."):
            assert torch.equal(inside[name].float(), tensor.float()), name
            count += 1
    return count


if __name__ == "__main__":
    torch.manual_seed(0)
    match sys.argv[1:]:
        case ["write", *names]:
            write(names)
        case ["check", folder]:
            check(Path(folder))
        case _:
            sys.exit(__doc__)
