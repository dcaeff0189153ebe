import dataclasses
import json
from collections import Counter

import pytest
from resolved import context, whole_jobs

from ablations.engine.disk import check_disk
from ablations.pipeline import cell, flops
from ablations.pipeline.manifest import load_manifest
from ablations.studies.ncsnv2.estimate import describe_plan, describe_warnings
from ablations.studies.ncsnv2.grids import GRIDS, budget_cells
from ablations.studies.ncsnv2.settings import BUDGETS
from scorekit.models.score_network import parameter_count


def test_the_disk_estimate_covers_what_was_written(finished):
    out = finished / "out"
    cell = load_manifest(out).units
    written = sum(
        path.stat().st_size
        for folder in ("stages/train", "stages/sample", "samples")
        for path in (out / folder).rglob("*")
        if path.suffix in (".pt", ".npy", ".png")
    )
    estimate = sum(job.disk_bytes for job in whole_jobs(cell))
    # Networks of width 2 weigh less than the envelope of their files.
    assert 0.1 * written < estimate < 10 * written


def test_a_full_disk_is_found_before_work_starts(finished, tmp_path, monkeypatch):
    cell = load_manifest(finished / "out").units
    free = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda folder: free)
    with pytest.raises(ValueError, match=r"0 MiB are free, about \d+ MiB are needed"):
        check_disk(whole_jobs(cell), context(tmp_path))
    # Where all is done nothing is needed.
    check_disk(whole_jobs(cell), context(finished / "out"))


@pytest.fixture
def counted(monkeypatch):
    """What planning does, counted: digests, looks at training stages, networks built."""
    counts = Counter()

    class Encoder(json.JSONEncoder):
        def encode(self, value):
            counts["digests"] += 1
            return super().encode(value)

    def build(settings):
        counts["networks"] += 1
        return parameter_count(settings)

    def train_stage(cell):
        counts["stages"] += 1
        return cell._train_stage

    encoder = Encoder(sort_keys=True, allow_nan=False)
    monkeypatch.setattr("ablations.engine.stages._CANONICAL_JSON", encoder)
    monkeypatch.setattr("ablations.pipeline.flops.parameter_count", build)
    monkeypatch.setattr(cell.Cell, "train_stage", train_stage)
    flops._parameters.cache_clear()
    cell._reference_stage.cache_clear()
    cell._baseline_stage.cache_clear()
    return counts


def factorial(finished, n_seeds):
    data = load_manifest(finished / "out").units[0].data
    return budget_cells(GRIDS["factorial"], BUDGETS["quick"], {"width": 2}, [data], n_seeds)


def test_a_launch_digests_each_training_once_and_builds_each_network_once(
    finished, tmp_path, counted
):
    planned = factorial(finished, n_seeds=20)
    check_disk(whole_jobs(planned), context(tmp_path))
    # One per cell, and those of the dataset's reference statistics and rows.
    assert counted["digests"] == 8 * 20 + 2
    # Conditional or not, with NCSN's noise scales or computed ones; the latter two differ only
    # where each noise scale has parameters.
    assert counted["networks"] == 3


def test_describing_a_plan_takes_work_in_proportion_to_its_cells(finished, tmp_path, counted):
    def work(n_seeds):
        counted.clear()
        planned = factorial(finished, n_seeds)
        text = describe_plan(planned, whole_jobs(planned), context(tmp_path), BUDGETS["quick"], {})
        assert text.count("\ncell digits/") == 8 * n_seeds
        assert text.count("\n  train ") == 4 * n_seeds
        assert "digits/ncsn/seed1, digits/ncsn_5/seed1\n" in text
        return counted

    once, twice = dict(work(n_seeds=10)), dict(work(n_seeds=20))
    assert twice["digests"] <= 2 * once["digests"]
    assert twice["stages"] <= 2 * once["stages"]


def test_too_few_samples_for_a_covariance_are_a_warning_with_the_numbers(finished):
    cell = load_manifest(finished / "out").units
    lines = describe_warnings(cell)
    assert len(lines) == 2
    assert "n_selection = 4 samples for the 64 features of digits-cnn" in lines[0]
    many = [dataclasses.replace(cell, n_selection=65, n_final=65) for cell in cell]
    assert describe_warnings(many) == []
