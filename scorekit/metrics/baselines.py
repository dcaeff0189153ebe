"""Images that no model made, as yardsticks of a distance."""

from __future__ import annotations

import math

import numpy as np

from scorekit.metrics.spaces import MetricError

MAX_COVARIANCE_DIM = 4096


# --- reference rows -------------------------------------------------------------------------------


def pixel_gaussian_samples(images: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Draw n images from the Gaussian with the mean and full covariance of the pixels of `images`.

    uint8 (N, C, H, W), N >= 2, to uint8 (n, C, H, W), clamped and rounded; deterministic
    (Philox). Raises MetricError for other input.
    """
    if images.ndim != 4 or images.dtype != np.uint8 or len(images) < 2 or n < 1:
        raise MetricError(
            f"images: {images.dtype} {images.shape}, n={n} given; uint8 (N, C, H, W) "
            "with N >= 2, and n >= 1, are right"
        )
    random = np.random.Generator(np.random.Philox(seed))
    flat, dim = images.reshape(len(images), -1), math.prod(images.shape[1:])
    if dim <= MAX_COVARIANCE_DIM:
        mean = flat.mean(axis=0, dtype=np.float64)
        covariance = np.zeros((dim, dim))
        for start in range(0, len(flat), 4096):
            centred = flat[start : start + 4096] - mean
            covariance += centred.T @ centred
        values, vectors = np.linalg.eigh(covariance / (len(flat) - 1))
        # The symmetric root is unique; eigenvectors' signs differ between LAPACKs.
        root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    else:
        # The same Gaussian without a D x D matrix: weights z over the centred images.
        mean = flat.mean(axis=0, dtype=np.float64)
        root = (flat.astype(np.float32) - mean.astype(np.float32)) / math.sqrt(len(flat) - 1)
    samples = np.empty((n, dim), dtype=np.uint8)
    for start in range(0, n, 1024):
        z = random.standard_normal((min(1024, n - start), len(root)))
        pixels = z.astype(root.dtype) @ root + mean
        samples[start : start + len(z)] = np.rint(pixels.clip(0, 255))
    return samples.reshape(n, *images.shape[1:])


def uniform_noise_samples(shape: tuple[int, int, int], n: int, seed: int) -> np.ndarray:
    """Draw n images of independent uniform pixels 0..255: uint8 (n, *shape), shape (C, H, W)."""
    random = np.random.Generator(np.random.Philox(seed))
    return random.integers(0, 256, size=(n, *shape), dtype=np.uint8)
