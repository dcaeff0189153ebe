"""A mixture of Gaussians at images, whose score is known: samplers without a network's errors.

Song & Ermon (2020, Sec. 3.1 and Fig. 2) sample such a mixture by its score. What its samples lack
is then the sampler's doing, and the distribution that they should have is known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from kernels.mixture_score import mixture_score
from scorekit.data.pixels import to_float
from scorekit.metrics.frechet import FeatureStatistics, feature_statistics, frechet_distance
from scorekit.metrics.neighbours import nearest_neighbours


@dataclass(frozen=True, kw_only=True)
class MixtureQuality:
    """What samples of an :class:`ImageMixture` are like.

    ``distance`` is the Fréchet distance of their pixels, in [0, 1], to the mixture's own moments,
    None where there are no more samples than pixels. ``covered`` is the share of components that
    are the nearest to some sample, ``entropy`` (nats) that of how many samples each is nearest to,
    at most ln N, and ``off`` the root mean square difference of a pixel to the nearest component.
    """

    distance: float | None
    covered: float
    entropy: float
    off: float


class ImageMixture:
    """The mixture of N(x_i, sigma^2 I) with equal weights at images x_i, on a device.

    ``components`` is uint8 (N, C, H, W), N >= 2. Raises ValueError for others.
    """

    def __init__(self, components: np.ndarray, *, device: str = "cpu") -> None:
        images = torch.from_numpy(np.array(components))
        if images.dtype != torch.uint8 or images.ndim != 4 or len(images) < 2:
            raise ValueError(
                f"components are {images.dtype} {tuple(images.shape)}: uint8 (N, C, H, W), N >= 2, "
                "is needed"
            )
        self.components = images.to(device)

    def score(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Return grad log p(x) at noise scales sigma: what a sampler with ``takes_sigma`` takes."""
        return mixture_score(x, self.components, sigma)

    def draw(self, n: int, *, sigma: float, seed: int) -> tuple[Tensor, Tensor]:
        """Return n true samples at a noise scale, and the same denoised, float32 (n, C, H, W).

        Components are drawn with equal probability, then noise: what a perfect sampler gives.
        """
        generator = np.random.Generator(np.random.Philox(key=seed))
        index = generator.integers(0, len(self.components), n)
        noise = generator.standard_normal((n, *self.components.shape[1:]), np.float32)
        x = to_float(self.components[torch.from_numpy(index).to(self.components.device)])
        x = x + sigma * torch.from_numpy(noise).to(x.device)
        return x, x + sigma**2 * self.score(x, sigma)

    def quality(self, samples: Tensor) -> MixtureQuality:
        """Measure samples, float32 (n, C, H, W), n >= 2, not clamped.

        Raises MetricError for samples that are not finite.
        """
        rows = samples.flatten(1).cpu().double().numpy()
        near = nearest_neighbours(rows, self._rows, k=1)
        counts = np.unique(near.index, return_counts=True)[1]
        share = counts / len(rows)
        distance = None
        if len(rows) > rows.shape[1]:
            distance = frechet_distance(feature_statistics(rows), self.statistics)
        return MixtureQuality(
            distance=distance,
            covered=len(counts) / len(self._rows),
            entropy=float(-(share * np.log(share)).sum()) + 0.0,
            off=math.sqrt(float(np.square(near.distance).mean()) / rows.shape[1]),
        )

    @cached_property
    def _rows(self) -> np.ndarray:
        return self.components.flatten(1).double().cpu().numpy() / 255

    @cached_property
    def statistics(self) -> FeatureStatistics:
        """Mean and covariance of the components' pixels: of the distribution, not of a sample."""
        return moments(self._rows)


def moments(features: np.ndarray) -> FeatureStatistics:
    """Return mean and covariance of the equal-weight distribution on features (N, d).

    Those of :func:`feature_statistics` are estimates from a sample, N / (N - 1) as large.
    """
    found = feature_statistics(features)
    return replace(found, covariance=found.covariance * ((found.n - 1) / found.n))
