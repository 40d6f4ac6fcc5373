#!/usr/bin/env python3
"""Writes what Keras calls the layers of the networks that are read from its `.h5` files, and what we call them.

Run by hand, as goldens.py is: `venv/bin/python tests/parity/keras_layers.py`. A line of `keras_layers.txt` is a layer: its
name, its class as `.weights.h5` spells it, our name, and its variables with their shapes, in the order in which Keras numbers them.

With a folder, `keras_layers.py FOLDER` also saves each network there with random weights, in the three layouts that Keras
has, with an input and the logits that Keras computes of it: `TL_KERAS_H5=FOLDER cargo test -p tl-engine --test parity keras`
compares them with the engine's.
"""

import os
import sys
from pathlib import Path

os.environ["KERAS_BACKEND"] = "torch"

import numpy as np
import torch

import networks

NETWORKS = ["mobilenet_v2_same", "resnet50_keras", "efficientnet_b0_keras", "nasnet_mobile"]
SIDE = 96
DEVIATIONS = [0.229, 0.224, 0.225]


def snake(name):
    from keras.src.utils.naming import to_snake_case

    return to_snake_case(name)


def save(name, model, folder):
    """Random weights in which no two tensors are alike, and what comes of them."""
    random = np.random.default_rng(7)
    for weight in model.weights:
        kind = weight.path.split("/")[-1]
        if kind in ("mean", "variance", "count"):
            continue
        shape = tuple(weight.shape)
        if kind in ("gamma", "moving_variance"):
            value = random.uniform(0.5, 1.5, shape)
        else:
            fan = max(1, int(np.prod(shape[:-1])))
            value = random.normal(0.0, (2.0 / fan) ** 0.5 if len(shape) > 1 else 0.1, shape)
        weight.assign(value.astype(np.float32))
    normalization = [layer for layer in model.layers if type(layer).__name__ == "Normalization"]
    for layer in normalization:
        # As published, which a second division makes good that only published weights bring.
        layer.adapt_variance.assign(DEVIATIONS)
    model.save_weights(folder / f"{name}.weights.h5")
    model.save(folder / f"{name}.model.h5")
    from keras.src.legacy.saving import legacy_h5_format
    import h5py

    with h5py.File(folder / f"{name}.legacy.h5", "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, model)
    for layer in normalization:
        layer.adapt_variance.assign([d * d for d in DEVIATIONS])
        layer.finalize_state()
    x = random.uniform(-1.0, 1.0, (1, SIDE, SIDE, 3)).astype(np.float32)
    with torch.no_grad():
        logits = model(torch.from_numpy(x), training=False).detach().numpy()
    x.tofile(folder / f"{name}.input.f32")
    logits.astype(np.float32).tofile(folder / f"{name}.logits.f32")


def main():
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    lines = []
    for name in NETWORKS:
        net = networks.ALL[name]
        wrapped = net["build"](torch.float32, False)
        ours = {}
        for full, (value, _, _) in wrapped.weights.items():
            ours[id(value)] = full
        backbone = net["backbone"] or name
        lines.append(f"= {backbone}")
        for layer in wrapped.model.layers:
            weights = [w for w in layer.weights if id(w.value) in ours]
            if not weights:
                continue
            kinds = [(w.path.split("/")[-1], "x".join(map(str, w.shape)), ours[id(w.value)]) for w in weights]
            # What is common to the names of a layer's tensors.
            first = kinds[0][2]
            stem = first.removesuffix(".weight").removesuffix(".depthwise")
            variables = " ".join(f"{kind}:{shape}" for kind, shape, _ in kinds)
            lines.append(f"{layer.name} {snake(type(layer).__name__)} {stem} {variables}")
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            save(backbone, wrapped.model, folder)
    (Path(__file__).parent / "keras_layers.txt").write_text("\n".join(lines) + "\n")


main()
