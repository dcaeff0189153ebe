"""The score networks of the study (Fig. A(c)): NCSNv2 by several objectives."""

import math

from ablations.pipeline.cell import Cell
from ablations.pipeline.variants import NCSNV2
from ablations.studies.finite_difference.trials import Trial
from ablations.studies.ncsnv2.resolution import resolve
from ablations.studies.ncsnv2.settings import Settings

#: What they are trained on.
DATASET = "digits"


def cell_of(trial: Trial) -> Cell:
    """Return the cell whose training and samples a trial measures."""
    assert trial.facts is not None
    settings = trial.settings
    total = settings["iterations"]
    return resolve(
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
        trial.facts,
        settings["seed"],
    )
