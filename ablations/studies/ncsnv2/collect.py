"""From the files of an output folder to the numbers of its report; nothing is computed anew."""

import platform
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cached_property, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ablations.engine.code_snapshot import code_digest
from ablations.engine.context import Context
from ablations.engine.frames import make_frame
from ablations.engine.manifest import Manifest
from ablations.engine.provenance import describe_outdated
from ablations.engine.stages import Stage, StageStore
from ablations.engine.state import job_state
from ablations.pipeline.cell import Cell, image_sizes
from ablations.pipeline.jobs import EvaluateJob, NeighboursJob, TrainJob, shown_jobs
from ablations.pipeline.manifest import load_manifest
from ablations.pipeline.selection import sample_file, selected_iterations
from ablations.reporting.wording import without_folders
from ablations.studies.ncsnv2.quoted import published_hyperparameters
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
    NeighbourSet,
    Results,
    SampleSet,
)
from ablations.studies.ncsnv2.rows import settings_apart, short_value
from ablations.studies.ncsnv2.settings import budget_label
from ablations.studies.ncsnv2.training_labels import training_labels
from scorekit.files import load_arrays
from scorekit.metrics.spaces import distance_label, metric_label
from scorekit.runtime.machine import cpu_name
from scorekit.techniques.ema_profiles import parse_ema

#: The most training losses that are kept of a grid, give or take one for each training.
MAX_LOSSES = 1_500_000
_RECENT = 256  # results in memory at a time


def collect(out: Path | str) -> Results:
    """Return everything that the files below ``out`` say, whether the grid is done or not.

    Raises ValueError for a folder that holds no grid, or one of an incompatible version.
    """
    out = Path(out)
    manifest = load_manifest(out)
    if manifest is None:
        raise ValueError(f"{out} holds no grid (no grid.json); give the --out of a launch")
    context = _ReadingContext.reading(out, out / manifest.data_root)
    return _Collector(context, manifest.units).results(manifest)


def _weights(cell: Cell) -> str:
    """Return the weights as tables call them: "raw", "EMA", "EMA power:0.1"."""
    return {"raw": "raw", "ema": "EMA"}.get(cell.weights, f"EMA {cell.weights}")


def _average(cell: Cell) -> dict[str, Any]:
    if cell.network_sha256:
        return {}  # whose training nobody tells of
    if cell.weights == "raw":
        return {"average": "none", "average_width": 0.0}
    name = cell.ema or f"{cell.train.ema_momentum:g}"
    return {"average": name, "average_width": _average_width(name, cell.train.iterations)}


@lru_cache(maxsize=256)
def _average_width(name: str, iterations: int) -> float:
    return parse_ema(name).relative_width(iterations)


class _ReadingStore(StageStore):
    """Reads the result of a stage once for all the rows of a cell that come from it."""

    def __init__(self, root: Path, elsewhere: dict[str, Path]) -> None:
        super().__init__(root, elsewhere)
        self._recent: dict[str, dict[str, Any] | None] = {}  # by digest

    def result(self, stage: Stage) -> dict[str, Any] | None:
        digest = stage.digest
        if digest not in self._recent:
            if len(self._recent) >= _RECENT:
                self._recent.clear()
            self._recent[digest] = super().result(stage)
        return self._recent[digest]


class _ReadingContext(Context):
    @cached_property
    def store(self) -> StageStore:
        store = super().store
        return _ReadingStore(store.root, store.elsewhere)


class _Collector:
    def __init__(self, context: Context, cells: list[Cell]) -> None:
        self.context, self.cells = context, cells
        self.store: StageStore = context.store
        # Looked at once for all cells that share them.
        self.states = {
            job.name: job_state(job, context)
            for job in {cell.train_stage(): TrainJob(cell=cell) for cell in cells}.values()
        }
        self.chosen: dict[str, dict[bool, int]] = {}
        self.labels = training_labels(cells)
        self.users: dict[str, list[Cell]] = defaultdict(list)  # by the digest of their training
        # Trainings of one name and seed have the same weights, and other averages of them.
        named: dict[tuple[str, str, int], str] = {}
        for cell in cells:
            digest = cell.train_stage().digest
            key = (cell.data.name, self.labels[digest], cell.seed)
            self.users[named.setdefault(key, digest)].append(cell)

    def results(self, manifest: Manifest) -> Results:
        rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
        samples: list[SampleSet] = []
        interpolations: list[SampleSet] = []
        neighbours: list[NeighbourSet] = []
        # Cell by cell, so that its results need to be in memory no longer.
        for cell in self.cells:
            self.chosen[cell.name] = selected_iterations(cell, self.store)
            rows["cells"].append(self.cell_row(cell))
            rows["timings"].append(self.timing_row(cell))
            rows["distances"] += self.distance_rows(cell)
            rows["qualities"] += self.quality_rows(cell)
            rows["extrapolations"] += self.extrapolation_rows(cell)
            samples += self.sample_sets(cell)
            interpolations += self.interpolations(cell)
            neighbours += self.neighbour_sets(cell)
        cells = rows["cells"]
        n_done = sum(row["status"] == "done" for row in cells)
        first = {cell.data.name: cell for cell in reversed(self.cells)}
        run = {
            "grid": manifest.grid,
            "budget": budget_label(
                manifest.budget, manifest.overrides, image_sizes(manifest.units)
            ),
            "datasets": [name for name in dict.fromkeys(c.data.name for c in self.cells)],
            "complete": n_done == len(cells),
            "software": self.software(),
            "code": code_digest(),
            "hardware": cpu_name(),
            "n_cells": len(cells),
            "n_done": n_done,
        }
        references, held_out = self.reference_rows(), self.held_out_rows()
        frames = {
            "references": make_frame(REFERENCE_COLUMNS, references),
            "held_out_losses": make_frame(HELD_OUT_COLUMNS, held_out),
        }
        return Results(
            # Once all of the results have been read.
            run=run
            | {
                "codes": sorted(self.store.codes),
                "outdated": describe_outdated(self.store.outdated) if self.store.outdated else "",
            },
            cells=make_frame(CELL_COLUMNS, cells),
            distances=make_frame(DISTANCE_COLUMNS, rows["distances"]),
            qualities=make_frame(QUALITY_COLUMNS, rows["qualities"]),
            extrapolations=make_frame(EXTRAPOLATION_COLUMNS, rows["extrapolations"]),
            **frames,
            losses=self.losses(),
            hyperparameters=make_frame(HYPERPARAMETER_COLUMNS, self.hyperparameter_rows()),
            apart=make_frame(APART_COLUMNS, self.apart_rows(manifest.budget)),
            settings=make_frame(SETTING_COLUMNS, self.setting_rows()),
            timings=make_frame(TIMING_COLUMNS, rows["timings"]),
            samples=samples,
            real={name: self.image_file(cell, "train") for name, cell in first.items()},
            held_out={name: self.image_file(cell, "test") for name, cell in first.items()},
            interpolations=interpolations,
            neighbours=neighbours,
        )

    def image_file(self, cell: Cell, split: str) -> Path:
        return self.context.data_root / cell.data.store / f"{split}.npy"

    def snapshot(self, cell: Cell, denoise: bool, iteration: int) -> dict[str, Any]:
        """Return the columns that say which images a row is about."""
        return {
            "dataset": cell.data.name,
            "variant": cell.label,
            "seed": cell.seed,
            "weights": _weights(cell),
            "denoise": denoise,
            "iteration": iteration,
        }

    def software(self) -> dict[str, str]:
        packages = ("torch", "numpy", "torch-fidelity")
        return {"python": platform.python_version()} | {p: version(p) for p in packages}

    def cell_row(self, cell: Cell) -> dict[str, Any]:
        status, message = self.cell_state(cell)
        return {
            "dataset": cell.data.name,
            "variant": cell.label,
            "base": cell.variant.name,
            "row": cell.row,
            "sampler": cell.sampler,
            "slug": cell.slug,
            "techniques": ",".join(map(str, cell.variant.techniques)),
            "training": self.labels[cell.train_stage().digest],
            "seed": cell.seed,
            "weights": _weights(cell),
            **_average(cell),
            "status": status,
            "message": without_folders(message, (self.context.out, self.context.data_root)),
        }

    def cell_state(self, cell: Cell) -> tuple[str, str]:
        """Return the state of the cell's evaluation, or of the training that it waits for."""
        state = job_state(EvaluateJob(cell=cell), self.context)
        if state[0] == "planned":
            training = self.states[TrainJob(cell=cell).name]
            if training[0] in ("running", "failed", "diverged"):
                return training
        return state

    def distance_rows(self, cell: Cell) -> Iterator[dict[str, Any]]:
        chosen = self.chosen[cell.name]
        for denoise in (False, True):
            wanted = [(i, "selection", False) for i in cell.train.snapshot_iterations]
            if denoise in chosen:
                wanted.append((chosen[denoise], "final", True))
            for iteration, purpose, final in wanted:
                stage = cell.distance_stage(iteration, denoise=denoise, final=final)
                result = self.store.result(stage)
                row = self.snapshot(cell, denoise, iteration) | {
                    "purpose": purpose,
                    "n": cell.n_final if final else cell.n_selection,
                    "reference": cell.reference,
                    "feature_space": cell.data.extractor,
                    "label": distance_label(cell.data.extractor),
                }
                if result is not None:
                    row |= {key: result[key] for key in ("distance", "n", "n_reference")}
                    yield row

    def quality_rows(self, cell: Cell) -> Iterator[dict[str, Any]]:
        for denoise, iteration, result in self.final_results(cell, cell.quality_stage):
            space = cell.data.extractor
            row = self.snapshot(cell, denoise, iteration) | {
                "n": result["n"],
                "n_reference": result["n_reference"],
                "reference": cell.reference,
                "feature_space": space,
            }
            for metric, label, values in _qualities(result, space):
                yield row | {"metric": metric, "label": label} | values

    def extrapolation_rows(self, cell: Cell) -> Iterator[dict[str, Any]]:
        for denoise, iteration, result in self.final_results(cell, cell.quality_stage):
            line = result["extrapolation"]
            row = self.snapshot(cell, denoise, iteration)
            row["label"] = distance_label(cell.data.extractor)
            for n, distance in zip(line.get("n", []), line.get("distances", []), strict=True):
                fitted = {key: line[key] for key in ("slope", "intercept", "standard_error")}
                yield row | {"n": n, "distance": distance} | fitted

    def final_results(
        self, cell: Cell, stage_of: Callable[..., Stage]
    ) -> Iterator[tuple[bool, int, dict[str, Any]]]:
        """Yield (denoise, iteration, result) of the chosen snapshots' finished stages."""
        for denoise, iteration in self.chosen[cell.name].items():
            result = self.store.result(stage_of(iteration, denoise=denoise))
            if result is not None:
                yield denoise, iteration, result

    def reference_rows(self) -> Iterator[dict[str, Any]]:
        for stage, cell in {c.baseline_stage(): c for c in self.cells}.items():
            result = self.store.result(stage)
            for name, values in (result or {}).items():
                label = distance_label(cell.data.extractor)
                yield {"dataset": cell.data.name, "name": name, "label": label} | values

    def losses(self) -> pd.DataFrame:
        """Return the losses of every training; of a great many, every so many an iteration."""
        every = -(-sum(c[0].train.iterations for c in self.users.values()) // MAX_LOSSES)
        curves = [self.loss_curve(cells, every) for cells in self.users.values()]
        found = [curve for curve in curves if curve is not None]
        lengths = [len(curve["loss"]) for curve in found]
        columns: dict[str, Any] = {}
        for name in LOSS_COLUMNS:
            parts = [curve[name] for curve in found]
            if name in ("iteration", "loss"):
                columns[name] = np.concatenate(parts) if parts else []
            else:
                columns[name] = pd.array(parts, LOSS_COLUMNS[name]).repeat(lengths)
        return pd.DataFrame(columns).astype(LOSS_COLUMNS)

    def training(self, cells: list[Cell]) -> dict[str, Any]:
        """Return the columns that say which training a row is about, of the cells that share it."""
        cell = cells[0]
        return {
            "dataset": cell.data.name,
            "seed": cell.seed,
            "training": self.labels[cell.train_stage().digest],
            "variants": ", ".join(dict.fromkeys(c.variant.name for c in cells)),
            "objective": cell.train.objective,
        }

    def loss_curve(self, cells: list[Cell], every: int) -> dict[str, Any] | None:
        """Return the losses of the batches of a training, where it is done."""
        stage = cells[0].train_stage()
        if cells[0].network_sha256 or self.states[TrainJob(cell=cells[0]).name][0] != "done":
            return None
        path = self.store.directory(stage) / "losses.npz"
        loss = load_arrays(path, ["train"])["train"][::every]
        iteration = 1 + every * np.arange(len(loss))
        return self.training(cells) | {"split": "train", "iteration": iteration, "loss": loss}

    def held_out_rows(self) -> Iterator[dict[str, Any]]:
        """Yield the loss on training and test images of every snapshot, by the weights taken."""
        for cells in self.users.values():
            training = self.training(cells)
            for cell in {c.weights: c for c in cells}.values():
                weights = {"weights": _weights(cell)}
                for iteration in cell.train.snapshot_iterations:
                    result = self.store.result(cell.loss_stage(iteration))
                    if result is not None:
                        yield training | weights | {"iteration": iteration} | result

    def hyperparameter_rows(self) -> Iterator[dict[str, Any]]:
        seen = set()
        for cell in self.cells:
            if (cell.data.name, cell.label) in seen:
                continue
            seen.add((cell.data.name, cell.label))
            train = cell.train
            yield {
                "dataset": cell.data.name,
                "variant": cell.label,
                "source": "this run",
                "sigma_1": train.sigma_begin,
                "L": cell.sampling_levels,
                "T": cell.n_steps_each,
                "epsilon": cell.step_size or None,
                "step_rule": cell.step_rule,
                "batch_size": train.batch_size,
                "iterations": train.iterations,
                "learning_rate": train.learning_rate,
                "ema_momentum": train.ema_momentum,
                "note": f"width {train.width}; Technique 1 measures sigma_1 = "
                f"{cell.data.max_distance:.4g} on {cell.data.n_train} training images; "
                f"{cell.score_evaluations} score evaluations a sample",
            }
        yield from published_hyperparameters()

    def apart_rows(self, budget: str) -> Iterator[dict[str, Any]]:
        """Yield what every row has of the settings in which rows differ, as one of its cells."""
        keys = settings_apart(self.cells)
        for cell in {(c.data.name, c.label): c for c in self.cells}.values():
            for key in keys:
                value = dict(cell.own).get(key, budget) if key == "budget" else cell.setting(key)
                if key == "checkpoint" and value is not None:
                    value = Path(value).name
                row = {"dataset": cell.data.name, "variant": cell.label, "setting": key}
                yield row | {"value": short_value(value), "given": key in dict(cell.own)}

    def setting_rows(self) -> Iterator[dict[str, Any]]:
        """Yield every resolved setting of every row, as one of its cells has it."""
        for cell in {(c.data.name, c.label): c for c in self.cells}.values():
            record = cell.to_json()
            data = {f"data: {key}": value for key, value in record["data"].items()}
            named = ("data", "variant", "train", "row", "title", "own")
            rest = {k: v for k, v in record.items() if k not in named and (k, v) != ("plugins", ())}
            found = {"weights": cell.weights} | record["train"] | rest | data
            for name, value in found.items():
                if name != "seed":  # the one thing that the cells of a row differ in
                    row = {"dataset": cell.data.name, "variant": cell.label, "setting": name}
                    yield row | {"value": str(value)}

    def timing_row(self, cell: Cell) -> dict[str, Any]:
        row: dict[str, Any] = {
            "dataset": cell.data.name,
            "variant": cell.label,
            "seed": cell.seed,
            "source": "this run",
            "score_evaluations_per_sample": cell.score_evaluations,
        }
        devices = set()
        if (training := self.store.result(cell.train_stage())) is not None:
            row["training_s"] = training["training_s"]
            row["compile_s"] = training["compile_s"]
            row["training_peak_bytes"] = training["conditions"]["peak_memory_bytes"]
            devices.add(training["conditions"]["device"])
        stages = {
            stage
            for i in cell.train.snapshot_iterations
            for stage in cell.sample_stages(i, final=True)
        }
        done = [r for r in map(self.store.result, stages) if r is not None]
        if done:
            row["sampling_s"] = sum(result["sampling_s"] for result in done)
            row["compile_s"] = row.get("compile_s", 0) + sum(r["compile_s"] for r in done)
            row["n_sampled"] = sum(result["n"] for result in done)
            row["images_per_s"] = row["n_sampled"] / row["sampling_s"]
            peaks = [result["conditions"]["peak_memory_bytes"] for result in done]
            row["sampling_peak_bytes"] = max(filter(None, peaks), default=None)
            devices |= {result["conditions"]["device"] for result in done}
        row["device"] = "; ".join(sorted(devices))
        return row

    def sample_sets(self, cell: Cell) -> Iterator[SampleSet]:
        chosen = self.chosen[cell.name]
        for iteration in cell.train.snapshot_iterations:
            stage = cell.sample_stages(iteration, final=False)[0]
            if self.store.result(stage) is None:
                continue
            for denoise in (False, True):
                yield SampleSet(
                    **self.snapshot(cell, denoise, iteration),
                    path=self.store.directory(stage) / sample_file(denoise),
                    selected=chosen.get(denoise) == iteration,
                    last=iteration == cell.train.iterations,
                )

    def interpolations(self, cell: Cell) -> Iterator[SampleSet]:
        selected, last = self.chosen[cell.name].get(True), cell.train.iterations
        for iteration in dict.fromkeys((selected, last)):
            if iteration is None:
                continue
            stage = cell.interpolation_stage(iteration)
            if self.store.result(stage) is not None:
                yield SampleSet(
                    **self.snapshot(cell, True, iteration),
                    path=self.store.directory(stage) / sample_file(True),
                    selected=iteration == selected,
                    last=iteration == last,
                )

    def neighbour_sets(self, cell: Cell) -> Iterator[NeighbourSet]:
        chosen = self.chosen[cell.name]
        for snapshot in ("last", "selected") if True in chosen else ():
            (job,) = shown_jobs(NeighboursJob, [cell], snapshot=snapshot)
            iteration, final = job.shown(chosen)
            stage = job.stage(iteration, final=final)
            if (result := self.store.result(stage)) is None:
                continue
            samples = cell.sample_stages(iteration, final=final)
            yield NeighbourSet(
                **self.snapshot(cell, True, iteration),
                snapshot=snapshot,
                feature_space=cell.data.extractor,
                n_searched=result["n_searched"],
                flip=stage.settings["flip"],
                path=self.store.directory(stage) / "neighbours.npz",
                samples=tuple(self.store.directory(s) / sample_file(True) for s in samples),
            )


def _qualities(result: dict[str, Any], space: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (metric, label, columns) of a quality stage's result; a note where n is too small."""

    def part(name: str, **columns: str) -> dict[str, Any]:
        found = result.get(name, {"reason": f"{space} has no class probabilities"})
        if "reason" in found:
            return {"note": found["reason"]}
        return {column: found[key] for column, key in columns.items()}

    inception = part("IS", value="mean", std="std", parts="parts", size="part_size")
    if "parts" in inception:
        inception["note"] = f"{inception.pop('parts')} splits of {inception.pop('size')}"
    yield "IS", metric_label("IS", space), inception
    kernel = part("KID", value="mean", std="std", parts="parts", size="part_size")
    if "parts" in kernel:
        kernel["note"] = f"{kernel.pop('parts')} subsets of {kernel.pop('size')}"
    yield "KID", metric_label("KID", space), kernel
    against = {"n_reference": result["n_precision"]}
    for metric in ("precision", "recall", "f_score", "density", "coverage"):
        group = "density_coverage" if metric in ("density", "coverage") else "precision_recall"
        # Results of before density and coverage were taken have no such group.
        if group in result:
            yield metric, metric_label(metric, space), against | part(group, value=metric)
    distance = distance_label(space)
    interval = part("interval", value="distance", std="standard_error", low="low", high="high")
    if result.get("interval", {}).get("resamples") == 0:
        interval["note"] = "by influence values, without resamples"
    yield "interval", distance, interval
    infinite = part("extrapolation", value="intercept", std="standard_error", bounded="bounded")
    if infinite.pop("bounded", False):
        infinite["note"] = "the line ends below 0: bounded"
    yield "infinite n", distance, infinite
