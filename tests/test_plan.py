import dataclasses

import pytest

from ablations.jobs import Context, plan_jobs
from ablations.manifest import load_manifest
from ablations.plan import check_disk, describe_warnings, disk_bytes, job_state


def context(out):
    return Context(
        out=out, data_root=out / "data", device="cpu", threads=1, compile=False, sampling_batch=4
    )


def test_the_disk_estimate_covers_what_was_written(finished):
    out = finished / "out"
    cells = load_manifest(out).cells
    written = sum(
        path.stat().st_size
        for folder in ("stages/train", "stages/sample", "samples")
        for path in (out / folder).rglob("*")
        if path.suffix in (".pt", ".npy", ".png")
    )
    estimate = disk_bytes(cells, plan_jobs(cells))
    # Networks of width 2 weigh less than the envelope of their files.
    assert 0.1 * written < estimate < 10 * written


def test_a_full_disk_is_found_before_work_starts(finished, tmp_path, monkeypatch):
    cells = load_manifest(finished / "out").cells
    free = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda folder: free)
    with pytest.raises(ValueError, match=r"0 MiB are free, about \d+ MiB are needed"):
        check_disk(cells, plan_jobs(cells), context(tmp_path))
    # Where all is done nothing is needed.
    check_disk(cells, plan_jobs(cells), context(finished / "out"))


def test_too_few_samples_for_a_covariance_are_a_warning_with_the_numbers(finished):
    cells = load_manifest(finished / "out").cells
    lines = describe_warnings(cells)
    assert len(lines) == 2
    assert "n_selection = 4 samples for the 64 features of digits-cnn" in lines[0]
    many = [dataclasses.replace(cell, n_selection=65, n_final=65) for cell in cells]
    assert describe_warnings(many) == []


def test_states_of_jobs_come_from_files(finished, tmp_path):
    jobs = plan_jobs(load_manifest(finished / "out").cells)
    assert {job_state(job, context(finished / "out"))[0] for job in jobs} == {"done"}
    assert {job_state(job, context(tmp_path)) for job in jobs} == {("planned", "")}
