"""What sbatch is given; on a real Slurm the same is tested in test_grid.py."""

import dataclasses
import os
import re
import shlex

import pytest
from resolved import whole_jobs
from stand_in_slurm import StandInSlurm

from ablations.engine.context import Context
from ablations.executors.slurm.grid import SlurmGrid, cancel_all
from ablations.executors.slurm.settings import slurm_settings
from ablations.executors.slurm.submissions import load_submissions, save_submission
from ablations.pipeline.jobs import grid_jobs
from ablations.pipeline.manifest import load_manifest
from ablations.studies.ncsnv2.study import STUDY


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    slurm = StandInSlurm(tmp_path / "slurm")
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    return slurm


def grid_of(finished, out, *, device="cpu", pairs=(), table=None, without=()):
    """Return the tiny grid as it would be sent to Slurm, into an empty folder."""
    cells = load_manifest(finished / "out").units
    everything = grid_jobs(cells)
    context = Context(
        out=out, data_root=out, device=device, threads=1, compile=False, sampling_batch=4
    )
    return SlurmGrid(
        name="tiny",
        context=context,
        settings=slurm_settings(table or {}, list(pairs)),
        jobs=[job for job in everything if job.name not in without],
        known=everything,
        build_report=STUDY.report,
    )


def test_every_array_waits_for_what_it_needs_and_nothing_else(finished, tmp_path, stand_in):
    grid_of(finished, tmp_path / "out").submit()
    waits = [options.get("dependency") for options in stand_in.submitted]
    assert waits == [
        None,  # trainings
        *("afterok:101_0", "afterok:101_1"),  # the snapshots of each
        *("afterok:101_0,afterany:102", "afterok:101_1,afterany:103"),  # evaluations
        None,  # reference rows
        "afterany:101:102:103:104:105:106",  # the report
    ]


def test_what_is_sent_after_a_finished_training_waits_for_no_other(finished, tmp_path, stand_in):
    cells = load_manifest(finished / "out").units
    # Of the two the one is done whose arrays are sent after the other's.
    *_, done = (job.name for job in whole_jobs(cells) if job.kind == "train")
    grid_of(finished, tmp_path / "out", without={done}).submit()
    waits = [options.get("dependency") for options in stand_in.submitted]
    assert waits == [
        None,  # the other training
        *("afterok:101", None),  # snapshots
        *("afterok:101,afterany:102", "afterany:103"),  # evaluations
        None,  # reference rows
        "afterany:101:102:103:104:105:106",
    ]


def test_the_report_has_no_gpu_and_one_core(finished, tmp_path, stand_in):
    pairs = ("gpus=8", "cpus=6", "time=24:00:00")
    grid_of(finished, tmp_path / "out", device="cuda", pairs=pairs).submit()
    *others, report = stand_in.submitted
    assert {options["gpus-per-node"] for options in others} == {"8"}
    assert {options["ntasks-per-node"] for options in others} == {"8"}
    assert not [name for name in report if "gpu" in name or "gres" in name]
    assert (report["ntasks-per-node"], report["cpus-per-task"]) == ("1", "1")


def test_the_report_has_no_gpu_however_it_was_asked_for(finished, tmp_path, stand_in):
    grid_of(finished, tmp_path / "out", device="cuda", pairs=["gres=gpu:a100:2", "nice=1"]).submit()
    *others, report = stand_in.submitted
    assert {options["gres"] for options in others} == {"gpu:a100:2"}
    assert not [name for options in others for name in options if name.startswith("gpus")]
    assert {options["ntasks-per-node"] for options in others} == {"2"}
    assert "gres" not in report
    assert report["nice"] == "1"


@pytest.mark.parametrize("inside", [False, True])
def test_an_allocation_and_the_user_s_shell_change_no_submission(
    finished, tmp_path, stand_in, monkeypatch, inside
):
    foreign = ("SLURM_MEM_PER_NODE", "SLURM_CPUS_PER_TASK", "SBATCH_GRES", "SBATCH_TIMELIMIT")
    for name in (*foreign, "SBATCH_ACCOUNT", "SBATCH_PARTITION", *(["SLURM_JOB_ID"] * inside)):
        monkeypatch.setenv(name, "1")
    grid_of(finished, tmp_path / "out", pairs=["partition=cpu"]).submit()
    (variables, *_) = stand_in.environments
    assert not {name for name in variables if name.startswith(("SLURM_", "SBATCH_"))} - {
        "SBATCH_ACCOUNT"
    }
    # Whom to charge is the user's choice, and where the user says it here, that counts.
    assert ("SBATCH_ACCOUNT" in variables) is not inside
    assert os.environ["SLURM_MEM_PER_NODE"] == "1"


def test_each_kind_of_job_asks_for_its_own(finished, tmp_path, stand_in):
    table = {"time": 60, "gpus": 4, "evaluate": {"gpus": 1, "time": "0:30:00", "cpus": 3}}
    pairs = ("train.time=12:00:00", "report.partition=small", "partition=large")
    grid_of(finished, tmp_path / "out", device="cuda", table=table, pairs=pairs).submit()
    for options in stand_in.submitted:
        kind = options["job-name"].split("-")[1]
        asked = (
            *(options["time"], options["partition"], options["ntasks-per-node"]),
            *(options.get("gpus-per-node"), options["cpus-per-task"]),
        )
        assert asked == {
            "train": ("720", "large", "4", "4", "1"),
            "report": ("60", "small", "1", None, "1"),
        }.get(kind, ("30", "large", "1", "1", "3")), kind


def test_jobs_are_called_by_grid_and_kind(finished, tmp_path, stand_in):
    grid_of(finished, tmp_path / "out").submit()
    names = [options["job-name"] for options in stand_in.submitted]
    kinds = ["train", *["snapshot"] * 2, *["evaluate"] * 2, "baseline", "report"]
    assert [name.split("-scorekit-")[0] for name in names] == [f"tiny-{kind}" for kind in kinds]
    assert len(set(names)) == len(names)


def test_a_preview_shows_what_would_be_sent_and_sends_and_writes_nothing(
    finished, tmp_path, stand_in
):
    out, pairs = tmp_path / "out", ("train.gpus=8", "setup=module load x", "comment=two words")
    lines = grid_of(finished, out, device="cuda", pairs=pairs).preview()
    assert not out.exists()
    assert stand_in.submitted == []
    grid_of(finished, out, device="cuda", pairs=pairs).submit()
    shown = [options_of_preview(line) for line in lines]
    assert len(shown) == 7
    # Arrays are numbered from 1 there, by this Slurm from 101; and each name ends in a token.
    later = [
        {key: re.sub(r"\b10(\d)(?!\d)", r"\1", value) for key, value in options.items()}
        for options in stand_in.submitted
    ]
    for options in (*shown, *later):
        options["job-name"] = options["job-name"].split("-scorekit-")[0]
    assert shown == later


def options_of_preview(line):
    _, _, options = line.partition(": sbatch ")
    found = dict(word.removeprefix("--").partition("=")[::2] for word in shlex.split(options))
    return found


def test_a_preview_needs_no_slurm(finished, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    lines = grid_of(finished, tmp_path / "out").preview()
    assert lines[0] == (
        "scontrol is not on the PATH of this machine: arrays are shown as if any length were "
        "allowed"
    )
    assert len(lines) == 1 + 7


def test_a_preview_leaves_out_what_is_in_the_queue(finished, tmp_path, stand_in):
    grid = grid_of(finished, tmp_path / "out")
    grid.submit()
    assert grid.preview() == []


def test_without_accounting_what_a_dead_launcher_sent_is_cancelled(finished, tmp_path, stand_in):
    out = tmp_path / "out"
    stand_in.replace("sacct", "#!/bin/sh\necho no supported accounting_storage >&2; exit 1\n")
    grid = grid_of(finished, out)
    names = grid.submit()
    sent = len(stand_in.submitted)
    for submission in load_submissions(out):
        save_submission(dataclasses.replace(submission, slurm_id=None), out)
    assert cancel_all(out) == len(names) + 1  # and the report
    assert len(stand_in.cancelled) == len(names) + 1
    assert grid.submit() == names
    assert len(stand_in.submitted) == sent
