#!/usr/bin/env python3
"""Adapters of peft and AdapterHub on tiny encoders, and of peft on timm's ViT-S/16, for `cargo test -p tl-engine --test parity tuning`.

Run by hand; nothing of it runs in CI:

    python3 -m venv venv && venv/bin/pip install numpy torch transformers timm peft adapters
    venv/bin/python tests/parity/tuning.py write

writes what peft saves for LoRA and IA3 into folders below `tests/parity/tuning`, and logits in float64 of these and of
AdapterHub's bottlenecks into `logits.json` there. Everything is filled by rule (rule.py) under the project's names. The
other way round,

    TL_PEFT_OUT=FOLDER cargo test -p tl-engine --test parity tuning
    venv/bin/python tests/parity/tuning.py check FOLDER

loads what the engine has written with `PeftModel.from_pretrained` and compares the logits.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import timm
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)

import rule

HERE = Path(__file__).parent / "tuning"
CLASSES, WORDS, ROOM, LENGTHS = 3, 20, 7, [7, 3, 1]
SHAPE = {"layers": 2, "hidden": 8, "heads": 2, "wide": 12, "words": WORDS, "positions": 12, "eps": 1e-12}
TOLERANCE = 1e-5
SIDE = 32


def bert():
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
    return BertForSequenceClassification(config)


def distilbert():
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
    return DistilBertForSequenceClassification(config)


def vit():
    return timm.create_model("vit_small_patch16_224", img_size=SIDE, num_classes=CLASSES)


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
    with torch.no_grad():
        for name, p in model.named_parameters():
            known = own(name)
            if ".original_module" in name:
                p.zero_()
            elif known.endswith("ia3_l"):
                p.copy_(torch.from_numpy(1.0 + 0.5 * rule.uniform(known, p.shape)))
            else:
                p.copy_(torch.from_numpy(rule.value(known, p.shape, False)))


def logits(model):
    model = model.double().eval()
    if hasattr(model, "patch_embed"):
        pixels = rule.uniform("image", (2, SIDE, SIDE, 3)).astype(np.float32)
        with torch.no_grad():
            return model(torch.from_numpy(pixels).double().permute(0, 3, 1, 2)).reshape(-1).tolist()
    ids = rule.classes("input", len(LENGTHS) * ROOM, WORDS - 1).reshape(len(LENGTHS), ROOM) + 1
    mask = np.arange(ROOM)[None] < np.array(LENGTHS)[:, None]
    with torch.no_grad():
        out = model(input_ids=torch.from_numpy(ids * mask), attention_mask=torch.from_numpy(mask).long())
    return out.logits.reshape(-1).tolist()


def write():
    HERE.mkdir(exist_ok=True)
    found = {}
    for name, (build, config) in CASES.items():
        model = get_peft_model(build(), config)
        fill(model)
        folder = HERE / name
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)
        (folder / "adapter_model.safetensors").chmod(0o644)
        found[name] = logits(model)
    import adapters

    for name, kind in BOTTLENECKS.items():
        model = bert()
        adapters.init(model)
        model.add_adapter("t", config=getattr(adapters, kind)(reduction_factor=2))
        model.set_active_adapters("t")
        fill(model)
        found[name] = logits(model)
    text = {"shape": SHAPE, "lengths": LENGTHS, "room": ROOM, "classes": CLASSES, "side": SIDE, "logits": found}
    (HERE / "logits.json").write_text(json.dumps(text, indent=1) + "\n")


def check(folder):
    wanted = json.loads((HERE / "logits.json").read_text())["logits"]
    for name, (build, _) in CASES.items():
        model = build()
        fill(model)
        for head in (getattr(model, part, None) for part in ("pre_classifier", "classifier", "head")):
            # What the adapter's own files must bring.
            head is None or head.reset_parameters()
        model = PeftModel.from_pretrained(model, folder / name)
        away = max(abs(a - b) for a, b in zip(logits(model), wanted[name]))
        print(f"{name}: {away:.1e} away")
        assert away < TOLERANCE, name


if __name__ == "__main__":
    torch.manual_seed(0)
    match sys.argv[1:]:
        case ["write"]:
            write()
        case ["check", folder]:
            check(Path(folder))
        case _:
            sys.exit(__doc__)
