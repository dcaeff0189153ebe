"""Cells: a variant on a dataset with a seed, every setting resolved, and the stages they share."""

import dataclasses
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from ablations.settings import Settings
from ablations.stages import Stage
from ablations.variants import Variant
from scorekit.networks import architecture_for, check_image_size
from scorekit.presets import TABLE_4, Published, published
from scorekit.techniques import (
    check_step_size,
    geometric_sigmas,
    ladder_ratio,
    langevin_step_size,
    n_noise_scales,
    noise_scale_ratio,
)
from scorekit.training import TrainSettings


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """What settings are derived from: a dataset's identity and shape, and Technique 1's sigma_1."""

    name: str
    store: str  # folder of the prepared images below the data root
    fingerprint: str
    channels: int
    image_size: int
    n_train: int
    n_test: int
    flip: bool
    max_distance: float  # sigma_1 of Technique 1
    extractor: str  # feature space of the Fréchet distance
    extractor_fingerprint: str

    @property
    def dim(self) -> int:
        """D: pixels times channels."""
        return self.channels * self.image_size**2


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One row of the ablation, resolved: nothing in it depends on where or how it is run."""

    data: DataFacts
    variant: Variant
    seed: int
    train: TrainSettings
    n_steps_each: int
    step_size: float
    reference: str
    n_selection: int
    n_final: int
    n_dump: int

    @property
    def name(self) -> str:
        """dataset/variant/seed, as ``--only`` matches it and the tables show it."""
        return f"{self.data.name}/{self.variant.slug}/seed{self.seed}"

    @property
    def score_evaluations(self) -> int:
        """Network evaluations per sample, with the denoising step."""
        return self.train.n_levels * self.n_steps_each + 1

    def train_stage(self) -> Stage:
        """Training: shared by the cells that differ in Technique 5 only."""
        return self._train_stage

    @cached_property
    def _train_stage(self) -> Stage:
        # Kept with its digest, which every job and every later stage of the cell asks for.
        return Stage("train", _values(self.train) | {"data": self.data.fingerprint})

    def sample_stages(self, iteration: int, *, final: bool) -> list[Stage]:
        """Trajectories from a snapshot: the selection's samples and, for the full number, the rest.

        The final set begins with the selection's samples, so no trajectory is run twice.
        """
        bounds = [(0, self.n_selection)]
        if final and self.n_final > self.n_selection:
            bounds.append((self.n_selection, self.n_final))
        shared: dict[str, Any] = {
            "weights": self.variant.weights,
            "iteration": iteration,
            "n_steps_each": self.n_steps_each,
            "step_size": self.step_size,
            "seed": self.seed,
            "precision": self.train.precision,
            "shape": [self.data.channels, self.data.image_size, self.data.image_size],
        }
        train = (self.train_stage(),)
        return [Stage("sample", shared | {"start": a, "stop": b}, train) for a, b in bounds]

    def distance_stage(self, iteration: int, *, denoise: bool, final: bool) -> Stage:
        """The Fréchet distance of samples from one snapshot."""
        space = {
            "extractor": self.data.extractor,
            "extractor_fingerprint": self.data.extractor_fingerprint,
        }
        features = tuple(
            Stage("features", space | {"denoise": denoise}, (sample,))
            for sample in self.sample_stages(iteration, final=final)
        )
        return Stage("distance", {}, (self.reference_stage(), *features))

    def reference_stage(self) -> Stage:
        """Feature statistics of the real images."""
        return _reference_stage(self.data, self.reference)

    def baseline_stage(self) -> Stage:
        """Distances of noise, of a Gaussian fitted to the pixels and of held-out real images."""
        return _baseline_stage(self.data, self.reference, self.n_final)

    def with_seed(self, seed: int) -> "Cell":
        """Return the same cell with another seed."""
        train = dataclasses.replace(self.train, seed=seed)
        return dataclasses.replace(self, seed=seed, train=train)

    def to_json(self) -> dict[str, Any]:
        """Return the cell as JSON values; :func:`cell_from_json` reads them back."""
        parts = {name: _values(getattr(self, name)) for name in ("data", "variant", "train")}
        return _values(self) | parts


def _values(record: Any) -> dict[str, Any]:
    """Return a dataclass's fields as they are: ``asdict`` copies deeply, at ten times the price."""
    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}


# Stages of a dataset and feature space, few in any grid, however many cells share them.
@lru_cache(maxsize=64)
def _reference_stage(data: DataFacts, split: str) -> Stage:
    return Stage(
        "reference",
        {
            "data": data.fingerprint,
            "split": split,
            "extractor": data.extractor,
            "extractor_fingerprint": data.extractor_fingerprint,
        },
    )


@lru_cache(maxsize=64)
def _baseline_stage(data: DataFacts, split: str, n: int) -> Stage:
    settings = {"data": data.fingerprint, "n": n}
    return Stage("baseline", settings, (_reference_stage(data, split),))


def cell_from_json(record: dict[str, Any]) -> Cell:
    """Return the cell that :meth:`Cell.to_json` gave; raises TypeError or ValueError where bad."""
    return Cell(
        **record
        | {
            "data": DataFacts(**record["data"]),
            "variant": Variant(**record["variant"]),
            "train": TrainSettings(**record["train"]),
        }
    )


def resolve(settings: Settings, variant: Variant, data: DataFacts, seed: int) -> Cell:
    """Return the cell that these settings mean for a variant on a dataset.

    Derived settings follow the variant's groups: (1,2,4) gives ladder and step size by Techniques
    say; (3) gives network, learning rate (App. B.1) and dequantisation (as the authors trained
    each network); (5) the weights that are sampled. Raises ValueError for a value out of range.
    """
    row = None if settings.preset is None else _row(settings.preset, variant)
    ladder = _computed_ladder(settings, data, row) if variant.noise_scales else _NCSN_LADDER
    check_step_size(ladder.step_size, ladder.sigma_end)
    architecture = settings.architecture or architecture_for(data.image_size)
    check_image_size(architecture, data.image_size)
    train = TrainSettings(
        architecture=architecture,
        width=settings.width,
        conditional=not variant.conditioning,
        sigma_begin=ladder.sigma_begin,
        sigma_end=ladder.sigma_end,
        n_levels=ladder.n_levels,
        iterations=_first(settings.iterations, row and row.iterations, 300_000),
        batch_size=_first(settings.batch_size, row and row.batch_size, 128),
        learning_rate=_first(settings.learning_rate, 1e-4 if variant.conditioning else 1e-3),
        adam_eps=_first(settings.adam_eps, row and row.adam_eps, 1e-8),
        amsgrad=settings.amsgrad,
        ema_momentum=settings.ema_momentum,
        flip=data.flip if settings.flip is None else settings.flip,
        dequantisation=settings.dequantisation or ("none" if variant.conditioning else "uniform"),
        precision=settings.precision,
        snapshot_interval=settings.snapshot_interval,
        test_interval=settings.test_interval,
        seed=seed,
    )
    return Cell(
        data=data,
        variant=variant,
        seed=seed,
        train=train,
        n_steps_each=ladder.n_steps_each,
        step_size=ladder.step_size,
        reference=settings.reference,
        n_selection=settings.n_selection,
        n_final=settings.n_final,
        n_dump=settings.n_dump,
    )


@dataclass(frozen=True, kw_only=True)
class _Ladder:
    sigma_begin: float
    sigma_end: float
    n_levels: int
    n_steps_each: int
    step_size: float


def _ladder_of(row: Published) -> _Ladder:
    return _Ladder(
        sigma_begin=row.sigma_begin,
        sigma_end=row.sigma_end,
        n_levels=row.n_levels,
        n_steps_each=row.n_steps_each,
        step_size=row.epsilon,
    )


#: The same for every dataset (Table 4).
_NCSN_LADDER = _ladder_of(published("NCSN", "cifar10"))


def _row(preset: str, variant: Variant) -> Published:
    """Return Table 4's row; a dataset without an NCSN row lends that of NCSNv2 for training."""
    if not variant.noise_scales and any((r.model, r.dataset) == ("NCSN", preset) for r in TABLE_4):
        return published("NCSN", preset)
    return published("NCSNv2", preset)


def _computed_ladder(settings: Settings, data: DataFacts, row: Published | None) -> _Ladder:
    chosen = (settings.sigma_begin, settings.n_levels, settings.n_steps_each)
    if row is not None and settings.step_size is None and chosen == (None, None, None):
        return _ladder_of(row)
    sigma_begin = _first(settings.sigma_begin, row and row.sigma_begin, data.max_distance)
    n_steps_each = _first(settings.n_steps_each, row and row.n_steps_each, 5)
    n_levels = _first(settings.n_levels, row and row.n_levels, 0)
    if n_levels == 0:
        gamma = noise_scale_ratio(data.dim, settings.coverage)
        n_levels = n_noise_scales(sigma_begin, settings.sigma_end, gamma)
    sigmas = geometric_sigmas(sigma_begin, settings.sigma_end, n_levels)
    step_size = settings.step_size
    if step_size is None:
        step_size = langevin_step_size(ladder_ratio(sigmas), settings.sigma_end, n_steps_each)
    return _Ladder(
        sigma_begin=sigma_begin,
        sigma_end=settings.sigma_end,
        n_levels=n_levels,
        n_steps_each=n_steps_each,
        step_size=step_size,
    )


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)
