"""Every sampler with the exact score of a mixture, at equal evaluations and without training.

Annealed Langevin dynamics has the noise scales of Techniques 1 and 2 and as many steps at each as a
number of evaluations allows; samplers that go from scale to scale have as many scales instead.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ablations.engine.stages import Stage, StageStore
from ablations.pipeline.data import DataFacts
from scorekit.data.pixels import to_float, to_uint8
from scorekit.data.store import Dataset
from scorekit.metrics.exact_score import ImageMixture, moments
from scorekit.metrics.frechet import FeatureStatistics, feature_statistics, frechet_distance
from scorekit.sampling.registry import (
    affordable_levels_of,
    affordable_steps_of,
    make_sampler,
    sampler_evaluations,
    sampler_kind,
)
from scorekit.techniques.ladder import Ladder
from scorekit.techniques.noise_scales import n_noise_scales, noise_scale_ratio

#: Score evaluations of a sample, its denoising step among them.
EVALUATIONS = (25, 50, 100, 250, 500, 1000, 2500)
#: So few that digits take minutes; twice as many samples as components, so that most of these
#: would be met by true samples (86 %).
N_COMPONENTS, N_SAMPLES = 300, 600
#: Draws of true samples, for the spread of a measure that the number of samples alone gives.
N_DRAWS = 10
#: S_churn of Karras et al. 2022 (Table 5, ImageNet-64), here at all noise scales.
CHURN = 40.0
_SIGMA_END = 0.01

Progress = Callable[[float, str], None]


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to sample: a sampler with what else sets it apart."""

    title: str
    sampler: str
    rule: str = "none"  # of epsilon, as Ladder.by_rule takes it, where the sampler has one
    schedule: str = "geometric"
    churn: float = 0.0


WAYS = (
    Way(title="annealed, Technique 4", sampler="annealed", rule="Technique 4"),
    Way(title="annealed, steady state", sampler="annealed", rule="steady state"),
    Way(title="annealed, snr", sampler="annealed", rule="snr"),
    Way(title="consistent", sampler="consistent", rule="consistent"),
    Way(title="reverse diffusion", sampler="reverse_diffusion"),
    Way(title="predictor-corrector", sampler="predictor_corrector"),
    Way(title="ancestral", sampler="ancestral"),
    Way(title="Heun", sampler="heun"),
    Way(title="Heun, churn", sampler="heun", churn=CHURN),
    Way(title="Heun, ρ schedule", sampler="heun", schedule="rho"),
)


def ladder_for(way: Way, evaluations: int, *, max_distance: float, dim: int) -> Ladder:
    """Return the ladder on which a way keeps to a number of evaluations, denoising included.

    Samplers that can take steps between noise scales have as many scales as that allows, which is
    the same; others have L of Technique 2 (C = 0.5), or as many as it allows, and T steps at each.
    """
    n_levels, n_steps_each = affordable_levels_of(way.sampler, evaluations), 1
    if not sampler_kind(way.sampler).between(2, 0.0):
        own = n_noise_scales(max_distance, _SIGMA_END, noise_scale_ratio(dim))
        n_levels = min(own, n_levels)
        n_steps_each = affordable_steps_of(way.sampler, evaluations, n_levels)
    ladder = Ladder(
        sigma_begin=max_distance,
        sigma_end=_SIGMA_END,
        n_levels=n_levels,
        n_steps_each=n_steps_each,
        step_size=0.0,
        step_rule=way.rule,
        schedule=way.schedule,
    )
    return ladder if way.rule == "none" else ladder.by_rule(way.rule)


@dataclass(frozen=True, kw_only=True)
class Point:
    """A way at a number of evaluations, and what its samples are like where they were drawn.

    ``measured`` has, of denoised samples, what
    :class:`~scorekit.metrics.exact_score.MixtureQuality` has, and the Fréchet distances in the data
    set's feature space, ``components`` to the mixture's own moments and ``held_out`` to the test
    images'; and their ``variance`` around the nearest component before the denoising step, over
    sigma_L^2.
    """

    way: Way
    budget: int
    ladder: Ladder
    measured: dict[str, Any] | None

    @property
    def evaluations(self) -> int:
        """Score evaluations of a sample, denoising included: no more than ``budget``."""
        ladder = self.ladder
        return sampler_evaluations(self.way.sampler, ladder.n_levels, ladder.n_steps_each)


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """All points, way by way and in order of evaluations, and draws of true samples."""

    facts: DataFacts
    seed: int
    n_components: int
    n_samples: int
    points: list[Point]
    true: list[dict[str, Any]] | None


def run_benchmark(
    facts: DataFacts,
    dataset: Dataset,
    store: StageStore,
    *,
    device: str = "cpu",
    extractor_weights: Path | None = None,
    seed: int = 0,
    run: bool = True,
    progress: Progress = lambda fraction, text: None,
) -> Benchmark:
    """Sample the mixture of some training images in every way, and measure the samples.

    What the store has is taken from it, each point by itself; the rest is made, or left out where
    ``run`` is False.
    """
    gauge = _Gauge(facts, dataset, device, extractor_weights, seed)
    n_components = len(gauge.index)
    shared = {
        "data": facts.fingerprint,
        "extractor": facts.extractor_fingerprint,
        "n_components": n_components,
        "n_samples": N_SAMPLES,
        "seed": seed,
    }

    def result(settings: dict[str, Any], execute: Callable[[], dict[str, Any]]) -> Any:
        stage = Stage(
            "exact-score", shared | settings, code=("ablations.studies.ncsnv2.benchmark",)
        )
        return store.run(stage, lambda _: (execute(), [])) if run else store.result(stage)

    true = result({"true": N_DRAWS, "sigma_end": _SIGMA_END}, gauge.true_samples)
    planned = [
        (way, budget, ladder_for(way, budget, max_distance=facts.max_distance, dim=facts.dim))
        for way in WAYS
        for budget in EVALUATIONS
    ]
    total, done = len(WAYS) * sum(EVALUATIONS), 0
    points = []
    for way, budget, ladder in planned:
        progress(done / total, f"{facts.name}: {way.title}, {budget} evaluations")
        settings = {"sampler": way.sampler, "churn": way.churn, "start": "gaussian"}
        measured = result(
            settings | asdict(ladder),
            lambda way=way, ladder=ladder: gauge.sampled(way, ladder),  # type: ignore[misc]
        )
        points.append(Point(way=way, budget=budget, ladder=ladder, measured=measured))
        done += budget
    progress(1.0, facts.name)
    return Benchmark(
        facts=facts,
        seed=seed,
        n_components=n_components,
        n_samples=N_SAMPLES,
        points=points,
        true=None if true is None else true["draws"],
    )


class _Gauge:
    """The mixture of a data set and what samples are held against, made when first needed."""

    def __init__(
        self, facts: DataFacts, dataset: Dataset, device: str, weights: Path | None, seed: int
    ) -> None:
        self._facts, self._dataset, self._device = facts, dataset, device
        self._weights, self._seed = weights, seed
        order = np.random.Generator(np.random.Philox(key=seed)).permutation(len(dataset.train))
        self.index = order[:N_COMPONENTS]

    @cached_property
    def _mixture(self) -> ImageMixture:
        return ImageMixture(np.asarray(self._dataset.train)[self.index], device=self._device)

    @cached_property
    def _references(self) -> dict[str, FeatureStatistics]:
        return {
            "components": moments(self._features(self._mixture.components)),
            "held_out": feature_statistics(self._features(np.asarray(self._dataset.test))),
        }

    def _features(self, images: np.ndarray | Tensor) -> np.ndarray:
        from scorekit.metrics.features import extract_features  # torch-fidelity is slow to import

        return extract_features(
            images, self._facts.extractor, device=self._device, weights_path=self._weights
        )

    def true_samples(self) -> dict[str, Any]:
        """Measure draws of true samples, as many in each as are sampled."""
        # Key 2^32 and on: components were drawn with the seed itself.
        keys = [(self._seed << 64) + 2**32 + i for i in range(N_DRAWS)]
        draws = [self._mixture.draw(N_SAMPLES, sigma=_SIGMA_END, seed=key) for key in keys]
        return {"draws": [self._measured(*drawn) for drawn in draws]}

    def sampled(self, way: Way, ladder: Ladder) -> dict[str, Any]:
        """Sample in one way, all samples at once, and measure them with the denoising step."""
        components = self._mixture.components
        sampler = make_sampler(
            way.sampler,
            self._mixture.score,
            ladder,
            device=self._device,
            seed=self._seed,
            takes_sigma=True,
            # The chain that all but annealed Langevin dynamics invert ends in this Gaussian.
            start="gaussian",
            start_mean=to_float(components).mean(0),
            churn=way.churn,
        )
        began = time.monotonic()
        index = torch.arange(N_SAMPLES, device=self._device)
        drawn = sampler.sample(index, tuple(components.shape[1:]))
        spent = time.monotonic() - began
        return self._measured(drawn.last, drawn.denoised) | {"sampling_s": spent}

    def _measured(self, last: Tensor, denoised: Tensor) -> dict[str, Any]:
        quality = self._mixture.quality(denoised)
        found: dict[str, Any] = {
            "distance": quality.distance,
            "covered": quality.covered,
            "entropy": quality.entropy,
            "variance": (self._mixture.quality(last).off / _SIGMA_END) ** 2,
        }
        statistics = feature_statistics(self._features(to_uint8(denoised)))
        for name, reference in self._references.items():
            found[name] = frechet_distance(statistics, reference)
        return found
