"""Cells: a variant on a dataset with a seed, every setting resolved, and the stages they share."""

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

from ablations.engine.naming import file_name
from ablations.engine.plugins import plugins_behind
from ablations.engine.stages import Stage
from ablations.pipeline.data import DataFacts
from ablations.pipeline.variants import Variant
from scorekit.models.score_network import ARCHITECTURES
from scorekit.sampling.registry import sampler_evaluations
from scorekit.sampling.trajectory import Start
from scorekit.techniques.ema_profiles import parse_ema
from scorekit.techniques.ladder import Ladder
from scorekit.training.settings import TrainSettings, identity

#: Pairs of samples that are interpolated, and images between the two of a pair (App. B.2).
N_PAIRS, N_BETWEEN = 6, 8
#: Training images shown beside each sample, nearest first.
N_NEIGHBOURS = 8
#: The most real images whose features are taken, and in memory, at a time: a random block of them
#: stands for a larger split in a distance, and neighbours are searched for block by block.
MAX_REFERENCE = 50_000

#: Settings of sampling, and their values in the paper.
_PLAIN_SAMPLING = {"schedule": "geometric", "start": "uniform", "snr": None, "churn": 0.0}
#: What a plugin may give that changes a training, and what changes a sampling besides. Of a step
#: size the number counts, of data and extractors their fingerprints.
_TRAINED_BY = ("architecture", "objective", "noise_levels", "loss_weights", "conditioning", "ema")
_SAMPLED_BY = ("sampler", "schedule")
#: The modules that make stages (ablations.engine.provenance).
_TRAINING = ("scorekit.training.networks", "scorekit.training.trainer")
_READING = ("scorekit.models.network_files",)
_SAMPLING = ("ablations.pipeline.sampling",)
_LOSS = ("ablations.pipeline.held_out",)
_MEASURING = ("ablations.pipeline.measuring",)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One row of the ablation, resolved: nothing in it depends on where or how it is run."""

    data: DataFacts
    variant: Variant
    seed: int
    train: TrainSettings
    sampler: str
    sampling_levels: int  # L when sampling; the training's, unless the row sets another
    n_steps_each: int
    step_size: float
    step_rule: str  # what gave it: one of STEP_RULES, "snr", "Table 4", "given", or "none"
    reference: str
    n_selection: int
    n_final: int
    n_loss: int
    n_dump: int
    schedule: str = "geometric"
    start: Start = "uniform"
    snr: float | None = None
    churn: float = 0.0
    ema: str | None = None  # the average that is sampled, where not that of ema_momentum
    network_sha256: str = ""  # SHA-256 of the file whose network it samples, where it trains none
    network_path: str = field(default="", compare=False)
    row: str = ""  # what sets it apart from its variant's own row: "consistent", "25×1", "width=32"
    title: str = ""  # what its row is called, where somebody named it
    # The settings that its row sets apart from others, as given: no part of what it is.
    own: tuple[tuple[str, Any], ...] = field(default=(), compare=False)
    # Kind, name and digest of what a user's plugins gave it: see with_plugins.
    plugins: tuple[tuple[str, str, str], ...] = ()

    @property
    def label(self) -> str:
        """What tables call its row: the name it was given, or variant and row ("NCSNv2, 25×1")."""
        return self.title or self.variant.name + (f", {self.row}" if self.row else "")

    @property
    def slug(self) -> str:
        """The label for files and flags, in ASCII: ncsnv2, ncsnv2-25x1, ncsnv2-eps1e-05."""
        if self.title:
            row = file_name(self.title).lower()
        else:
            row = self.row.lower().replace("×", "x").replace("ε=", "eps").replace(", ", "-")
            row = row.replace("=", "-")
            row = re.sub(r"[^a-z0-9_.+-]", "", row)
        # See cell_file_name.
        return self.variant.slug + (f"-{row}".replace("-ncsn", "-.ncsn") if row else "")

    @property
    def name(self) -> str:
        """dataset/row/seed, as ``--only`` matches it and the tables show it."""
        return f"{self.data.name}/{self.slug}/seed{self.seed}"

    @property
    def score_evaluations(self) -> int:
        """Network evaluations per sample, with the denoising step."""
        return sampler_evaluations(self.sampler, self.sampling_levels, self.n_steps_each)

    @property
    def weights(self) -> str:
        """The weights that are sampled from: "raw", "ema", or the name of another average."""
        return self.ema if self.ema is not None and self.variant.ema else self.variant.weights

    @property
    def ladder(self) -> Ladder:
        """The ladder that samples descend: the training's ends, L, T and epsilon of the row."""
        return Ladder(
            sigma_begin=self.train.sigma_begin,
            sigma_end=self.train.sigma_end,
            n_levels=self.sampling_levels,
            n_steps_each=self.n_steps_each,
            step_size=self.step_size,
            step_rule=self.step_rule,
            schedule=self.schedule,
            snr=self.snr,
        )

    def train_stage(self) -> Stage:
        """Training: shared by the cells that differ in Technique 5 only."""
        return self._train_stage

    @cached_property
    def _train_stage(self) -> Stage:
        # Kept with its digest, which every job and every later stage of the cell asks for.
        if self.network_sha256:
            settings = {"sha256": self.network_sha256, "iteration": self.train.iterations}
            return Stage("checkpoint", settings, code=_READING)
        settings = identity(self.train) | {"data": self.data.fingerprint}
        # The first revision is left out, so that a change of one network renames no other's.
        if (revision := ARCHITECTURES[self.train.architecture].revision) > 1:
            settings["architecture_revision"] = revision
        return Stage("train", settings | self._of_plugins(*_TRAINED_BY), code=_TRAINING)

    def sample_stages(self, iteration: int, *, final: bool) -> list[Stage]:
        """Trajectories from a snapshot: the selection's samples and, for the full number, the rest.

        The final set begins with the selection's samples, so no trajectory is run twice.
        """
        bounds = [(0, self.n_selection)]
        if final and self.n_final > self.n_selection:
            bounds.append((self.n_selection, self.n_final))
        return [_sample_stage(self, iteration, start, stop) for start, stop in bounds]

    def interpolation_stage(self, iteration: int) -> Stage:
        """Pairs of samples and what lies between them (App. B.2); with both denoise settings."""
        settings = {"pairs": N_PAIRS, "between": N_BETWEEN, "mix_seed": (self.seed + 2**31) % 2**32}
        return Stage(
            "interpolate", self._sampling(iteration) | settings, (self.train_stage(),), _SAMPLING
        )

    def _sampling(self, iteration: int) -> dict[str, Any]:
        # What came later is left out where it changes nothing, so that digests stay what they were.
        later = {
            # A stage's own "start" is its first index.
            {"start": "initial"}.get(key, key): getattr(self, key)
            for key, plain in _PLAIN_SAMPLING.items()
            if getattr(self, key) != plain
        }
        given = later | self._of_plugins(*_SAMPLED_BY)
        return given | {
            "weights": self.weights,
            "iteration": iteration,
            "sampler": self.sampler,
            "n_levels": self.sampling_levels,
            "n_steps_each": self.n_steps_each,
            "step_size": self.step_size,
            "seed": self.seed,
            "precision": self.train.precision,
            "shape": [self.data.channels, self.data.image_size, self.data.image_size],
        }

    def _of_plugins(self, *kinds: str) -> dict[str, Any]:
        """Return what stages have of plugins among their settings: nothing where there are none."""
        found = {f"{kind}={name}": digest for kind, name, digest in self.plugins if kind in kinds}
        return {"plugins": found} if found else {}

    def loss_stage(self, iteration: int) -> Stage:
        """The loss of a snapshot on training and test images, equally many of each."""
        n = min(self.n_loss, self.data.n_train, self.data.n_test)
        settings = {
            "weights": self.weights,
            "iteration": iteration,
            "n": n,
            # A small split is gone through several times, each time with other noise.
            "draws": -(-self.n_loss // n),
        }
        return Stage("loss", settings, (self.train_stage(),), _LOSS)

    def distance_stage(self, iteration: int, *, denoise: bool, final: bool) -> Stage:
        """The Fréchet distance of samples from one snapshot."""
        return _measured_stage(self, "distance", iteration, denoise, final)

    def quality_stage(self, iteration: int, *, denoise: bool) -> Stage:
        """All other metrics of the final samples, and the uncertainty of their distance."""
        return _measured_stage(self, "quality", iteration, denoise, True)

    def neighbour_stage(self, iteration: int, *, denoise: bool, final: bool) -> Stage:
        """The nearest of all training images of a snapshot's samples, and of held-out images."""
        features = self._feature_stages(iteration, denoise=denoise, final=final)
        settings = {"neighbours": N_NEIGHBOURS, "flip": self.data.flip, "n_held_out": self.n_final}
        return Stage("neighbours", settings, (*self.training_blocks(), *features), _MEASURING)

    def training_blocks(self) -> tuple[Stage, ...]:
        """Features of all training images, in blocks; the first are those of a distance."""
        n = -(-self.data.n_train // MAX_REFERENCE)
        return tuple(_reference_stage(self.data, "train", block) for block in range(n))

    def _feature_stages(self, iteration: int, *, denoise: bool, final: bool) -> tuple[Stage, ...]:
        return tuple(
            _feature_stage(self.data, sample, denoise)
            for sample in self.sample_stages(iteration, final=final)
        )

    def reference_stage(self) -> Stage:
        """Features and statistics of the real images."""
        return _reference_stage(self.data, self.reference)

    def baseline_stage(self) -> Stage:
        """Distances of noise, of a Gaussian fitted to the pixels and of held-out real images."""
        return _baseline_stage(self.data, self.reference, self.n_final)

    def setting(self, key: str) -> Any:
        """Return what a setting came to; where a cell has no such field, what its row gives."""
        for part in (self, self.train):
            if hasattr(part, key):
                return getattr(part, key)
        return dict(self.own).get(key)

    def with_seed(self, seed: int) -> "Cell":
        """Return the same cell with another seed."""
        train = dataclasses.replace(self.train, seed=seed)
        return dataclasses.replace(self, seed=seed, train=train)

    def to_json(self) -> dict[str, Any]:
        """Return the cell as JSON values; :func:`cell_from_json` reads them back."""
        parts = {name: _values(getattr(self, name)) for name in ("data", "variant", "train")}
        return _values(self) | parts


def with_plugins(cell: Cell) -> Cell:
    """Return a cell with the digests of the loaded plugins that registered what it names."""
    train = cell.train
    names: dict[str, list[str | None]] = {
        "dataset": [cell.data.name.partition(":")[0]],
        "extractor": [cell.data.extractor],
        "architecture": [train.architecture],
        "objective": [train.objective],
        "noise_levels": [train.noise_levels],
        "loss_weights": [train.loss_weights],
        "conditioning": [train.conditioning],
        "ema": [parse_ema(name).kind for name in train.ema_profiles],
        "sampler": [cell.sampler],
        "schedule": [cell.schedule],
        "step_size_rule": [cell.step_rule],
    }
    found = plugins_behind(names)
    return cell if found == cell.plugins else dataclasses.replace(cell, plugins=found)


def image_sizes(cells: Iterable[Cell]) -> list[int]:
    """Return the sides of the images that cells are of, each once, the smallest first."""
    return sorted({cell.data.image_size for cell in cells})


def _values(record: Any) -> dict[str, Any]:
    """Return a dataclass's fields as they are: ``asdict`` copies deeply, at ten times the price."""
    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}


# Asked for again and again while a cell is looked at; kept for about so long, with their digests.
@lru_cache(maxsize=256)
def _sample_stage(cell: Cell, iteration: int, start: int, stop: int) -> Stage:
    settings = cell._sampling(iteration) | {"start": start, "stop": stop}
    return Stage("sample", settings, (cell.train_stage(),), _SAMPLING)


@lru_cache(maxsize=256)
def _feature_stage(data: DataFacts, sample: Stage, denoise: bool) -> Stage:
    space = {"extractor": data.extractor, "extractor_fingerprint": data.extractor_fingerprint}
    return Stage("features", space | {"denoise": denoise}, (sample,), _MEASURING)


@lru_cache(maxsize=256)
def _measured_stage(cell: Cell, kind: str, iteration: int, denoise: bool, final: bool) -> Stage:
    features = cell._feature_stages(iteration, denoise=denoise, final=final)
    return Stage(kind, {}, (cell.reference_stage(), *features), _MEASURING)


# Stages of a dataset and feature space, few in any grid, however many cells share them.
@lru_cache(maxsize=64)
def _reference_stage(data: DataFacts, split: str, block: int = 0) -> Stage:
    settings: dict[str, Any] = {
        "data": data.fingerprint,
        "split": split,
        "extractor": data.extractor,
        "extractor_fingerprint": data.extractor_fingerprint,
    }
    return Stage("reference", settings | ({"block": block} if block else {}), code=_MEASURING)


@lru_cache(maxsize=64)
def _baseline_stage(data: DataFacts, split: str, n: int) -> Stage:
    settings = {"data": data.fingerprint, "n": n}
    return Stage("baseline", settings, (_reference_stage(data, split),), _MEASURING)


def cell_from_json(record: dict[str, Any]) -> Cell:
    """Return the cell that :meth:`Cell.to_json` gave; raises TypeError or ValueError where bad."""
    return Cell(
        **record
        | {
            "data": DataFacts(**record["data"]),
            "variant": Variant(**record["variant"]),
            "train": TrainSettings(**record["train"]),
            "own": tuple((key, value) for key, value in record.get("own", ())),
            "plugins": tuple(map(tuple, record.get("plugins", ()))),
        }
    )


def cell_file_name(cell: Cell) -> str:
    """Return what the files of a cell are called: data-row-seed, another for each cell's name."""
    # No slug holds "-ncsn" inside it, so that its beginning is found whatever the data's name is.
    return f"{file_name(cell.data.name)}-{cell.slug}-seed{cell.seed}"
