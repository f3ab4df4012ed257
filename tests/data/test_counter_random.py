import numpy as np
import pytest

from spos.data.counter_random import Stream, random_permutation, random_uniforms, random_words
from spos.errors import ConfigError


def test_words_are_the_same_for_ever() -> None:
    words = random_words(3, seed=7, stream=Stream.ORDER, counter=(2, 5))
    assert [f"{word:016x}" for word in words.tolist()] == [
        "9720cd021609b898",
        "dffdd711b63c7a44",
        "ff4fa1c3ae5b9fdb",
    ]
    order = random_permutation(8, seed=7, stream=Stream.ORDER, counter=(2, 0))
    assert order.tolist() == [3, 1, 5, 2, 6, 7, 4, 0]


def test_every_argument_changes_the_words() -> None:
    arguments = [
        {"seed": 0, "stream": Stream.ORDER, "counter": (0, 0)},
        {"seed": 1, "stream": Stream.ORDER, "counter": (0, 0)},
        {"seed": 2**64 - 1, "stream": Stream.ORDER, "counter": (0, 0)},
        {"seed": 0, "stream": Stream.SPLIT, "counter": (0, 0)},
        {"seed": 0, "stream": Stream.ORDER, "counter": (1, 0)},
        {"seed": 0, "stream": Stream.ORDER, "counter": (0, 1)},
    ]
    words = np.concatenate([random_words(100, **each) for each in arguments])
    assert len(set(words.tolist())) == len(words)


def test_longer_draws_begin_like_shorter_ones() -> None:
    short = random_words(5, seed=3, stream=Stream.SUBSET)
    assert random_words(50, seed=3, stream=Stream.SUBSET)[:5].tolist() == short.tolist()


def test_uniforms_fill_the_unit_interval() -> None:
    uniforms = random_uniforms(100_000, seed=0, stream=Stream.AUGMENTATION)
    assert 0 <= uniforms.min() < 1e-3
    assert 1 - 1e-3 < uniforms.max() < 1
    shares = np.histogram(uniforms, bins=10, range=(0, 1))[0] / len(uniforms)
    assert np.abs(shares - 0.1).max() < 0.005  # five standard deviations


def test_permutation_holds_every_index_once() -> None:
    order = random_permutation(1000, seed=0, stream=Stream.ORDER)
    assert sorted(order.tolist()) == list(range(1000))


@pytest.mark.parametrize("seed", [-1, 2**64, 0.5, True, "0"])
def test_seeds_out_of_range_are_refused(seed: object) -> None:
    with pytest.raises(ConfigError, match="seed"):
        random_words(1, seed=seed, stream=Stream.ORDER)  # type: ignore[arg-type]
