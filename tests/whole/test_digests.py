"""Which results a field changes: every field of every settings class, one at a time.

A field that changes a result must change the digest of that result and of all that is made from it,
or an old result is taken for a new one; any other field must change none, or work is done again.
Each field's effect is declared here, and one without a declaration fails.
"""

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ablations.engine.context import Context
from ablations.engine.settings import apply_overrides
from ablations.engine.stages import Stage
from ablations.pipeline.cell import Cell
from ablations.pipeline.data import DataFacts
from ablations.pipeline.variants import NCSNV2, Variant
from ablations.studies.finite_difference.budgets import Effort
from ablations.studies.finite_difference.study import PARTS
from ablations.studies.finite_difference.trials import build_trials
from ablations.studies.ncsnv2.resolution import resolve
from ablations.studies.ncsnv2.settings import TRIED_SETTINGS, Execution, Profile, Settings
from scorekit.runtime.distributed import World
from scorekit.training.settings import TrainSettings

DATA = DataFacts(
    name="cifar",
    store="cifar",
    fingerprint="f" * 64,
    channels=3,
    image_size=32,
    n_train=50_000,
    n_test=10_000,
    flip=True,
    max_distance=50.0,
    extractor="patches-cnn",
    extractor_fingerprint="e" * 64,
)
SETTINGS = Settings()
CELL = resolve(SETTINGS, NCSNV2, DATA, seed=0)
#: Only these objectives have an fd_epsilon.
DIFFERENCES = {"fd_epsilon": Settings(objective="fd_ssm_vr")}

NOTHING: set[str] = set()
FINAL = {"final distance", "quality", "neighbours"}
MEASURED = {"distance", "features"} | FINAL
DRAWN = {"sample", "further samples", "interpolation"} | MEASURED
TRAINED = {"train", "loss"} | DRAWN
REAL = {"reference", "baseline"}

#: By class and field: another value, and what is then another result.
EFFECTS: dict[type, dict[str, tuple[Any, set[str]]]] = {
    TrainSettings: {
        "architecture": ("96-128", TRAINED),
        "width": (64, TRAINED),
        "conditional": (True, TRAINED),
        "sigma_begin": (60.0, TRAINED),
        "sigma_end": (0.02, TRAINED),
        "n_levels": (7, TRAINED),
        "iterations": (7, TRAINED),
        "batch_size": (7, TRAINED),
        "learning_rate": (7e-4, TRAINED),
        "adam_eps": (1e-3, TRAINED),
        "amsgrad": (True, TRAINED),
        "ema_momentum": (0.5, TRAINED),
        "flip": (False, TRAINED),
        "dequantisation": ("uniform", TRAINED),
        "objective": ("ssm_vr", TRAINED),
        "fd_epsilon": (0.1, TRAINED),
        "projection": ("sphere", TRAINED),
        "ema_profiles": (("power:0.1",), TRAINED),
        "noise_levels": ("log_uniform", TRAINED),
        "loss_weights": ("min_snr", TRAINED),
        "conditioning": ("none", TRAINED),
        "precision": ("tf32", TRAINED),
        "snapshot_interval": (700, TRAINED),
        "test_interval": (7, TRAINED),
        "seed": (7, TRAINED),
    },
    DataFacts: {
        "name": ("other", NOTHING),
        "store": ("other", NOTHING),
        "fingerprint": ("0" * 64, TRAINED | REAL),
        # Networks and samples have the shape of the images, of which the fingerprint tells too.
        "channels": (1, DRAWN),
        "image_size": (64, DRAWN),
        "n_train": (7, {"loss"}),  # whose images are as many of each split
        "n_test": (7, {"loss"}),
        "flip": (False, {"neighbours"}),  # training has a setting of its own
        "max_distance": (7.0, NOTHING),  # which becomes sigma_begin
        "extractor": ("digits-cnn", MEASURED | REAL),
        "extractor_fingerprint": ("0" * 64, MEASURED | REAL),
    },
    Variant: {
        # What these two groups mean is in the settings of training and sampling.
        "noise_scales": (False, NOTHING),
        "conditioning": (False, NOTHING),
        "ema": (False, DRAWN | {"loss"}),
    },
    Cell: {
        "seed": (7, DRAWN),
        "sampler": ("consistent", DRAWN),
        "sampling_levels": (7, DRAWN),
        "n_steps_each": (7, DRAWN),
        "step_size": (7e-6, DRAWN),
        "step_rule": ("another", NOTHING),  # a name of what gave the step size
        "reference": ("test", {"distance", "final distance", "quality"} | REAL),
        "n_selection": (70, DRAWN - {"interpolation"}),
        "n_final": (7000, {"further samples", "baseline"} | FINAL),
        "n_loss": (70, {"loss"}),
        "n_dump": (7, NOTHING),  # dumps have manifests of their own
        "row": ("7x7", NOTHING),
        "title": ("mine", NOTHING),
        "network_sha256": ("f" * 64, TRAINED),
        "network_path": ("elsewhere", NOTHING),  # whose content counts
        "plugins": ((("sampler", "mine", "f" * 16),), DRAWN),
        "schedule": ("rho", DRAWN),
        "start": ("gaussian", DRAWN),
        "snr": (0.2, DRAWN),
        "churn": (1.0, DRAWN),
        "ema": ("0.5", DRAWN | {"loss"}),
        "own": ((("width", 7),), NOTHING),  # which the other settings follow
    },
    Settings: {
        "preset": ("cifar10", TRAINED),
        "sigma_begin": (30.0, TRAINED),
        "sigma_end": (0.02, TRAINED),
        "n_levels": (100, TRAINED),
        "coverage": (0.6, TRAINED),
        "n_steps_each": (3, DRAWN),
        "step_size": (7e-6, DRAWN),
        "step_size_rule": ("steady_state", DRAWN),
        "sampler": ("consistent", DRAWN),
        "snr": (0.2, NOTHING),  # but for samplers and a rule that take it
        "churn": (1.0, NOTHING),  # but for Heun's
        "schedule": ("rho", DRAWN),
        "start": ("gaussian", DRAWN),
        "ema": ("0.5", TRAINED),
        "noise_levels": ("log_uniform", TRAINED),
        "loss_weights": ("min_snr", TRAINED),
        "conditioning": ("edm", TRAINED),
        "sampling_levels": (50, DRAWN),
        "architecture": ("96-128", TRAINED),
        "width": (64, TRAINED),
        "iterations": (7, TRAINED),
        "batch_size": (7, TRAINED),
        "learning_rate": (7e-4, TRAINED),
        "adam_eps": (1e-3, TRAINED),
        "amsgrad": (True, TRAINED),
        "ema_momentum": (0.5, TRAINED),
        "flip": (False, TRAINED),
        "dequantisation": ("uniform", TRAINED),
        "objective": ("ssm_vr", TRAINED),
        "fd_epsilon": (0.1, TRAINED),
        "precision": ("tf32", TRAINED),
        "snapshot_interval": (700, TRAINED),
        "test_interval": (7, TRAINED),
        "n_selection": (70, DRAWN - {"interpolation"}),
        "n_final": (7000, {"further samples", "baseline"} | FINAL),
        "n_loss": (70, {"loss"}),
        "score_evaluations": (500, DRAWN),
        "n_dump": (7, NOTHING),
        "reference": ("test", {"distance", "final distance", "quality"} | REAL),
        "image_size": (64, NOTHING),  # of the data, whose facts the cell is made from
    },
}
#: The fields of a cell that are settings of their own.
PARTS_OF_A_CELL = {"data": DataFacts, "variant": Variant, "train": TrainSettings}


def digests(cell: Cell, iteration: int = 5000, *, denoise: bool = True) -> dict[str, Any]:
    """The names of all that is made of a cell."""
    first, further = cell.sample_stages(iteration, final=True)
    assert cell.sample_stages(iteration, final=False) == [first]
    distance = cell.distance_stage(iteration, denoise=denoise, final=False)
    stages = {
        "train": cell.train_stage(),
        "sample": first,
        "further samples": further,
        "interpolation": cell.interpolation_stage(iteration),
        "features": distance.needs[1],
        "distance": distance,
        "final distance": cell.distance_stage(iteration, denoise=denoise, final=True),
        "quality": cell.quality_stage(iteration, denoise=denoise),
        "neighbours": cell.neighbour_stage(iteration, denoise=denoise, final=True),
        "loss": cell.loss_stage(iteration),
        "reference": cell.reference_stage(),
        "baseline": cell.baseline_stage(),
    }
    return {name: stage.digest for name, stage in stages.items()}


def changed(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    assert len(set(one.values())) == len(one)
    return {name for name, digest in one.items() if other[name] != digest}


def one_field(kind: type, field: str, value: Any) -> tuple[Cell, Cell]:
    """A cell, and the same with one field of one of its classes replaced."""
    settings = DIFFERENCES.get(field, SETTINGS)
    cell = resolve(settings, NCSNV2, DATA, seed=0)
    if kind is Settings:
        return cell, resolve(apply_overrides(settings, {field: value}), NCSNV2, DATA, seed=0)
    for part, of in PARTS_OF_A_CELL.items():
        if kind is of:
            return cell, replace(cell, **{part: replace(getattr(cell, part), **{field: value})})
    return cell, replace(cell, **{field: value})


@pytest.mark.parametrize("kind", EFFECTS, ids=lambda kind: kind.__name__)
def test_every_field_has_a_declared_effect(kind):
    declared = set(EFFECTS[kind]) | (set(PARTS_OF_A_CELL) if kind is Cell else set())
    if kind is Settings:
        declared.add("checkpoint")  # which needs a file: tests/ablations/test_launch.py
    assert declared == {field.name for field in dataclasses.fields(kind)}


@pytest.mark.parametrize(
    ("kind", "field"),
    [(kind, field) for kind, fields in EFFECTS.items() for field in fields],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_field_changes_the_digests_of_what_it_changes_and_no_other(kind, field):
    value, effect = EFFECTS[kind][field]
    one, other = one_field(kind, field, value)
    assert changed(digests(one), digests(other)) == effect


def test_how_a_cell_is_run_is_no_part_of_it():
    run_otherwise = Profile(accumulation=7, compile=False, sampling_batch=7)
    for field in dataclasses.fields(Execution):
        assert getattr(run_otherwise, field.name) != field.default
    assert resolve(run_otherwise, NCSNV2, DATA, seed=0) == CELL
    without = {name for name, (_, effect) in EFFECTS[Settings].items() if effect == NOTHING}
    assert without == {"n_dump", "image_size", "snr", "churn"}
    for name in TRIED_SETTINGS:
        assert EFFECTS[Settings][name][1] >= DRAWN


def test_a_snapshot_and_the_denoising_step_are_named_too():
    assert changed(digests(CELL), digests(CELL, 10_000)) == DRAWN | {"loss"}
    assert changed(digests(CELL), digests(CELL, denoise=False)) == MEASURED


def test_all_that_is_made_of_a_stage_follows_its_name():
    """Two trainings of equal settings on different data share no name downstream."""
    stage = Stage("a", {"x": 1})
    for other in (Stage("b", {"x": 1}), Stage("a", {"x": 2}), Stage("a", {"x": 1}, (stage,))):
        assert other.digest != stage.digest
        for depth in range(3):
            one, two = stage, other
            for _ in range(depth + 1):
                one, two = Stage("made", {}, (one,)), Stage("made", {}, (two,))
            assert one.digest != two.digest


#: Where and how: none of these may reach a name.
EXECUTION = {
    "out": Path("elsewhere"),
    "data_root": Path("elsewhere"),
    "device": "cuda",
    "threads": 7,
    "rerun": True,
    "plugins": ("elsewhere.py",),
    "compile": False,
    "sampling_batch": 7,
    "extractor_weights": Path("w.pth"),  # whose content is the extractor's fingerprint
    "accumulation": 7,
    "world": World(rank=0, size=7),
}


def test_where_and_how_a_job_runs_reaches_no_name():
    assert set(EXECUTION) == {field.name for field in dataclasses.fields(Context)}
    context = Context(
        out=Path("o"), data_root=Path("d"), device="cpu", threads=1, compile=True, sampling_batch=2
    )
    for name, value in EXECUTION.items():
        other = replace(context, **{name: value})
        for stage in (CELL.train_stage(), CELL.reference_stage(), CELL.baseline_stage()):
            assert other.store.directory(stage).name == stage.digest
            assert context.store.directory(stage).name == stage.digest


#: By prefix of a budget's fields: the trials of the finite-difference grid that they change.
TRIALS = {
    "toy": {"toy"},
    "loss": {"loss"},
    "distance": {"distance"},
    "flow": {"flow"},
    "implicit": {"implicit"},
    "deep": {"deep"},
    "gradient": {"gradient"},
    "dkef": {"dkef"},
    "wine": {"dkef"},
    "cost": {"cost"},
    "compile": {"cost"},
}
#: Fields that reach further than their prefix says, or less far.
ELSEWHERE = {f"loss_{name}": {"loss", "deep"} for name in ("batch_size", "width", "blocks")}
ELSEWHERE |= {f"loss_{name}": {"loss", "deep"} for name in ("learning_rate", "held_out")}
ELSEWHERE["loss_sigma"] = {"loss", "deep", "gradient"}


def trials(effort: Effort) -> dict[str, set[str]]:
    made = build_trials(
        effort,
        PARTS,
        seeds=None,
        files={"parkinsons": "a" * 64, "redwine": "b" * 64},
        images={"digits": "c" * 64},
        place={"device": "cpu"},
    )
    found: dict[str, set[str]] = {}
    for trial in made:
        found.setdefault(trial.kind, set()).add(trial.stage.digest)
    return found


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Effort)])
def test_a_budget_of_trials_changes_the_digests_of_its_part(field):
    value = getattr(Effort(), field)
    other = (not value) if isinstance(value, bool) else value * 0.75
    if isinstance(value, int) and not isinstance(value, bool):
        other = value + 1
    before, after = trials(Effort()), trials(replace(Effort(), **{field: other}))
    changed = {kind for kind, digests in before.items() if after[kind] != digests}
    assert changed == ELSEWHERE.get(field, TRIALS[field.split("_")[0]])
