import dataclasses

import pytest
from resolved import cell, facts, whole_jobs

from ablations.engine.naming import file_name
from ablations.hype.dumps import _NAME
from ablations.pipeline.dumps import dump_name
from ablations.pipeline.jobs import grid_jobs
from ablations.pipeline.variants import NCSNV2
from ablations.studies.ncsnv2.grids import GRIDS
from ablations.studies.ncsnv2.rows import Row
from ablations.studies.ncsnv2.settings import BUDGETS

ORDINARY = ["digits", "cifar10-jpeg", "church_outdoor", "imagefolder:photos", "imagefolder:My-2.0"]
ODD = [
    "imagefolder:a:b",
    "imagefolder:a-b",
    "imagefolder-a-b",
    "imagefolder:a b",
    "imagefolder:a_b",
    "imagefolder:a/b",
    "a/b",
    "../b",
    ".b",
    "-b",
    "imagefolder:Möwen",
    "imagefolder:海",
    "imagefolder:" + "n" * 240,
    "imagefolder:" + "n" * 239,
    "imagefolder:$(date)\n",
    "imagefolder:Stra\udcdfe",
    "",
]


def test_ordinary_names_are_kept():
    assert [file_name(text) for text in ORDINARY] == [t.replace(":", "-") for t in ORDINARY]


@pytest.mark.parametrize("text", ORDINARY + ODD)
def test_no_text_is_called_what_another_is(text):
    called = file_name(text)
    assert _NAME.fullmatch(called)
    assert len(called) <= 100
    others = {*ORDINARY, *ODD, called, called.replace("-", ":", 1)} - {text}
    assert called not in map(file_name, others)


def test_jobs_and_dumps_of_all_data_and_rows_have_their_own_safe_names():
    rows = [*(row for grid in GRIDS.values() for row in grid.rows)]
    rows.append(Row(NCSNV2, (("step_size", 1e-5),)))
    rows.append(Row(NCSNV2, (("learning_rate", 2e-3), ("flip", False))))
    rows += [Row(NCSNV2, label=label) for label in (*ORDINARY, *ODD, "ncsn", "a-ncsn") if label]
    # Few iterations: each snapshot is a job.
    paper, few = BUDGETS["paper"], {"iterations": 2, "snapshot_interval": 1}
    datasets = [*ORDINARY, *ODD, "imagefolder:photos-ncsnv2", "imagefolder:photos-ncsnv2-seed0"]
    cells = {
        found.name: found
        for name in datasets
        for row in dict.fromkeys(rows)
        for found in [row.resolve(paper, few, facts(name=name, fingerprint=name + "f" * 8))]
    }
    jobs = grid_jobs(list(cells.values()))
    names = [job.name for job in jobs]
    assert len(set(names)) == len(names)
    assert sum(job.kind == "evaluate" for job in jobs) == len(cells)
    dumps = {dump_name(c, denoise=d) for c in cells.values() for d in (False, True)}
    assert len(dumps) == 2 * len(cells)
    for name in (*names, *dumps):
        assert _NAME.fullmatch(name)


def test_finished_folders_keep_their_names():
    photos = facts(name="imagefolder:photos")
    steps = dataclasses.replace(cell(data=photos), row="25×1")
    assert dump_name(steps, denoise=True) == "imagefolder-photos-ncsnv2-25x1-seed0-denoised"
    (job,) = (job for job in whole_jobs([cell("ncsn_1245")]) if job.kind == "evaluate")
    assert job.name == "evaluate-cifar-ncsn_1245-seed0"
