"""Output folders of grids that look finished: made-up numbers, written without running anything."""

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np

from ablations.command_line import make_plan, parse_arguments
from ablations.engine.code_snapshot import code_digest
from ablations.engine.context import Context
from ablations.engine.stages import Stage
from ablations.pipeline.cell import Cell
from ablations.pipeline.dumps import dump_name
from ablations.pipeline.selection import selected_iterations
from scorekit.data.registry import prepare
from scorekit.files import sealed_json

_CONDITIONS = {"device": "made up", "peak_memory_bytes": 2**28, "compile": False}
_LOSS = {
    **{"n": 2, "draws": 1, "train": 2.0, "train_error": 0.1, "test": 2.1, "test_error": 0.1},
    **{"gap": 0.1, "gap_error": 0.01},
}
_DISTANCE = {"distance": 40.0, "n": 2, "n_reference": 1500}


def write_finished(out: Path, n_cells: int, *flags: str) -> list[Cell]:
    """Write ``out`` as a finished factorial grid of so many cells (8 at least) on the digits.

    There is every file that collection and the report read, and no other. Distances differ from
    cell to cell. ``flags`` are the launcher's.
    """
    arguments = ["--grid", "factorial", "--seeds", str(-(-n_cells // 8)), "--device", "cpu"]
    sizes = {
        "width": 2,
        "n_selection": 2,
        "n_final": 4,
        "n_loss": 2,
        "n_dump": 2,
        "iterations": 600,
    }
    arguments += [f"--set={name}={value}" for name, value in sizes.items()]
    plan = make_plan(parse_arguments([*arguments, "--out", str(out), *flags]))
    out.mkdir(parents=True, exist_ok=True)
    plan.study.file.save(plan.manifest, out)
    prepare("digits", plan.context.data_root)
    writer = _Writer(plan.context)
    for number, cell in enumerate(plan.units):
        writer.cell(cell, number)
    return plan.units


class _Writer:
    def __init__(self, context: Context) -> None:
        self.context, self.store = context, context.store
        self.images = _npy(np.zeros((2, 1, 8, 8), np.uint8))

    def cell(self, cell: Cell, number: int) -> None:
        train = cell.train
        losses = io.BytesIO()
        every = np.arange(train.test_interval, train.iterations + 1, train.test_interval)
        curve = np.linspace(2, 1, train.iterations)
        np.savez(losses, train=curve, test=curve[every - 1], test_iteration=every)
        snapshots = {f"snapshot-{i:07d}.pt": b"weights" for i in train.snapshot_iterations}
        self.stage(
            cell.train_stage(),
            {"training_s": 1.0, "compile_s": 0.0, "n_parameters": 9, "conditions": _CONDITIONS},
            {"losses.npz": losses.getvalue()} | snapshots,
        )
        self.stage(cell.baseline_stage(), {"uniform noise": _DISTANCE}, {})
        for iteration in train.snapshot_iterations:
            self.stage(cell.loss_stage(iteration), _LOSS, {})
            for stage in cell.sample_stages(iteration, final=iteration == train.iterations):
                sampled = {"sampling_s": 1.0, "compile_s": 0.0, "n": 2, "conditions": _CONDITIONS}
                self.stage(stage, sampled, {"last.npy": self.images, "denoised.npy": self.images})
            for denoise in (False, True):
                far = _DISTANCE | {"distance": 40 + number % 7 - iteration / train.iterations}
                self.stage(cell.distance_stage(iteration, denoise=denoise, final=False), far, {})
        for denoise, iteration in selected_iterations(cell, self.store).items():
            far = _DISTANCE | {"distance": 30.0 + number % 7}
            self.stage(cell.distance_stage(iteration, denoise=denoise, final=True), far, {})
            self.stage(cell.quality_stage(iteration, denoise=denoise), _quality(), {})
            folder = self.context.samples / dump_name(cell, denoise=denoise)
            folder.mkdir(parents=True)
            (folder / "manifest.json").write_text("{}")

    def stage(self, stage: Stage, result: dict[str, Any], files: dict[str, bytes]) -> None:
        # As StageStore.run does it, without waiting for the disk.
        directory = self.store.directory(stage)
        if directory.exists():
            return
        directory.mkdir(parents=True)
        for name, data in files.items():
            (directory / name).write_bytes(data)
        record = {
            "digest": stage.digest,
            "code": code_digest(),
            "codes": [code_digest()],
            "kind": stage.kind,
            "needs": [need.digest for need in stage.needs],
            "result": result,
            "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
            "started": 0.0,
            "finished": 1.0,
        }
        (directory / "result.json").write_bytes(sealed_json(record))


def _quality() -> dict[str, Any]:
    few = {"reason": "too few samples"}
    interval = {"distance": 30.0, "standard_error": 1.0, "low": 28.0, "high": 32.0}
    names = ("KID", "IS", "precision_recall", "extrapolation")
    counts = {"n": 4, "n_reference": 1500, "n_precision": 4}
    return counts | dict.fromkeys(names, few) | {"interval": interval}


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()
