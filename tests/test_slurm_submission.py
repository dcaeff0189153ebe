"""What sbatch is given; on a real Slurm the same is tested in test_slurm.py."""

import dataclasses
import os

import pytest
from stand_in_slurm import StandInSlurm

from ablations.jobs import Context, plan_jobs, snapshot_jobs
from ablations.manifest import load_manifest
from ablations.slurm import SlurmGrid, cancel_all
from ablations.slurm_settings import slurm_settings
from ablations.submissions import load_submissions, save_submission


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    slurm = StandInSlurm(tmp_path / "slurm")
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    return slurm


def grid_of(finished, out, *, device="cpu", pairs=(), table=None, without=()):
    """Return the tiny grid as it would be sent to Slurm, into an empty folder."""
    cells = load_manifest(finished / "out").cells
    everything = [*plan_jobs(cells), *snapshot_jobs(cells)]
    context = Context(
        out=out, data_root=out, device=device, threads=1, compile=False, sampling_batch=4
    )
    return SlurmGrid(
        context=context,
        settings=slurm_settings(table or {}, list(pairs)),
        jobs=[job for job in everything if job.name not in without],
        known=everything,
    )


def test_every_array_waits_for_what_it_needs_and_nothing_else(finished, tmp_path, stand_in):
    grid_of(finished, tmp_path / "out").submit()
    waits = [options.get("dependency") for options in stand_in.submitted]
    # Trainings and reference rows; the snapshots and evaluations of each training; the report.
    assert waits[:2] == [None, None]
    assert waits[2:6] == [
        waits[2],
        f"{waits[2]},afterany:103",
        waits[4],
        f"{waits[4]},afterany:105",
    ]
    assert {waits[2], waits[4]} == {"afterok:101_0", "afterok:101_1"}
    assert waits[6] == "afterany:101:102:103:104:105:106"


def test_what_is_sent_after_a_finished_training_waits_for_no_other(finished, tmp_path, stand_in):
    cells = load_manifest(finished / "out").cells
    # Of the two the one is done whose arrays are sent after the other's.
    done = max(job.name for job in plan_jobs(cells) if job.kind == "train")
    grid_of(finished, tmp_path / "out", without={done}).submit()
    waits = [options.get("dependency") for options in stand_in.submitted]
    assert waits == [
        *(None, None),  # the other training, reference rows
        *("afterok:101", "afterok:101,afterany:103"),
        *(None, "afterany:105"),
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
