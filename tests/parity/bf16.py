#!/usr/bin/env python3
"""Writes what `cargo test -p tl-engine --test parity` compares the engine's bf16 with: `bf16/gradients.json`.

Run by hand, as goldens.py is and with what it needs; it takes the networks, their values and their batch from there:

    venv/bin/python tests/parity/bf16.py

Each network is run forward and backward under `torch.autocast("cpu", dtype=torch.bfloat16)`, and in float32. Of the
gradient of every parameter its norm is kept, and at most COUNT elements, evenly spaced. Where batch-norms are, they use the
statistics of the batch.
"""

import json
from importlib.metadata import version

import numpy as np
import torch

import goldens
import networks
import texts

COUNT = 12
# Convolutions and batch-norms; depthwise ones; patches; blocks of a transformer; an LSTM.
NETWORKS = ("resnet20", "mobilenet_v2", "vit_s16", "bert", "embedding_lstm")


def gradients(spec, mixed):
    """Logits, and norm and elements of each gradient."""
    net = spec["build"](torch.float32, False)
    # Weights that all but cancel, as the golden files' have, would leave nothing but roundings of bf16.
    goldens.fill(net, spec | {"gain": 0.0, "shifts": [], "lifted": True}, {})
    x, y = goldens.batch(spec, goldens.BATCH, torch.float32, "input")
    parameters = net.parameters()
    for tensor, _ in parameters.values():
        tensor.requires_grad_(True)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
        logits = net.forward(x, bool(net.buffers()))
    logits = logits.float()
    torch.nn.functional.cross_entropy(logits / goldens.TEMPERATURE, y).backward()
    out = {}
    for name, (tensor, move) in parameters.items():
        flat = move(tensor.grad).contiguous().reshape(-1).double().numpy()
        count = min(COUNT, flat.size)
        at = np.arange(count) * flat.size // count
        out[name] = [float(np.sqrt(flat @ flat)), *flat[at].tolist()]
    return logits.detach().reshape(-1).tolist(), out


def near(a, b):
    """Cosine of the kept elements, for what is printed."""
    a, b = (np.concatenate([np.array(v[1:]) for v in g.values()]) for g in (a, b))
    return a @ b / np.sqrt((a @ a) * (b @ b))


def main():
    every = networks.ALL | texts.ALL
    body = []
    for name in NETWORKS:
        (logits, mixed), (_, full) = (gradients(every[name], on) for on in (True, False))
        print(name, "cosine of bf16 and float32", near(mixed, full))
        rows = []
        for tensor in mixed:
            pair = [[goldens.short(v, 5) for v in g[tensor]] for g in (mixed, full)]
            rows.append(f"{json.dumps(tensor)}: {json.dumps(pair, separators=(',', ':'))}")
        logits = json.dumps([goldens.short(v, 5) for v in logits])
        body.append(f'{json.dumps(name)}: {{"logits": {logits}, "tensors": {{\n' + ",\n".join(rows) + "\n}}")
    made = json.dumps(" ".join(f"{lib} {version(lib)}" for lib in ("torch", "torchvision", "timm", "transformers")))
    (goldens.HERE / "bf16").mkdir(exist_ok=True)
    text = f'{{"made_with": {made},\n"networks": {{\n' + ",\n".join(body) + "\n}}\n"
    (goldens.HERE / "bf16" / "gradients.json").write_text(text)


if __name__ == "__main__":
    main()
