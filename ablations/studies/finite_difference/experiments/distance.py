"""Samples of score networks at moments of their training.

Training, sampling and measuring are the stages of the ordinary grids, in the same folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ablations.engine.context import Context
from ablations.pipeline.cell import Cell
from ablations.pipeline.evaluation import Worker
from ablations.pipeline.jobs import EvaluateJob
from ablations.studies.finite_difference.experiments.learning import Found, Progress


def distance(
    settings: dict[str, Any], directory: Path, progress: Progress, cell: Cell, context: Context
) -> Found:
    """Return the Fréchet distance of an NCSNv2's samples, by its averaged weights.

    At every snapshot, against the seconds of training up to it, which sampling is no part of.
    """
    worker = Worker(context, progress)
    worker.train(cell)
    trained = context.store.result(cell.train_stage())
    assert trained is not None
    job = EvaluateJob(cell=cell)
    iterations = cell.train.snapshot_iterations
    distances = []
    for i, iteration in enumerate(iterations):
        before = i * cell.n_selection
        worker.measuring.distance(job, iteration, denoise=True, final=False, before=before)
        stage = cell.distance_stage(iteration, denoise=True, final=False)
        measured = context.store.result(stage)
        assert measured is not None
        distances.append(measured["distance"])
    return {
        "curve": {
            "iteration": iterations,
            "seconds": trained["snapshot_s"],
            "distance": distances,
        },
        "seconds": trained["training_s"],
        "extractor": cell.data.extractor,
        "reference": cell.reference,
        "n_levels": cell.sampling_levels,
        "n_parameters": trained["n_parameters"],
    }, []
