#!/usr/bin/env python3
"""Writes the golden figures that `cargo test -p tl-engine --test parity` compares the engine with.

Run by hand, when a network is added; nothing of it runs in CI:

    python3 -m venv venv && venv/bin/pip install numpy torch torchvision timm keras transformers
    venv/bin/python tests/parity/goldens.py [NAME ...]

It needs some 10 GB of memory for VGG, by its sizes, and on one idle core (`OMP_NUM_THREADS=1`) one to five minutes a
network. The versions that made a file are in it; those of now are torch 2.15, torchvision 0.29, timm 1.0.31, keras 3.15 and
transformers 5.24.

What is stored. Each network is filled by rule (rule.py), so that a file holds figures only. For each of three inputs, in
float64, once with batch-norms that use their running statistics (`eval`) and once with those of the batch (`train`): the
logits, the mean cross-entropy (of the logits over TEMPERATURE), and of the gradient of every parameter its norm and two
projections on hashed signs. For the first input also one step of AdamW with the gradients of the last mode: the same three
figures of what it adds to every parameter, and of every running statistic after it. A `tensors` row is these triples in
order: the modes of the first input, of the second, of the third, and the step.

Beside them, as `float32`, PyTorch's own error in float32 on the same input, the larger of its two ways to compute on a CPU
(oneDNN or not, channels last or not; of networks whose `channels_first` says so, the former only): of the logits, of the
loss, and over tensors the median and the largest. The error of a tensor is the largest error of its three figures over its
norm; where that is below a FLOOR of what a tensor of its size has on average, over that average: gradients that are zero but
for rounding have no digits to compare.

What is refused. Rounding decides which way a rectifier or a pooling goes where two values are all but equal, and a single one
may change a gradient by a percent: then nothing smaller would be seen. So the rule keeps values away from the kinks of
rectifiers, and an input is taken only if float32, and float32 on an input that is moved by MOVED, give every tensor's
gradient to LIMIT of its norm; what a step adds has fewer digits, and is given twice that. A network for which three of
CANDIDATES inputs are not found is not written: it is to be filled better.

The step. Its eps is the root mean square of the whole gradient, so that the update is a smooth function of the gradient and
not its sign; rate and decay are large, so that an update has digits and decay is seen in it. Kernels and matrices decay, but
for timm's `no_weight_decay`.
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
INPUTS, CANDIDATES = 3, 64
# Half of the most that the engine may be away.
LIMIT = 5e-4
MOVED = 1e-6
# Of gradients and statistics; of what a step adds, which has fewer digits beside a large value.
FLOOR, STEP_FLOOR = 1e-3, 0.02
WAYS = ({"channels_last": False, "onednn": True}, {"channels_last": True, "onednn": False})
# Networks filled by rule are too sure of themselves.
TEMPERATURE = 8.0
# Of the golden step; of the trajectory, which are the defaults of both sides.
STEP = {"lr": 0.5, "weight_decay": 0.2}
ADAMW = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}
NO_DECAY = ("cls_token", "pos_embed")
HERE = Path(__file__).parent
CHUNK = 1 << 22


class Refused(Exception):
    """A network on which float32 is not good enough to be a measure."""


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


def errors(found, reference, floor=FLOOR):
    """Median and largest over tensors of their relative errors."""
    total = math.sqrt(sum(f[0] ** 2 for f, _ in reference.values()))
    count = sum(n for _, n in reference.values())
    each = []
    for name, (want, n) in reference.items():
        share = total * math.sqrt(n / count)
        scale = want[0] if want[0] > floor * share else share
        each.append(max(abs(a - b) for a, b in zip(found[name][0], want)) / scale)
    return [float(np.median(each)), max(each)]


def fill(net, spec, made):
    """Each value is made once, whatever the types it is kept in."""
    gain, shifts = spec["gain"], spec["shifts"]
    norms = {name.rsplit(".", 1)[0] for name in net.buffers()} if gain or spec.get("lifted") else ()
    for name, (tensor, move) in (net.parameters() | net.buffers()).items():
        layer = name.rsplit(".", 1)[0]
        shifted = layer in norms or any(part in f".{layer}." for part in shifts)
        if name not in made:
            made[name] = torch.from_numpy(rule.value(name, move(tensor).shape, shifted, gain))
        with torch.no_grad():
            move(tensor).copy_(made[name])


def batch(spec, count, dtype, name):
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
    """Matrices and kernels decay, but for what is added to rows."""
    lists = {True: [], False: []}
    for name, (tensor, move) in parameters.items():
        lists[move(tensor).dim() > 1 and name not in NO_DECAY].append(tensor)
    return [{"params": lists[True]}, {"params": lists[False], "weight_decay": 0.0}]


class Filled:
    """A network in one way of computing."""

    def __init__(self, spec, made, signs, dtype, channels_last=False, onednn=True):
        self.spec, self.signs, self.dtype, self.onednn = spec, signs, dtype, onednn
        with torch.backends.mkldnn.flags(enabled=onednn):
            self.net = spec["build"](dtype, channels_last)
        fill(self.net, spec, made)
        self.buffers = {name: tensor.detach().clone() for name, (tensor, _) in self.net.buffers().items()}
        self.modes = ("eval", "train") if self.buffers else ("eval",)

    def restore(self):
        for name, (tensor, _) in self.net.buffers().items():
            with torch.no_grad():
                tensor.copy_(self.buffers[name])

    def run(self, given, mode, moved=False):
        """The figures of one mode."""
        with torch.backends.mkldnn.flags(enabled=self.onednn):
            x, y = batch(self.spec, BATCH, self.dtype, given)
            if moved and x.is_floating_point():
                x = x + torch.from_numpy(MOVED * rule.uniform(f"{given}/moved", x.shape)).to(self.dtype)
            self.restore()
            logits, loss, parameters = passes(self.net, x, y, mode == "train")
            grads = {n: move(t.grad) for n, (t, move) in parameters.items()}
            return {"logits": logits, "loss": loss, "tensors": figures(grads, self.signs)}

    def step(self, given, eps):
        """What one step adds to each parameter, and the running statistics after it."""
        with torch.backends.mkldnn.flags(enabled=self.onednn):
            x, y = batch(self.spec, BATCH, self.dtype, given)
            self.restore()
            parameters = passes(self.net, x, y, self.modes[-1] == "train")[2]
            before = {n: t.detach().clone() for n, (t, _) in parameters.items()}
            torch.optim.AdamW(groups(parameters), eps=eps, **STEP).step()
            added = {n: move(t.detach() - before[n]) for n, (t, move) in parameters.items()}
            # Keras moves its statistics by a rule of its own.
            own = {} if isinstance(self.net, networks.Keras) else self.net.buffers()
            statistics = {n: move(t) for n, (t, move) in own.items()}
            return {"step": figures(added, self.signs), "statistics": figures(statistics, self.signs)}


def trajectory(spec, dtype, channels_last=False, onednn=True):
    """The loss of each step of AdamW with a cosine, on the same batch."""
    with torch.backends.mkldnn.flags(enabled=onednn):
        net, steps = spec["build"](dtype, channels_last), spec["trajectory"]
        fill(net, spec, {})
        x, y = batch(spec, 2 * BATCH, dtype, "input")
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


def away(found, want):
    """Errors of one mode, in the order of the file."""
    scale = max(abs(v) for v in want["logits"])
    logits = max(abs(a - b) for a, b in zip(found["logits"], want["logits"])) / scale
    loss = abs(found["loss"] - want["loss"]) / want["loss"]
    return [logits, loss, *errors(found["tensors"], want["tensors"])]


def steady(given, mode, reference, own):
    """The largest error of a tensor; if it is not too large, the figures of the reference and PyTorch's errors too."""
    first = own[0].run(given, mode)
    most = away(own[0].run(given, mode, moved=True), first)[-1]
    if most > LIMIT:
        return most, None, None
    want = reference.run(given, mode)
    rows = [away(found, want) for found in (first, *(way.run(given, mode) for way in own[1:]))]
    moved = away(own[-1].run(given, mode, moved=True), want)
    return max(row[-1] for row in (*rows, moved)), want, worst(rows)


def choose(name, reference, own):
    """Inputs on which float32 is steady: of each its name, and by mode the figures of the reference and PyTorch's errors."""
    taken, refused = [], []
    for given in (f"input/{k}" for k in range(CANDIDATES)):
        wants, rows = {}, {}
        for mode in reference.modes:
            most, wants[mode], rows[mode] = steady(given, mode, reference, own)
            if most > LIMIT:
                refused.append(most)
                break
        else:
            taken.append((given, wants, rows))
        if len(taken) == INPUTS:
            print(f"{name}: refused", *(f"{r:.0e}" for r in refused), flush=True)
            return taken
    raise Refused(f"{name}: float32 is away by {min(refused):.1e} and more on {len(refused)} inputs: fill it better")


def short(value, digits=8):
    return float(f"{value:.{digits}g}")


def write(name, spec):
    made, signs = {}, Signs()
    reference = Filled(spec, made, signs, torch.float64)
    ways = [way | {"channels_last": way["channels_last"] and not spec["channels_first"]} for way in WAYS]
    own = [Filled(spec, made, signs, torch.float32, **way) for way in ways]
    made.clear()
    taken = choose(name, reference, own)
    modes = list(taken[0][1])
    last = taken[0][1][modes[-1]]["tensors"].values()
    eps = short(math.sqrt(sum(f[0] ** 2 for f, _ in last) / sum(n for _, n in last)), 3)
    step = reference.step(taken[0][0], eps)
    steps = [way.step(taken[0][0], eps) for way in own]
    kinds = [kind for kind in step if step[kind]]
    errors32 = {mode: [[short(v, 3) for v in e[mode]] for _, _, e in taken] for mode in modes}
    floors = {"step": STEP_FLOOR, "statistics": FLOOR}
    errors32 |= {k: [short(v, 3) for v in worst([errors(s[k], step[k], floors[k]) for s in steps])] for k in kinds}
    if errors32["step"][1] > 2 * LIMIT:
        raise Refused(f"{name}: float32 is away by {errors32['step'][1]:.1e} in the step: fill it better")
    libraries = ("torch", "torchvision", "timm", "keras", "transformers")
    shape = batch(spec, BATCH, torch.float32, taken[0][0])[0].shape
    golden = {
        "backbone": spec["backbone"] or name,
        "padding": spec["padding"],
        "eps": spec["eps"],
        "shape": list(shape),
        "classes": networks.CLASSES,
        **{key: spec[key] for key in ("words", "lengths", "encoder", "gain", "shifts") if spec.get(key)},
        "made_with": " ".join(f"{lib} {importlib.metadata.version(lib)}" for lib in libraries),
        "inputs": [given for given, _, _ in taken],
        "adamw": {**STEP, "eps": eps},
        "float32": errors32,
    }
    for mode in modes:
        found = [want[mode] for _, want, _ in taken]
        golden[mode] = [{"logits": [short(v) for v in f["logits"]], "loss": short(f["loss"], 10)} for f in found]
    if spec["trajectory"]:
        losses = trajectory(spec, torch.float64)
        ours = [[abs(a - b) for a, b in zip(trajectory(spec, torch.float32, **way), losses)] for way in ways]
        golden["trajectory"] = {"losses": [short(v, 10) for v in losses], "float32": [short(v, 3) for v in worst(ours)]}
    columns = [want[mode]["tensors"] for _, want, _ in taken for mode in modes] + [step["step"]]
    rows = {n: [short(v) for c in columns for v in c[n][0]] for n in step["step"]}
    statistics = {n: [short(v) for v in f] for n, (f, _) in step["statistics"].items()}
    lines = [f"{json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}" for k, v in golden.items()]
    for key, table in (("tensors", rows), ("statistics", statistics)):
        body = ",\n".join(f"{json.dumps(n)}: {json.dumps(v, separators=(',', ':'))}" for n, v in table.items())
        lines.append(f'"{key}": {{\n{body}\n}}')
    (HERE / f"{name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    for key, value in errors32.items():
        print(" ", key, *(f"{v:.0e}" for v in np.ravel(value)), flush=True)


if __name__ == "__main__":
    every, refused = networks.ALL | texts.ALL, []
    for name in sys.argv[1:] or every:
        try:
            write(name, every[name])
        except Refused as reason:
            refused.append(str(reason))
            print(reason, flush=True)
    sys.exit(bool(refused))
