"""Made-up results for the report's tests: known numbers, plausible curves, small images."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ablations.engine.frames import make_frame
from ablations.engine.manifest import Manifest
from ablations.studies.finite_difference.results import TrialResult, TrialResults
from ablations.studies.finite_difference.trials import Trial
from ablations.studies.ncsnv2.results import (
    APART_COLUMNS,
    CELL_COLUMNS,
    DISTANCE_COLUMNS,
    EXTRAPOLATION_COLUMNS,
    HELD_OUT_COLUMNS,
    HYPERPARAMETER_COLUMNS,
    LOSS_COLUMNS,
    QUALITY_COLUMNS,
    REFERENCE_COLUMNS,
    SETTING_COLUMNS,
    TIMING_COLUMNS,
    Results,
    SampleSet,
    empty_results,
)

# Variant -> (slug, techniques, weights, distance it settles at).
VARIANTS = {
    "NCSN": ("ncsn", "", "raw", 41.0),
    "NCSN_5": ("ncsn_5", "5", "EMA", 30.0),
    "NCSN_1,2,4,5": ("ncsn_1245", "1,2,4,5", "EMA", 24.0),
    "NCSNv2": ("ncsnv2", "1,2,3,4,5", "EMA", 17.0),
}
TRAININGS = {
    "conditional, L=10": ("NCSN", "NCSN_5"),
    "conditional, L=58": ("NCSN_1,2,4,5",),
    "s(x)/σ, L=58": ("NCSNv2",),
}
SNAPSHOTS = (1000, 2000, 3000, 4000, 5000, 6000)
CHANNELS = {"digits": (1, 8), "cifar10-jpeg": (3, 32)}


def fake_run(**changes: Any) -> dict[str, Any]:
    """A run description; `changes` replace its entries."""
    run: dict[str, Any] = {
        "grid": "paper",
        "budget": "quick",
        "datasets": ["digits"],
        "complete": True,
        "software": {"python": "3.12.4", "torch": "2.11.0", "numpy": "2.4.6"},
        "code": "0123456789ab",
        "codes": ["0123456789ab"],
        "outdated": "",
        "hardware": "AMD EPYC, 2 cores",
        "n_cells": 4,
        "n_done": 4,
    }
    return run | changes


def empty() -> Results:
    """A grid that just began: not even its cells are known."""
    return empty_results(fake_run(complete=False, n_cells=0, n_done=0))


def final_distance(variant: str, seed: int, denoise: bool) -> float:
    """The final distance that the fake results give a cell."""
    return VARIANTS[variant][3] + 1.5 * seed + (0.0 if denoise else 6.25)


def complete(
    directory: Path, *, datasets: tuple[str, ...] = ("digits",), n_seeds: int = 1
) -> Results:
    """A finished grid over the paper's four variants; image files go to `directory`."""
    rng = np.random.default_rng(0)
    rows: dict[str, list[dict[str, Any]]] = {
        name: [] for name in ("cells", "distances", "references", "losses", "settings", "timings")
    }
    rows |= {"qualities": [], "extrapolations": [], "held_out": []}
    samples: list[SampleSet] = []
    real: dict[str, Path] = {}
    for dataset in datasets:
        channels, size = CHANNELS.get(dataset, (3, 16))
        real[dataset] = _images(directory / f"real{len(real)}.npy", rng, channels, size, 0.0)
        label = "FD[digits-cnn]" if dataset == "digits" else "FD[inception-v3-compat]"
        rows["references"] += _references(dataset, label)
        for variant, (slug, techniques, weights, level) in VARIANTS.items():
            key = {"dataset": dataset, "variant": variant}
            rows["settings"].append(_settings(key, slug))
            for seed in range(n_seeds):
                cell = key | {"seed": seed}
                rows["cells"].append(
                    cell
                    | {"base": variant, "row": "", "sampler": "annealed"}
                    | {"slug": slug, "techniques": techniques, "weights": weights, "status": "done"}
                    | {"training": next(t for t, of in TRAININGS.items() if variant in of)}
                )
                rows["timings"].append(_timing(cell))
                for denoise in (True, False):
                    measured = cell | {"weights": weights, "denoise": denoise, "label": label}
                    rows["distances"] += _distances(rng, measured, level)
                    rows["qualities"] += _qualities(measured, level)
                    rows["extrapolations"] += _extrapolation(measured, level)
                    path = directory / f"{len(samples)}.npy"
                    _images(path, rng, channels, size, level / 60)
                    samples.append(
                        SampleSet(
                            dataset=dataset,
                            variant=variant,
                            seed=seed,
                            weights=weights,
                            denoise=denoise,
                            iteration=5000,
                            path=path,
                        )
                    )
        for seed in range(n_seeds):
            for training, variants in TRAININGS.items():
                key = {"dataset": dataset, "seed": seed, "training": training}
                key |= {"variants": ", ".join(variants), "objective": "dsm"}
                rows["losses"] += _losses(rng, key)
                for weights in dict.fromkeys(VARIANTS[variant][2] for variant in variants):
                    rows["held_out"] += _held_out(rng, key | {"weights": weights})
    n_cells = len(rows["cells"])
    return Results(
        run=fake_run(datasets=list(datasets), n_cells=n_cells, n_done=n_cells),
        cells=make_frame(CELL_COLUMNS, rows["cells"]),
        distances=make_frame(DISTANCE_COLUMNS, rows["distances"]),
        qualities=make_frame(QUALITY_COLUMNS, rows["qualities"]),
        extrapolations=make_frame(EXTRAPOLATION_COLUMNS, rows["extrapolations"]),
        references=make_frame(REFERENCE_COLUMNS, rows["references"]),
        losses=make_frame(LOSS_COLUMNS, rows["losses"]),
        held_out_losses=make_frame(HELD_OUT_COLUMNS, rows["held_out"]),
        hyperparameters=make_frame(HYPERPARAMETER_COLUMNS, rows["settings"]),
        apart=make_frame(APART_COLUMNS),
        settings=make_frame(
            SETTING_COLUMNS,
            [
                {key: row[key] for key in ("dataset", "variant")}
                | {"setting": name, "value": value}
                for row in rows["settings"]
                for name, value in (("sigma_begin", str(row["sigma_1"])), ("objective", "dsm"))
            ],
        ),
        timings=make_frame(TIMING_COLUMNS, rows["timings"]),
        samples=samples,
        real=real,
    )


def partial(directory: Path) -> Results:
    """A grid under way: NCSN done, NCSN_5 running, NCSN_1,2,4,5 failed, NCSNv2 diverged."""
    whole = complete(directory)
    cells, distances = whole.cells.copy(), whole.distances
    cells["status"] = ["done", "running", "failed", "diverged"]
    cells["message"] = [None, None, "out of memory at batch 128", "loss NaN at iteration 3400"]
    keep = (distances["variant"] == "NCSN") | (
        (distances["variant"] == "NCSN_5")
        & (distances["purpose"] == "selection")
        & (distances["iteration"] <= 3000)
    )
    return replace(
        whole,
        run=whole.run | {"complete": False, "n_done": 1},
        cells=cells,
        distances=distances[keep].reset_index(drop=True),
        losses=whole.losses[whole.losses["iteration"] <= 3000].reset_index(drop=True),
        held_out_losses=whole.held_out_losses[whole.held_out_losses["iteration"] <= 3000],
        timings=whole.timings[whole.timings["variant"] == "NCSN"].reset_index(drop=True),
        samples=[sample for sample in whole.samples if sample.variant == "NCSN"],
    )


def hostile(directory: Path) -> Results:
    """Texts that would be markup, mathematics or paths if nothing escaped them."""
    name = '<script>alert("x")</script> 50% of $a_b$ & {c}\\d | ../../etc'
    whole = complete(directory, datasets=(name,))
    cells = whole.cells.copy()
    cells["status"] = ["done", "failed", "failed", "planned"]
    cells["message"] = [None, "<img src=x onerror=alert(1)>", "$\\frac{1}{", None]
    run = whole.run | {"grid": "<b>grid</b>", "hardware": "<i>cpu</i>", "complete": False}
    return replace(whole, run=run, cells=cells, samples=whole.samples[:2])


def stepped(dataset: str) -> dict[str, Any]:
    """Frames of a grid that samples NCSNv2 in three ways."""
    rows = {"NCSNv2, 25×1": (26, 46.0), "NCSNv2, 100×1": (101, 17.0), "NCSNv2": (1161, 12.0)}
    base: dict[str, Any] = {"dataset": dataset, "seed": 0}
    final = {"weights": "EMA", "denoise": True, "iteration": 5000, "purpose": "final", "n": 1000}
    final |= {"label": "FD[x]", "feature_space": "x", "n_reference": 1437, "reference": "train"}
    return {
        "cells": make_frame(
            CELL_COLUMNS,
            [
                base
                | {"variant": v, "slug": v, "weights": "EMA", "status": "done"}
                | {"base": "NCSNv2", "sampler": "annealed"}
                | {"training": "s(x)/σ, L=232"}
                for v in rows
            ],
        ),
        "distances": make_frame(
            DISTANCE_COLUMNS,
            [base | final | {"variant": v, "distance": d} for v, (_, d) in rows.items()],
        ),
        "timings": make_frame(
            TIMING_COLUMNS,
            [
                base | {"variant": v, "source": "this run", "score_evaluations_per_sample": n}
                for v, (n, _) in rows.items()
            ],
        ),
    }


def _references(dataset: str, label: str) -> list[dict[str, Any]]:
    base = {"dataset": dataset, "label": label, "n": 1000, "n_reference": 1437}
    names = {
        "uniform noise": 412.5,
        "Gaussian fitted to the pixels": 88.25,
        "held-out real images": 2.125,
    }
    return [base | {"name": name, "distance": distance} for name, distance in names.items()]


def _distances(
    rng: np.random.Generator, measured: dict[str, Any], level: float
) -> list[dict[str, Any]]:
    base = measured | {"n_reference": 1437, "reference": "train", "feature_space": "digits-cnn"}
    wobble = 0.22 if measured["weights"] == "raw" else 0.03
    offset = 0.0 if measured["denoise"] else 6.25
    rows = []
    for iteration in SNAPSHOTS:
        value = level * (1 + 3 * math.exp(-iteration / 1200)) * math.exp(wobble * rng.normal())
        # The snapshot that final distances come from is the best one.
        value *= 0.8 if iteration == 5000 else 1.0
        curve = {"iteration": iteration, "n": 256, "distance": value + offset + 8}
        rows.append(base | curve | {"purpose": "selection"})
    value = final_distance(measured["variant"], measured["seed"], measured["denoise"])
    last = {"iteration": 5000, "n": 1000, "distance": value}
    return [*rows, base | last | {"purpose": "final"}]


def _qualities(measured: dict[str, Any], level: float) -> list[dict[str, Any]]:
    space = measured["label"][3:-1]
    base = measured | {"iteration": 5000, "n": 1000, "n_reference": 1437, "reference": "train"}
    base |= {"feature_space": space}
    values = {
        "IS": {"value": 9 - level / 10, "std": 0.2, "note": "10 splits of 100"},
        "KID": {"value": level / 1000, "std": 0.001, "note": "100 subsets of 1000"},
        "precision": {"value": 0.75},
        "recall": {"value": 0.5},
        "f_score": {"value": 0.6},
        "density": {"value": 1.125},
        "coverage": {"value": 0.25},
        "interval": {"value": level, "std": 0.5, "low": level - 1, "high": level + 1.25},
        "infinite n": {"value": level - 2, "std": 0.125},
    }
    rows = []
    for metric, columns in values.items():
        is_distance = metric in ("interval", "infinite n")
        label = measured["label"] if is_distance else f"{metric}[{space}]"
        rows.append(base | {"metric": metric, "label": label} | columns)
    return rows


def _extrapolation(measured: dict[str, Any], level: float) -> list[dict[str, Any]]:
    line = {"slope": 2000.0, "intercept": level - 2, "standard_error": 0.125}
    points = [{"n": n, "distance": level - 2 + 2000 / n} for n in (250, 400, 600, 800, 1000)]
    return [measured | {"iteration": 5000} | line | point for point in points]


def _mean_loss(iteration: int) -> float:
    return 12 + 24 * math.exp(-iteration / 700)


def _losses(rng: np.random.Generator, training: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        training | {"iteration": i, "split": "train", "loss": _mean_loss(i) + 2 * rng.normal()}
        for i in range(50, 6001, 50)
    ]


def _held_out(rng: np.random.Generator, training: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for iteration in SNAPSHOTS:
        train, gap = _mean_loss(iteration) + 0.2 * rng.normal(), 0.25 + 0.02 * rng.normal()
        errors = {"train_error": 0.2, "test_error": 0.2, "gap_error": 0.02}
        means = {"train": train, "test": train + gap, "gap": gap}
        rows.append(training | {"iteration": iteration, "n": 360, "draws": 6} | means | errors)
    return rows


def _settings(key: dict[str, Any], slug: str) -> dict[str, Any]:
    ladder = {"sigma_1": 1.0, "L": 10, "T": 100, "epsilon": 2e-5}
    if "124" in slug or slug == "ncsnv2":
        ladder = {"sigma_1": 6.4, "L": 58, "T": 5, "epsilon": 6.2e-6}
    return (
        key
        | ladder
        | {"source": "this run", "batch_size": 64, "iterations": 6000, "learning_rate": 1e-3}
        | {"ema_momentum": None if slug == "ncsn" else 0.999, "note": "L by Technique 2, C=0.5"}
    )


def _timing(cell: dict[str, Any]) -> dict[str, Any]:
    return cell | {
        "source": "this run",
        "device": "CPU, 2 cores",
        "training_s": 754.0,
        "sampling_s": 42.5,
        "compile_s": 3.5,
        "n_sampled": 1000,
        "score_evaluations_per_sample": 1001,
        "images_per_s": 23.5,
        "training_peak_bytes": 700 * 2**20,
        "sampling_peak_bytes": 650 * 2**20,
    }


def _images(path: Path, rng: np.random.Generator, channels: int, size: int, noise: float) -> Path:
    """Soft blobs, the noisier the worse the pretended model."""
    path.parent.mkdir(parents=True, exist_ok=True)
    grid = np.linspace(-1, 1, size)
    centre = rng.uniform(-0.6, 0.6, size=(64, channels, 2))
    y = (grid[:, None] - centre[..., 0, None, None]) ** 2
    x = (grid[None, :] - centre[..., 1, None, None]) ** 2
    images = np.exp(-3 * (x + y)) + noise * 0.5 * rng.normal(size=(64, channels, size, size))
    np.save(path, (255 * images.clip(0, 1)).astype(np.uint8))
    return path


def finished_trials(
    kind: str, trials: Iterable[tuple[dict[str, Any], dict[str, Any], Path]]
) -> TrialResults:
    """Trials of the grid finite-difference, from their settings, results and folders."""
    conditions = {"device": "made up", "torch": "2", "load_average": None}
    plan = Manifest(
        grid="finite-difference", budget="quick", overrides={}, data_root="data", units=[]
    )
    return TrialResults(
        plan=plan,
        trials=[
            TrialResult(
                trial=Trial(kind, "", kind, settings),
                state="done",
                message="",
                result=result | {"conditions": conditions},
                directory=folder,
            )
            for settings, result, folder in trials
        ],
    )
