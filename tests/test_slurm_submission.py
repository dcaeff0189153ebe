"""What sbatch is given; on a real Slurm the same is tested in test_slurm.py."""

import pytest
from stand_in_slurm import StandInSlurm

from ablations.jobs import Context, plan_jobs, snapshot_jobs
from ablations.manifest import load_manifest
from ablations.slurm import SlurmGrid
from ablations.slurm_settings import slurm_settings


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
