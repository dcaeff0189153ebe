"""Stage digests as they were: results that were made by earlier code are found again.

A digest may change only with what it stands for. Where it has to, raise RESULTS_VERSION or let the
settings say what differs, and write the file anew: ``python tests/whole/test_pinned_digests.py``.
"""

import hashlib
import json
from pathlib import Path

import pytest

from ablations.pipeline.cell import Cell
from ablations.pipeline.data import DataFacts
from ablations.studies.finite_difference.budgets import BUDGETS as EFFORTS
from ablations.studies.finite_difference.trials import PARTS, build_trials
from ablations.studies.ncsnv2.grids import GRIDS, budget_cells
from ablations.studies.ncsnv2.settings import BUDGETS

PINNED = Path(__file__).with_suffix(".json")
FACTS = DataFacts(
    name="cifar10",
    store="cifar10",
    fingerprint="f" * 64,
    channels=3,
    image_size=32,
    n_train=50_000,
    n_test=10_000,
    flip=True,
    max_distance=50.0,
    extractor="cifar-cnn",
    extractor_fingerprint="e" * 64,
)


def stages_of(cell: Cell) -> list[str]:
    """Return the digest of every stage of a cell, with its kind."""
    stages = [cell.train_stage(), cell.reference_stage(), cell.baseline_stage()]
    for i in cell.train.snapshot_iterations:
        stages += [*cell.sample_stages(i, final=False), *cell.sample_stages(i, final=True)]
        stages += [cell.loss_stage(i), cell.interpolation_stage(i)]
        for denoise in (False, True):
            stages += [cell.distance_stage(i, denoise=denoise, final=f) for f in (False, True)]
            stages.append(cell.quality_stage(i, denoise=denoise))
            stages += [cell.neighbour_stage(i, denoise=denoise, final=f) for f in (False, True)]
    return [f"{stage.kind} {stage.digest}" for stage in stages]


def digests() -> dict[str, str]:
    """Return a digest over all stages of each cell, and that of each trial."""
    found = {}
    for grid in ("paper", "factorial", "steps", "objectives"):
        for budget in ("quick", "paper"):
            for cell in budget_cells(GRIDS[grid], BUDGETS[budget], {}, [FACTS], 2):
                text = "\n".join(stages_of(cell))
                name = f"{grid} {budget} {cell.name}"
                found[name] = hashlib.sha256(text.encode()).hexdigest()[:16]
    for budget in ("quick", "paper"):
        trials = build_trials(
            EFFORTS[budget].settings,
            PARTS,
            seeds=None,
            files=dict.fromkeys(("parkinsons", "redwine", "whitewine"), "c" * 64),
            images={"digits": None, "mnist": "d" * 64},
            place={"device": "cpu", "threads": 2},
        )
        found |= {f"{budget} {trial.name}": trial.stage.digest for trial in trials}
    return found


@pytest.fixture(scope="module")
def now() -> dict[str, str]:
    return digests()


def test_every_stage_has_the_digest_it_had(now):
    assert now == json.loads(PINNED.read_text())


if __name__ == "__main__":
    PINNED.write_text(json.dumps(digests(), indent=0, sort_keys=True) + "\n")
