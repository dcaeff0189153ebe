"""Faster must not mean different: precisions and compilation against float32 in eager mode.

    python -m bench.fidelity [--iterations N] [--seeds K] [--samples n] [--compile] [--out FOLDER]

A small NCSNv2 network is trained on the embedded digits and sampled from, in each way and from the
same seeds; what comes out is compared with what another seed would have changed. Writes
fidelity-<device class>.json, which `python -m bench.report` renders.
"""

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from ablations.pipeline.cell import Cell
from ablations.pipeline.data import DataFacts, data_facts
from ablations.pipeline.variants import parse_variant
from ablations.studies.ncsnv2.resolution import resolve
from ablations.studies.ncsnv2.settings import BUDGETS
from bench.comparisons import (
    REFERENCE,
    Comparison,
    Fidelity,
    FidelitySettings,
    Way,
    fidelity_table,
    ways,
)
from bench.machine import conditions, default_device
from bench.measurements import RESULTS
from scorekit.data.pixels import to_float, to_uint8
from scorekit.data.registry import prepare
from scorekit.data.store import Dataset
from scorekit.metrics.features import extract_features
from scorekit.metrics.frechet import FeatureStatistics, feature_statistics, frechet_distance
from scorekit.models.score_network import ScoreNetwork
from scorekit.runtime.compilation import Precision, compile_unavailable_reason, compiled
from scorekit.runtime.interruption import Diverged
from scorekit.sampling.langevin import AnnealedLangevin
from scorekit.training.trainer import Trainer

_BATCH = 256  # images that are sampled, or scored, at a time
_CURVE_POINTS = 40
_N_SCORE_LEVELS = 4


def run(
    settings: FidelitySettings,
    device: torch.device,
    others: Sequence[Way] | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Fidelity:
    """Train, score and sample in float32 in eager mode and in the ``others``, and compare.

    Differences and spreads of the quantities:

    - score: relative L2 distance at one noise scale, same weights, other way | networks of other
      training seeds; the values are relative L2 errors against float64;
    - training loss: mean of the last quarter, same seed | standard deviation over seeds;
    - sample RMS: RMS over an image's pixels in [0, 1], mean over images, same weights and sample
      indices | other sample indices, hence other noise;
    - FD: Fréchet distance to the training images, same weights and sample indices | standard
      deviation over sets of other indices;
    - FD after training: networks trained each way and sampled in float32, same seed and sample
      indices | standard deviation over training seeds.

    Raises ValueError where compilation is asked for and unavailable, and Diverged.
    """
    others = ways(device, settings.compile)[1:] if others is None else others
    if any(way.compile for way in others) and device.type == "cpu":
        reason = compile_unavailable_reason()
        if reason is not None:
            raise ValueError(f"compile = True, but torch.compile does not work here: {reason}")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fidelity-") as name, _deterministic(device):
        folder = Path(name)
        facts = data_facts("digits", folder, image_size=None, inception_weights=None)
        study = _Study(settings, device, facts, prepare("digits", folder), folder, progress)
        trained = {way: study.train(way) for way in (REFERENCE, *others)}
        networks = {
            way: [cast(ScoreNetwork, trainer.ema_network) for trainer in trained[way]]
            for way in trained
        }
        losses = {way: [np.array(t.losses) for t in trained[way]] for way in trained}
        comparisons = [
            *study.compare_scores(networks[REFERENCE], others),
            *_compare(
                "training loss",
                {way: [_last_quarter(loss) for loss in losses[way]] for way in losses},
            ),
            *study.compare_samples(networks[REFERENCE][0], others),
            *study.compare_trained(networks),
        ]
    return Fidelity(
        conditions=conditions(device),
        settings=settings,
        comparisons=comparisons,
        curves={way.name: [_curve(loss) for loss in losses[way]] for way in losses},
        seconds=time.monotonic() - began,
    )


@contextmanager
def _deterministic(device: torch.device) -> Iterator[None]:
    """Keep a GPU's atomic additions from making a difference between equal runs."""
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    if device.type != "cpu":
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


def _last_quarter(losses: np.ndarray) -> float:
    return float(losses[-(len(losses) // 4) :].mean())


def _curve(losses: np.ndarray) -> list[float]:
    parts = np.array_split(losses, min(_CURVE_POINTS, len(losses)))
    return [float(part.mean()) for part in parts]


def _compare(quantity: str, values: dict[Way, list[float]]) -> list[Comparison]:
    """Compare paired values of every way, one per seed, with the reference's over seeds."""
    reference = np.array(values[REFERENCE])
    return [
        Comparison(
            quantity=quantity,
            way=way.name,
            value=float(np.mean(values[way])),
            reference=float(reference.mean()),
            difference=float(np.abs(values[way] - reference).mean()),
            spread=float(reference.std(ddof=1)),
        )
        for way in values
        if way != REFERENCE
    ]


@dataclass(frozen=True)
class _Study:
    """The steps of :func:`run`."""

    settings: FidelitySettings
    device: torch.device
    facts: DataFacts
    dataset: Dataset
    folder: Path
    progress: Callable[[str], None]

    def cell(self, seed: int, precision: Precision) -> Cell:
        """Return all settings of a training run and of sampling from it."""
        chosen = dataclasses.replace(
            BUDGETS["quick"].settings,
            iterations=self.settings.iterations,
            snapshot_interval=self.settings.iterations,
            width=self.settings.width,
            n_steps_each=self.settings.n_steps_each,
            ema_momentum=self.settings.ema_momentum,
            precision=precision,
        )
        return resolve(chosen, parse_variant("NCSNv2"), self.facts, seed)

    def train(self, way: Way) -> list[Trainer]:
        """Return finished trainers, one per seed."""
        trainers = []
        for seed in range(self.settings.seeds):
            trainer = Trainer(
                self.cell(seed, way.precision).train,
                self.dataset,
                self.folder / f"{way.name}-{seed}",
                device=self.device.type,
                compile=way.compile,
            )
            trainer.run()
            trainers.append(trainer)
            loss = _last_quarter(np.array(trainer.losses))
            self.progress(f"trained {way.name}, seed {seed}: loss {loss:.4g}")
        return trainers

    def compare_scores(
        self, networks: list[ScoreNetwork], others: Sequence[Way]
    ) -> list[Comparison]:
        """Compare scores of perturbed test images, at noise scales from the largest to the last."""
        images = to_float(self.dataset.test[:_BATCH]).to(self.device)
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
        noise = noise.to(self.device)
        exact = [deepcopy(network).double() for network in networks]
        functions = {way: _score(networks[0], way, self.device) for way in (REFERENCE, *others)}
        comparisons = []
        n_levels = networks[0].n_levels
        for level in np.linspace(0, n_levels - 1, _N_SCORE_LEVELS).round().astype(int).tolist():
            sigma = networks[0].sigmas[level]
            x = images + sigma * noise
            index = torch.full((len(x),), level, device=self.device)
            with torch.no_grad():
                truth, *elsewhere = [network(x.double(), index) for network in exact]
            scores = {way: function(x, index).double() for way, function in functions.items()}
            errors = {way: _distance(score, truth, truth) for way, score in scores.items()}
            spread = float(np.mean([_distance(score, truth, truth) for score in elsewhere]))
            comparisons += [
                Comparison(
                    quantity=f"score at sigma = {float(sigma):.3g}",
                    way=way.name,
                    value=errors[way],
                    reference=errors[REFERENCE],
                    difference=_distance(scores[way], scores[REFERENCE], truth),
                    spread=spread,
                    sigma=float(sigma),
                )
                for way in others
            ]
        return comparisons

    def sampler(self, network: ScoreNetwork, way: Way) -> Callable[[int], Tensor]:
        """Return the function from a number to a set of samples, float32 in [0, 1] on the CPU.

        Set k has sample indices from k n on. Noise is a function of the index, so other sets have
        other noise as with another seed, but share the compiled sampler.
        """
        cell, n = self.cell(0, way.precision), self.settings.samples
        sampler = AnnealedLangevin.along(
            network.features,
            cell.ladder,
            device=str(self.device),
            times_sigma=True,
            compile=way.compile,
        )
        shape = self.dataset.train.shape[1:]

        def draw(k: int) -> Tensor:
            batches = []
            for index in torch.arange(k * n, (k + 1) * n, device=self.device).split(_BATCH):
                with torch.inference_mode(), way.active(self.device):
                    batches.append(sampler.sample(index, shape).denoised.float().cpu())
            return torch.cat(batches).clamp(0, 1)

        return draw

    def compare_samples(self, network: ScoreNetwork, others: Sequence[Way]) -> list[Comparison]:
        """Compare sets of samples from the same weights, image by image and as sets."""
        sets = {}
        for way in (REFERENCE, *others):
            draw = self.sampler(network, way)
            sets[way] = [draw(k) for k in range(self.settings.seeds)]
            self.progress(f"sampled {way.name}, {self.settings.seeds} sets")
        ours = sets[REFERENCE]
        unrelated = float(np.mean([_rms(a, b) for a, b in pairwise(ours)]))
        by_image = [
            Comparison(
                quantity="sample RMS",
                way=way.name,
                value=None,
                reference=None,
                difference=float(np.mean(list(map(_rms, sets[way], ours)))),
                spread=unrelated,
            )
            for way in others
        ]
        return by_image + _compare(
            f"FD[{self.facts.extractor}]",
            {way: [self.frechet(images) for images in sets[way]] for way in sets},
        )

    def compare_trained(self, networks: dict[Way, list[ScoreNetwork]]) -> list[Comparison]:
        """Compare what networks trained each way give, all sampled in float32."""
        distances = {}
        for way, trained in networks.items():
            images = [self.sampler(network, REFERENCE)(0) for network in trained]
            distances[way] = [self.frechet(each) for each in images]
            self.progress(f"sampled the networks trained in {way.name}")
        return _compare(f"FD[{self.facts.extractor}] after training", distances)

    def frechet(self, images: Tensor) -> float:
        """Return the Fréchet distance of samples to the training images."""
        return frechet_distance(self.features(to_uint8(images)), self.training_features)

    @cached_property
    def training_features(self) -> FeatureStatistics:
        """The feature statistics of the training images."""
        return self.features(self.dataset.train)

    def features(self, images: np.ndarray | Tensor) -> FeatureStatistics:
        """Return the feature statistics of uint8 images."""
        return feature_statistics(
            extract_features(images, self.facts.extractor, device=self.device)
        )


def _score(network: ScoreNetwork, way: Way, device: torch.device) -> Callable[..., Tensor]:
    function = compiled(network.forward, enable=way.compile, device=device.type)

    def score(x: Tensor, index: Tensor) -> Tensor:
        with torch.no_grad(), way.active(device):
            return function(x, index)

    return score


def _distance(a: Tensor, b: Tensor, scale: Tensor) -> float:
    """Return |a - b| / |scale|."""
    return float(torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(scale))


def _rms(a: Tensor, b: Tensor) -> float:
    """Return the mean over images of the RMS over pixels of their difference."""
    return float((a - b).flatten(1).square().mean(dim=1).sqrt().mean())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0, 1 where training diverged, or 2 for bad input."""
    default = FidelitySettings()
    parser = argparse.ArgumentParser(prog="python -m bench.fidelity", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    for name in ("iterations", "seeds", "samples"):
        value = getattr(default, name)
        parser.add_argument(f"--{name}", type=int, default=value, help=f"default: {value}")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = vars(parser.parse_args(argv))
    out = given.pop("out")
    try:
        fidelity = run(
            FidelitySettings(**given),
            default_device(),
            progress=lambda text: print(text, file=sys.stderr, flush=True),
        )
        path = fidelity.save(out)
    except Diverged as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{fidelity_table(fidelity)}\n{fidelity.seconds:.0f} s; saved: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
