"""Random numbers as a pure function of a seed and a counter: no state to store, none to restore.

Imports only numpy and `spos.errors`.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from spos.errors import ConfigError


class Stream(IntEnum):
    """What random numbers are for; streams of one seed never overlap."""

    ORDER = 1
    AUGMENTATION = 2
    SPLIT = 3
    SUBSET = 4
    TEST = 5


def random_words(
    count: int, *, seed: int, stream: Stream, counter: tuple[int, int] = (0, 0)
) -> np.ndarray:
    """``count`` random 64-bit words, a function of ``(seed, stream, counter)`` alone.

    Raw Philox words (Salmon et al. 2011), which numpy promises to keep for ever; the methods of
    `numpy.random.Generator` may change with its version.

    Args:
        count: how many words.
        seed: 0 to 2**64 - 1.
        stream: what the numbers are for.
        counter: such as ``(epoch, index)``.

    Raises:
        ConfigError: if the seed is out of range.
    """
    check_seed(seed)
    philox = np.random.Philox(
        key=np.array([seed, 0], np.uint64), counter=np.array([0, *counter, stream], np.uint64)
    )
    return philox.random_raw(count)


def random_uniforms(
    count: int, *, seed: int, stream: Stream, counter: tuple[int, int] = (0, 0)
) -> np.ndarray:
    """``count`` numbers uniform in [0, 1) as float64; arguments as in `random_words`."""
    words = random_words(count, seed=seed, stream=stream, counter=counter)
    return (words >> np.uint64(11)) * 2.0**-53


def random_permutation(
    count: int, *, seed: int, stream: Stream, counter: tuple[int, int] = (0, 0)
) -> np.ndarray:
    """A random order of ``range(count)`` as int64; arguments as in `random_words`."""
    words = random_words(count, seed=seed, stream=stream, counter=counter)
    return np.argsort(words, kind="stable")


def counter_generator(seed: int, step: int, *, stream: int = 0) -> np.random.Generator:
    """A generator for a training step, a function of its arguments alone.

    Args:
        seed: any integer; the same modulo 2**64 is the same.
        step: 0 to 2**64 - 1.
        stream: of one seed; none but 0 shares words with `random_words`, and 0 only in steps 1 to 5
            (with the orders and splits of epoch 0, to which paths have no relation).
    """
    key = np.array([seed % 2**64, stream], np.uint64)
    return np.random.Generator(
        np.random.Philox(key=key, counter=np.array([0, 0, 0, step], np.uint64))
    )


def check_seed(seed: int) -> None:
    """Refuse a seed that is not an integer from 0 to 2**64 - 1 with a `ConfigError`."""
    if type(seed) is not int or not 0 <= seed < 2**64:
        raise ConfigError(f"seed {seed!r}: expected an integer from 0 to 2**64 - 1")
