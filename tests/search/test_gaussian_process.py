"""The model behind the predictor: pytest tests/search/test_gaussian_process.py"""

import numpy as np
import pytest

from spos.search.gaussian_process import MAX_JUDGED, count_differences, fit


def make_scores(count, num_labels=12):
    """Architectures with four candidates for each label, and a smooth function of them."""
    generator = np.random.default_rng(count)
    genes = generator.integers(4, size=(count, num_labels))
    values = generator.normal(size=(num_labels, 4))
    return genes, values[np.arange(num_labels), genes].sum(axis=1)


def test_differences_are_those_of_a_plain_count():
    first, second = make_scores(30)[0], make_scores(20)[0]
    plain = (first[:, None] != second[None]).sum(axis=2)
    assert np.array_equal(count_differences(first, second), plain)


@pytest.mark.parametrize("count", [40, 2 * MAX_JUDGED])
def test_model_returns_what_it_was_given_and_ranks_what_is_new(count):
    genes, scores = make_scores(count + 50)
    order = np.argsort(-scores[:count])
    model = fit(genes[:count][order], scores[:count][order])
    mean, deviation = model.predict(genes)
    assert np.abs(mean - scores)[:count].max() < 0.1 * scores.std()
    assert deviation[:count].max() < 0.1 * deviation[count:].min()
    assert np.corrcoef(mean[count:], scores[count:])[0, 1] > 0.7
