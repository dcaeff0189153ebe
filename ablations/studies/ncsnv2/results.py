"""What a grid of runs has produced so far: the contract between collection and the report."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from ablations.engine.frames import cast, make_frame
from ablations.studies.ncsnv2.settings import TRIED_SETTINGS

#: What is measured beside the distance; the last two say what n does to the distance itself.
METRICS = (
    *("IS", "KID", "precision", "recall", "f_score", "density", "coverage"),
    *("interval", "infinite n"),
)

# Column name -> pandas dtype. Counts are nullable ("Int64"): a paper's row or a cell that has not
# run yet has none, and a float NaN would turn every count of the column into "1000.0". Texts are
# nullable too ("string"): older pandas casts a missing "str" to the word "nan".
CELL_COLUMNS: dict[str, str] = {
    "dataset": "string",
    "variant": "string",
    "base": "string",  # the variant, whatever sets a row of it apart
    "row": "string",  # what sets it apart
    "sampler": "string",
    "slug": "string",
    "techniques": "string",
    "training": "string",
    "seed": "Int64",
    "weights": "string",
    "average": "string",  # the momentum or profile of averaged weights
    "average_width": "float64",  # of the iterations that they are of, relative; 0 of raw weights
    "status": "string",
    "message": "string",
}
DISTANCE_COLUMNS: dict[str, str] = {
    "dataset": "string",
    "variant": "string",
    "seed": "Int64",
    "weights": "string",
    "denoise": "bool",
    "iteration": "Int64",
    "purpose": "string",
    "n": "Int64",
    "n_reference": "Int64",
    "reference": "string",
    "feature_space": "string",
    "label": "string",
    "distance": "float64",
}
QUALITY_COLUMNS: dict[str, str] = {
    "dataset": "string",
    "variant": "string",
    "seed": "Int64",
    "weights": "string",
    "denoise": "bool",
    "iteration": "Int64",
    "metric": "string",
    "label": "string",
    "value": "float64",
    "std": "float64",
    "low": "float64",
    "high": "float64",
    "n": "Int64",
    "n_reference": "Int64",
    "reference": "string",
    "feature_space": "string",
    "note": "string",
}
EXTRAPOLATION_COLUMNS: dict[str, str] = {
    "dataset": "string",
    "variant": "string",
    "seed": "Int64",
    "weights": "string",
    "denoise": "bool",
    "iteration": "Int64",
    "label": "string",
    "n": "Int64",
    "distance": "float64",
    "slope": "float64",
    "intercept": "float64",
    "standard_error": "float64",
}
REFERENCE_COLUMNS: dict[str, str] = {
    "dataset": "string",
    "name": "string",
    "label": "string",
    "n": "Int64",
    "n_reference": "Int64",
    "distance": "float64",
}
LOSS_COLUMNS: dict[str, str] = {
    "dataset": "string",
    "seed": "Int64",
    "training": "string",
    "variants": "string",
    "objective": "string",
    "iteration": "Int64",
    "split": "string",
    "loss": "float64",
}
HELD_OUT_COLUMNS: dict[str, str] = {
    "dataset": "string",
    "seed": "Int64",
    "training": "string",
    "variants": "string",
    "objective": "string",
    "weights": "string",
    "iteration": "Int64",
    "n": "Int64",
    "draws": "Int64",
    "train": "float64",
    "train_error": "float64",
    "test": "float64",
    "test_error": "float64",
    "gap": "float64",
    "gap_error": "float64",
}
HYPERPARAMETER_COLUMNS: dict[str, str] = {
    "dataset": "string",
    "variant": "string",
    "source": "string",
    "sigma_1": "float64",
    "L": "Int64",
    "T": "Int64",
    "epsilon": "float64",
    "step_rule": "string",
    "batch_size": "Int64",
    "iterations": "Int64",
    "learning_rate": "float64",
    "ema_momentum": "float64",
    "note": "string",
}
#: The settings in which rows of a grid differ, and what each row has of them.
APART_COLUMNS: dict[str, str] = {
    "dataset": "string",
    "variant": "string",
    "setting": "string",
    "value": "string",
    "given": "bool",  # whether the row itself sets it
}
SETTING_COLUMNS: dict[str, str] = {
    "dataset": "string",
    "variant": "string",
    "setting": "string",
    "value": "string",
}
TIMING_COLUMNS: dict[str, str] = {
    "dataset": "string",
    "variant": "string",
    "seed": "Int64",
    "source": "string",
    "device": "string",
    "training_s": "float64",
    "sampling_s": "float64",
    "compile_s": "float64",
    "n_sampled": "Int64",
    "score_evaluations_per_sample": "Int64",
    "images_per_s": "float64",
    "training_peak_bytes": "Int64",
    "sampling_peak_bytes": "Int64",
}
RUN_KEYS = (
    "grid",
    "budget",
    "datasets",
    "complete",
    "software",
    "code",
    "codes",
    "outdated",
    "hardware",
    "n_cells",
    "n_done",
)

#: The frames of results and their columns.
FRAMES = {
    "cells": CELL_COLUMNS,
    "distances": DISTANCE_COLUMNS,
    "qualities": QUALITY_COLUMNS,
    "extrapolations": EXTRAPOLATION_COLUMNS,
    "references": REFERENCE_COLUMNS,
    "losses": LOSS_COLUMNS,
    "held_out_losses": HELD_OUT_COLUMNS,
    "hyperparameters": HYPERPARAMETER_COLUMNS,
    "apart": APART_COLUMNS,
    "settings": SETTING_COLUMNS,
    "timings": TIMING_COLUMNS,
}
_ALLOWED = {
    ("cells", "weights"): {"raw", "EMA"},
    ("cells", "status"): {"done", "running", "planned", "failed", "diverged"},
    ("distances", "weights"): {"raw", "EMA"},
    ("distances", "purpose"): {"selection", "final"},
    ("distances", "reference"): {"train", "test"},
    ("qualities", "weights"): {"raw", "EMA"},
    ("qualities", "metric"): set(METRICS),
    ("losses", "split"): {"train"},
    ("held_out_losses", "weights"): {"raw", "EMA"},
}


@dataclass(frozen=True, kw_only=True)
class SampleSet:
    """Images from one snapshot, `path` a .npy file of uint8.

    Samples are (N, C, H, W), the first of the indices 0, 1, …; `selected` says whether it is the
    snapshot that was chosen by its distance, `last` whether it is the end of training (of few
    iterations it may be both). Interpolations are (pairs, N + 2, C, H, W).
    """

    dataset: str
    variant: str
    seed: int
    weights: str
    denoise: bool
    iteration: int
    path: Path
    selected: bool = True
    last: bool = False


@dataclass(frozen=True, kw_only=True)
class NeighbourSet:
    """The nearest training images of samples of one snapshot, and of held-out images.

    `snapshot` is "selected", with its final samples, or "last", with those that its selection took.
    `path` is an .npz file with, for "fake" and "held_out", ``…_train_index`` (n, k) into the
    training images, ``…_distance`` (n, k) and ``…_flipped`` (n, k), nearest first; `samples` are
    the files whose images, one after another, are the fakes.
    """

    dataset: str
    variant: str
    seed: int
    weights: str
    denoise: bool
    iteration: int
    snapshot: str
    feature_space: str
    n_searched: int
    flip: bool  # mirror images were searched for too
    path: Path
    samples: tuple[Path, ...]


@dataclass(frozen=True, kw_only=True)
class Results:
    """Everything the report shows, as collected from the files of a finished or running grid.

    `run` has the keys RUN_KEYS: `code` is the code's version that collects, `codes` those that made
    the results, `outdated` says which of them are older than their own code. `losses` are of the
    batches trained on, `held_out_losses` of snapshots on training and on test images.
    Each frame has the columns of its constant above, is cast to their types, and may have no rows.
    `samples`, `real` (training images) and `held_out` (test images) name .npy files of uint8
    images, shape (N, C, H, W); `interpolations` and `neighbours` are there where they were made.
    Raises ValueError when a key or column is missing, a value has not its column's type, or a word
    is not one agreed on.
    """

    run: dict[str, Any]
    cells: pd.DataFrame
    distances: pd.DataFrame
    qualities: pd.DataFrame
    extrapolations: pd.DataFrame
    references: pd.DataFrame
    losses: pd.DataFrame
    held_out_losses: pd.DataFrame
    hyperparameters: pd.DataFrame
    apart: pd.DataFrame
    settings: pd.DataFrame
    timings: pd.DataFrame
    samples: list[SampleSet] = field(default_factory=list)
    real: dict[str, Path] = field(default_factory=dict)
    held_out: dict[str, Path] = field(default_factory=dict)
    interpolations: list[SampleSet] = field(default_factory=list)
    neighbours: list[NeighbourSet] = field(default_factory=list)

    def __post_init__(self) -> None:
        absent = [key for key in RUN_KEYS if key not in self.run]
        if absent:
            raise ValueError(f"run: missing {', '.join(absent)}; needed: {', '.join(RUN_KEYS)}")
        for name, columns in FRAMES.items():
            absent = [column for column in columns if column not in getattr(self, name).columns]
            if absent:
                raise ValueError(
                    f"{name}: missing column {', '.join(absent)}; needed: {', '.join(columns)}"
                )
            object.__setattr__(self, name, cast(name, getattr(self, name), columns))
        for (name, column), allowed in _ALLOWED.items():
            words = set(getattr(self, name)[column].dropna().unique())
            if column == "weights":
                # An average has its own words behind: "EMA power:0.1".
                words = {word.partition(" ")[0] for word in words}
            wrong = words - allowed
            if wrong:
                raise ValueError(
                    f"{name}.{column}: {sorted(wrong)[0]!r} is not one of "
                    f"{', '.join(sorted(allowed))}"
                )

    @property
    def ablation(self) -> Results:
        """The same without rows that only try L x T or a step size ("NCSNv2, 25×1").

        All of it where nothing else is there.
        """
        given = self.apart[self.apart["given"]]
        tried = set(given[given["setting"].isin(TRIED_SETTINGS)]["variant"])
        own = set(self.cells["variant"]) - tried
        if not own:
            return self
        frames = {
            name: frame[frame["variant"].isin(own) | _quoted(frame)]
            for name in FRAMES
            if "variant" in (frame := getattr(self, name)).columns
        }
        samples = [sample for sample in self.samples if sample.variant in own]
        return replace(self, samples=samples, **frames)


def _quoted(frame: pd.DataFrame) -> pd.Series | bool:
    return frame["source"] != "this run" if "source" in frame.columns else False


def empty_results(run: dict[str, Any]) -> Results:
    """Results of a grid of which nothing is known yet but its `run` description."""
    return Results(run=run, **{name: make_frame(columns) for name, columns in FRAMES.items()})
