#!/usr/bin/env python3
"""Writes the golden figures that `cargo test -p tl-engine --test parity` compares the engine with.

Run by hand, when a network is added; nothing of it runs in CI:

    python3 -m venv venv && venv/bin/pip install numpy torch torchvision timm keras transformers
    venv/bin/python tests/parity/goldens.py [NAME ...]

Each network is filled by rule (rule.py), so that a golden file holds figures only. In float64, once with batch-norms that
use their running statistics (`eval`) and once with those of the batch (`train`): the logits, the mean cross-entropy (of the logits over
TEMPERATURE), and of
the gradient of every parameter its norm and two projections on hashed signs. Then one step of AdamW with the gradients of
the last mode, and of every parameter and running statistic the same three figures.

The same in float32, computed in each way that PyTorch has on a CPU (oneDNN or not, channels last or not) and on INPUTS
batches, gives PyTorch's own error; the largest of them is stored as `float32`. One batch would be no measure: where many
rectifiers have no batch-norm before them, which of them rounding flips is chance. The error of a tensor is the largest error of its three figures over
its norm, which is taken to be no less than FLOOR of the whole network's, shared out by elements: gradients that are zero
but for rounding have no digits to compare. Of a network's tensors the largest and the root mean square are stored.
"""

import importlib.metadata
import json
import math
import sys
from pathlib import Path

import numpy as np
import torch

import networks
import rule
import texts

BATCH = 4
# Batches on which PyTorch's own error is measured; the engine is run on the first.
INPUTS = 3
FLOOR = 1e-3
# Networks filled by rule are too sure of themselves.
TEMPERATURE = 8.0
ADAMW = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}
HERE = Path(__file__).parent
CHUNK = 1 << 22


class Signs:
    """Two vectors of signs for each tensor, made once."""

    def __init__(self):
        self.made = {}

    def get(self, name, count):
        if name not in self.made:
            self.made[name] = [rule.signs(f"{name}/{p}", count) for p in ("p1", "p2")]
        return self.made[name]


def figures(tensors, signs):
    """Norm and two projections of each tensor, and how many elements it has."""
    out = {}
    for name, tensor in tensors.items():
        flat = tensor.detach().contiguous().reshape(-1).numpy()
        sums = np.zeros(3)
        first, second = signs.get(name, flat.size)
        for at in range(0, flat.size, CHUNK):
            part = flat[at : at + CHUNK].astype(np.float64)
            sums += [part @ part, part @ first[at : at + CHUNK], part @ second[at : at + CHUNK]]
        out[name] = ([math.sqrt(sums[0]), sums[1], sums[2]], flat.size)
    return out


def errors(found, reference):
    """Largest and root mean square over tensors of their relative errors."""
    total = math.sqrt(sum(f[0] ** 2 for f, _ in reference.values()))
    count = sum(n for _, n in reference.values())
    each = []
    for name, (want, n) in reference.items():
        scale = max(want[0], FLOOR * total * math.sqrt(n / count))
        each.append(max(abs(a - b) for a, b in zip(found[name][0], want)) / scale)
    return [max(each), math.sqrt(sum(e * e for e in each) / len(each))]


def fill(net):
    norms = {name.rsplit(".", 1)[0] for name in net.buffers()}
    for name, (tensor, move) in (net.parameters() | net.buffers()).items():
        with torch.no_grad():
            value = rule.value(name, move(tensor).shape, name.rsplit(".", 1)[0] in norms)
            move(tensor).copy_(torch.from_numpy(value))


def batch(spec, count, dtype, name="input"):
    """Images, or tokens with -1 behind the end; token 0 is PyTorch's padding and would learn nothing."""
    labels = torch.from_numpy(rule.classes("labels", count, networks.CLASSES))
    if "words" not in spec:
        shape = (count, 3, spec["side"], spec["side"])
        return torch.from_numpy(rule.uniform(name, shape)).to(dtype), labels
    ids = rule.classes(name, count * spec["side"], spec["words"] - 1).reshape(count, -1) + 1
    for row, length in zip(ids, spec["lengths"]):
        row[length:] = -1
    return torch.from_numpy(ids), labels


def passes(net, x, y, train):
    parameters = net.parameters()
    for tensor, _ in parameters.values():
        tensor.requires_grad_(True)
        tensor.grad = None
    logits = net.forward(x, train)
    loss = torch.nn.functional.cross_entropy(logits / TEMPERATURE, y)
    loss.backward()
    return logits.detach().double().reshape(-1).tolist(), float(loss.detach()), parameters


def groups(parameters):
    """Matrices and kernels decay."""
    lists = {True: [], False: []}
    for tensor, move in parameters.values():
        lists[move(tensor).dim() > 1].append(tensor)
    return [{"params": lists[True]}, {"params": lists[False], "weight_decay": 0.0}]


def run(spec, dtype, signs, name="input", channels_last=False, onednn=True):
    """All figures of a network in one way of computing."""
    with torch.backends.mkldnn.flags(enabled=onednn):
        net = spec["build"](dtype, channels_last)
        fill(net)
        x, y = batch(spec, BATCH, dtype, name)
        out = {"shape": list(x.shape)}
        for mode in ("eval", "train") if net.buffers() else ("eval",):
            logits, loss, parameters = passes(net, x, y, mode == "train")
            grads = {n: move(t.grad) for n, (t, move) in parameters.items()}
            out[mode] = {"logits": logits, "loss": loss, "tensors": figures(grads, signs)}
        torch.optim.AdamW(groups(parameters), **ADAMW).step()
        out["step"] = figures({n: move(t) for n, (t, move) in parameters.items()}, signs)
        # Keras moves its statistics by a rule of its own.
        own = {} if isinstance(net, networks.Keras) else net.buffers()
        out["statistics"] = figures({n: move(t) for n, (t, move) in own.items()}, signs)
        return out


def trajectory(spec, dtype, channels_last=False, onednn=True):
    """The loss of each step of AdamW with a cosine, on the same batch."""
    with torch.backends.mkldnn.flags(enabled=onednn):
        net, steps = spec["build"](dtype, channels_last), spec["trajectory"]
        fill(net)
        x, y = batch(spec, 2 * BATCH, dtype)
        optimizer = torch.optim.AdamW(groups(net.parameters()), **ADAMW)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        losses = []
        for _ in range(steps):
            losses.append(passes(net, x, y, True)[1])
            optimizer.step()
            schedule.step()
        return losses


def worst(rows):
    """The larger of each figure."""
    return [max(column) for column in zip(*rows)]


def compare(found, want):
    """Errors of one way of computing, in the order of the file."""
    out = {}
    for mode in ("eval", "train"):
        if mode in want:
            scale = max(abs(v) for v in want[mode]["logits"])
            logits = max(abs(a - b) for a, b in zip(found[mode]["logits"], want[mode]["logits"])) / scale
            loss = abs(found[mode]["loss"] - want[mode]["loss"]) / want[mode]["loss"]
            out[mode] = [logits, loss, *errors(found[mode]["tensors"], want[mode]["tensors"])]
    out["step"] = errors(found["step"], want["step"])
    if want["statistics"]:
        out["statistics"] = errors(found["statistics"], want["statistics"])
    return out


def short(value, digits=10):
    return float(f"{value:.{digits}g}")


def write(name, spec):
    ways = [{"channels_last": c, "onednn": o} for c, o in ((False, True), (True, True), (False, False), (True, False))]
    signs = Signs()
    want = run(spec, torch.float64, signs)
    own = []
    for i in range(INPUTS):
        given = f"input/{i}" if i else "input"
        reference = run(spec, torch.float64, signs, given) if i else want
        own += [compare(run(spec, torch.float32, signs, given, **way), reference) for way in ways]
    libraries = ("torch", "torchvision", "timm", "keras", "transformers")
    golden = {
        "backbone": spec["backbone"] or name,
        "padding": spec["padding"],
        "eps": spec["eps"],
        "shape": want["shape"],
        "classes": networks.CLASSES,
        **{key: spec[key] for key in ("words", "lengths", "encoder") if spec.get(key)},
        "made_with": " ".join(f"{lib} {importlib.metadata.version(lib)}" for lib in libraries),
        "float32": {key: [short(v, 4) for v in worst([o[key] for o in own])] for key in own[0]},
    }
    for mode in ("eval", "train"):
        if mode in want:
            golden[mode] = {"logits": [short(v) for v in want[mode]["logits"]], "loss": short(want[mode]["loss"])}
    if spec["trajectory"]:
        losses = trajectory(spec, torch.float64)
        ours = [[abs(a - b) for a, b in zip(trajectory(spec, torch.float32, **way), losses)] for way in ways]
        golden["trajectory"] = {"losses": [short(v) for v in losses], "float32": [short(v, 4) for v in worst(ours)]}
    columns = [want[m]["tensors"] for m in ("eval", "train") if m in want] + [want["step"]]
    rows = {n: [short(v) for c in columns for v in c[n][0]] for n in want["step"]}
    statistics = {n: [short(v) for v in f] for n, (f, _) in want["statistics"].items()}
    lines = [f"{json.dumps(k)}: {json.dumps(v)}" for k, v in golden.items()]
    for key, table in (("tensors", rows), ("statistics", statistics)):
        body = ",\n".join(f"{json.dumps(n)}: {json.dumps(v, separators=(',', ':'))}" for n, v in table.items())
        lines.append(f'"{key}": {{\n{body}\n}}')
    (HERE / f"{name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    each = [" ".join(f"{mode} {' '.join(f'{v:.1e}' for v in e)}" for mode, e in o.items()) for o in own]
    print(name, want["eval"]["loss"], *each, sep="\n  ", flush=True)


if __name__ == "__main__":
    every = networks.ALL | texts.ALL
    for name in sys.argv[1:] or every:
        write(name, every[name])
