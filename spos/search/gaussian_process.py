"""A Gaussian process over architectures: what is near, and how far it can be trusted.

Imports only numpy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

# A correlation of exp(-differences / length); fitted to the scores, as the noise is.
LENGTHS = (0.15, 0.3, 0.6, 1.2, 2.4)  # shares of the number of choices
NOISES = (1e-4, 1e-2, 0.1, 0.4)  # shares of the variance


@dataclass(frozen=True)
class GaussianProcess:
    """A model of scores: their mean and deviation for any architecture.

    Attributes:
        genes: (n, labels) architectures with scores.
        weights: (n) of the correlations in the mean.
        inverse: (n, n) of the correlations with noise.
        mean: of all scores.
        variance: of all scores.
        length: at which correlations fall by a factor of e, in genes that differ.
        best: the highest mean among the architectures with scores.
    """

    genes: np.ndarray
    weights: np.ndarray
    inverse: np.ndarray
    mean: float
    variance: float
    length: float
    best: float

    def predict(self, genes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation, without noise, of architectures (m, labels)."""
        near = np.exp(-count_differences(genes, self.genes) / self.length)
        mean = self.mean + near @ self.weights
        share = 1 - np.einsum("ij,jk,ik->i", near, self.inverse, near, optimize=True)
        return mean, np.sqrt(self.variance * np.maximum(share, 1e-12))

    def expected_improvement(self, genes: np.ndarray) -> np.ndarray:
        """By how much architectures (m, labels) are expected to exceed `best` (Mockus 1978)."""
        mean, deviation = self.predict(genes)
        ratio = (mean - self.best) / deviation
        density = np.exp(-0.5 * ratio**2) / math.sqrt(2 * math.pi)
        below = np.array([0.5 * math.erfc(-each / math.sqrt(2)) for each in ratio.tolist()])
        return deviation * (ratio * below + density)


def count_differences(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """How many genes differ between each of (m, labels) and each of (n, labels)."""
    return (first[:, None] != second[None]).sum(axis=2)


def fit(genes: np.ndarray, scores: np.ndarray) -> GaussianProcess:
    """The model under which ``scores`` (n) of ``genes`` (n, labels) are likeliest."""
    count, num_labels = genes.shape
    differences = count_differences(genes, genes)
    found: tuple[float, GaussianProcess] | None = None
    for share in LENGTHS:
        length = share * num_labels
        near = np.exp(-differences / length)
        values, vectors = np.linalg.eigh(near)
        ones, target = vectors.T @ np.ones(count), vectors.T @ scores
        for noise in NOISES:
            spectrum = np.maximum(values, 0) + noise
            mean = float((ones * target / spectrum).sum() / (ones**2 / spectrum).sum())
            centred = target - mean * ones
            variance = max(float((centred**2 / spectrum).mean()), 1e-12)
            likelihood = -0.5 * (count * math.log(variance) + float(np.log(spectrum).sum()))
            if found is None or likelihood > found[0]:
                weights = vectors @ (centred / spectrum)
                best = mean + float((near @ weights).max())
                inverse = (vectors / spectrum) @ vectors.T
                model = GaussianProcess(genes, weights, inverse, mean, variance, length, best)
                found = likelihood, model
    assert found is not None
    return found[1]
