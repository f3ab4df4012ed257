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
MAX_JUDGED = 150  # scores that length and noise are fitted to, from the best to the worst
MIN_VARIANCE = 1e-12


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
    candidates = np.arange(1 + max(first.max(), second.max()))
    # One column for every candidate of every label: the product counts genes that are the same.
    ones = [(genes[..., None] == candidates).reshape(len(genes), -1) for genes in (first, second)]
    return first.shape[1] - ones[0].astype(float) @ ones[1].T.astype(float)


def fit(genes: np.ndarray, scores: np.ndarray) -> GaussianProcess:
    """The model under which ``scores`` (n) of ``genes`` (n, labels), best first, are likeliest."""
    length, noise = _likeliest(genes, scores)
    near = np.exp(-count_differences(genes, genes) / length)
    inverse = np.linalg.inv(near + noise * np.eye(len(near)))
    mean = float(inverse.sum(axis=0) @ scores / inverse.sum())
    weights = inverse @ (scores - mean)
    variance = max(float((scores - mean) @ weights) / len(scores), MIN_VARIANCE)
    best = mean + float((near @ weights).max())
    return GaussianProcess(genes, weights, inverse, mean, variance, length, best)


def _likeliest(genes: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    """The length and noise under which the scores are likeliest, judged by `MAX_JUDGED` of them."""
    if len(genes) > MAX_JUDGED:
        chosen = np.linspace(0, len(genes) - 1, MAX_JUDGED).astype(int)
        genes, scores = genes[chosen], scores[chosen]
    count, num_labels = genes.shape
    differences = count_differences(genes, genes)
    found = []
    for length in (share * num_labels for share in LENGTHS):
        values, vectors = np.linalg.eigh(np.exp(-differences / length))
        ones, target = vectors.T @ np.ones(count), vectors.T @ scores
        for noise in NOISES:
            spectrum = np.maximum(values, 0) + noise
            mean = (ones * target / spectrum).sum() / (ones**2 / spectrum).sum()
            variance = max(((target - mean * ones) ** 2 / spectrum).mean(), MIN_VARIANCE)
            likelihood = -0.5 * (count * math.log(variance) + np.log(spectrum).sum())
            found.append((likelihood, length, noise))
    _, length, noise = max(found, key=lambda each: each[0])
    return length, noise
