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


# What the batch-norms of every four channels add: twice this, twice less than nothing; the first pair of each fourth four
# lies beyond the upper kink of ReLU6.
LEVEL, ABOVE = 3.0, 9.0


def levels(count):
    """Of each channel: on which side of the kinks of a rectifier it lies."""
    channel = np.arange(count)
    on = np.where(channel // 4 % 4 == 3, ABOVE, LEVEL)
    return np.where(channel % 4 < 2, on, -LEVEL)


def kernel(name, shape, gain):
    """Kernels and matrices of a steady network: what two neighbouring inputs have in common is hardly seen, so that what
    differs between samples is not lost below it. Those of one input are near the identity."""
    u, fan = uniform(name, shape), float(np.prod(shape[1:]))
    if shape[1] == 1:
        v = 0.3 * np.sqrt(3.0 / fan) * u
        flat = v.reshape(shape[0], -1)
        flat[:, flat.shape[1] // 2] += 1.0
        return v
    v = gain * np.sqrt(3.0 / fan) * u
    pairs = shape[1] // 2 * 2
    v[:, 1:pairs:2] = 0.05 * v[:, 1:pairs:2] - v[:, 0:pairs:2]
    return v


def value(name, shape, shifts, gain=0.0):
    """The tensor `name`, as float32. `gain` is that of the kernels of a network of rectifiers, and zero in any other;
    `shifts` says that a rectifier follows what this tensor adds; without `gain` all of it is then near LEVEL.

    Networks of rectifiers keep all values far from the kinks, some channels on either side: where rounding decides which
    side a value is on, one element changes a gradient by a percent, and nothing smaller would be seen. What a batch-norm
    scales by is small beside what it adds for that reason.
    """
    shape = tuple(shape)
    u = uniform(name, shape)
    last = name.rsplit(".", 1)[-1]
    if last == "running_mean":
        v = 0.1 * u
    elif last == "running_var":
        v = 1.0 + 0.1 * np.abs(u)
    elif len(shape) > 1:
        v = kernel(name, shape, gain) if gain else u * np.sqrt(3.0 / float(np.prod(shape[1:])))
    elif last == "weight":
        v = (0.4 if gain else 1.0) * (1.0 + 0.1 * u)
    elif shifts:
        v = levels(shape[0]) + 0.05 * u if gain else LEVEL + 0.1 * u
    else:
        v = 0.1 * u
    return v.astype(np.float32)


def classes(name, count, of):
    """One of so many for each element."""
    return ((bits(name, 0, count) >> np.uint64(40)) % np.uint64(of)).astype(np.int64)
