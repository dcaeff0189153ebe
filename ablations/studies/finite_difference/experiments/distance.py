"""What the trials of distance compute: samples of score networks at moments of their training.

Training, sampling and measuring are the stages of the ordinary grids, in the same folder, so that
a killed trial goes on within its training.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ablations.engine.context import Context
from ablations.pipeline.data import data_facts
from ablations.pipeline.evaluation import Worker
from ablations.pipeline.jobs import Job
from ablations.studies.finite_difference.experiments.learning import Found, Progress
from ablations.studies.ncsnv2.resolution import resolve
from ablations.studies.ncsnv2.settings import Settings
from ablations.studies.ncsnv2.variants import NCSNV2

DATASET = "digits"


def distance(settings: dict[str, Any], directory: Path, progress: Progress, out: Path) -> Found:
    """Train NCSNv2 by an objective; the Fréchet distance of its averaged weights' samples.

    At every snapshot, against the seconds of training up to it, which sampling is no part of. Run
    without compilation, which only some of the objectives have.
    """
    total, device = settings["iterations"], settings["device"]
    # The embedded images' store, and what is known of them, belong to the output folder.
    facts = data_facts(DATASET, out / "data", image_size=None, inception_weights=None)
    cell = resolve(
        Settings(
            **{name: settings[name] for name in ("width", "iterations", "batch_size", "objective")},
            learning_rate=settings["learning_rate"],
            ema_momentum=settings["ema_momentum"],
            n_steps_each=settings["n_steps_each"],
            snapshot_interval=math.ceil(total / settings["snapshots"]),
            test_interval=total,
            n_selection=settings["samples"],
            n_final=settings["samples"],
        ),
        NCSNV2,
        facts,
        settings["seed"],
    )
    context = Context(
        out=out,
        data_root=out / "data",
        device=device,
        threads=settings["threads"],
        compile=False,
        sampling_batch=min(settings["samples"], 250),
    )
    worker = Worker(context, progress)
    worker.train(cell)
    trained = context.store.result(cell.train_stage())
    assert trained is not None
    job = Job(kind="evaluate", cell=cell)
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
