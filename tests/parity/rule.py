"""Values that both sides of the parity test can compute: a function of a tensor's name, its shape and the element's index.

`worker/engine/tests/parity/rule.rs` is the same in Rust. All values are exact in float32, so that float64 sees them too.
"""

import numpy as np

GOLDEN = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1


def fnv(text):
    """FNV-1a, 64 bits."""
    state = 0xCBF29CE484222325
    for byte in text.encode():
        state = ((state ^ byte) * 0x100000001B3) & MASK
    return state


def bits(name, start, end):
    """splitmix64 of elements `start..end` of `name`."""
    z = np.arange(start + 1, end + 1, dtype=np.uint64) * np.uint64(GOLDEN) + np.uint64(fnv(name))
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def uniform(name, shape):
    """In [-1, 1): the top 24 bits, as float64."""
    count = int(np.prod(shape))
    return ((bits(name, 0, count) >> np.uint64(40)).astype(np.float64) * 2.0**-23 - 1.0).reshape(shape)


def signs(name, count):
    """Either 1 or -1 for each element: the top bit."""
    return ((bits(name, 0, count) >> np.uint64(63)).astype(np.int8) << 1) - np.int8(1)


def value(name, shape, of_norm):
    """The tensor `name`, as float32; `of_norm` says that a batch-norm holds it.

    What a batch-norm shifts by is near 3. By the statistics of the batch few values then lie near a kink of a rectifier,
    where rounding decides which side they are on and one element changes a gradient by a percent. By the running
    statistics, which know nothing of the batch, values lie on both sides.
    """
    shape = tuple(shape)
    u = uniform(name, shape)
    last = name.rsplit(".", 1)[-1]
    if last == "running_mean":
        v = 0.1 * u
    elif last == "running_var":
        v = 1.0 + 0.1 * np.abs(u)
    elif len(shape) > 1:
        v = u * np.sqrt(3.0 / float(np.prod(shape[1:])))
    elif last == "weight":
        v = 1.0 + 0.1 * u
    elif of_norm:
        v = 3.0 + 0.1 * u
    else:
        v = 0.1 * u
    return v.astype(np.float32)


def classes(name, count, of):
    """One of so many for each element."""
    return ((bits(name, 0, count) >> np.uint64(40)) % np.uint64(of)).astype(np.int64)
