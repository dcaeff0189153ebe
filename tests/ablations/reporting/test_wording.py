from dataclasses import replace
from pathlib import Path

import fake_results
import pytest

from ablations.reporting.wording import is_papers, without_folders
from ablations.studies.ncsnv2.sections.style import conditions, seeds_text


@pytest.mark.parametrize(
    ("budget", "datasets", "papers"),
    [
        ("paper", ["cifar10"], True),
        ("paper, changed: preset=cifar10", ["cifar10"], True),
        ("paper, changed: preset=celeba", ["cifar10"], False),
        ("paper, changed: iterations=5", ["cifar10"], False),
        ("paper", ["digits"], False),
        ("paper", ["cifar10", "digits"], False),
        ("paper", [], False),
        ("quick", ["cifar10"], False),
    ],
)
def test_only_the_papers_settings_on_its_data_are_called_the_papers(budget, datasets, papers):
    run = fake_results.fake_run(budget=budget, datasets=datasets)
    assert is_papers(run) == papers


def test_captions_count_the_seeds_that_rows_have(tmp_path: Path) -> None:
    results = fake_results.complete(tmp_path, n_seeds=3)
    assert seeds_text(results) == "3 seeds"
    cells = results.cells
    some = replace(results, cells=cells[(cells["variant"] == "NCSNv2") | (cells["seed"] == 0)])
    assert seeds_text(some) == "seeds per row: 1 to 3"
    assert "; seeds per row: 1 to 3; " in conditions(some)
    assert seeds_text(fake_results.empty()) == "0 seeds"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/jane/out/stages/a.json: is damaged", "…/a.json: is damaged"),
        ("[Errno 2] No such file: '/srv/x/y.npy'", "[Errno 2] No such file: '…/y.npy'"),
        ("/my out/jobs/a.json and /my out", "…/jobs/a.json and …"),
        ("3/4 of a/b/c, images and/or …/x", "3/4 of a/b/c, images and/or …/x"),
    ],
)
def test_absolute_paths_lose_their_folders(text, shown):
    assert without_folders(text, [Path("/my out")]) == shown
