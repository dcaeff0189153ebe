"""Hours from timed steps."""

import dataclasses

import pytest
from resolved import whole_jobs

from ablations.engine.context import Context
from ablations.pipeline import hours
from ablations.pipeline.hours import estimate_hours
from ablations.pipeline.manifest import load_manifest


def context(out):
    return Context(out=out, data_root=out, device="cpu", threads=1, compile=False, sampling_batch=4)


@pytest.fixture
def jobs(finished):
    return whole_jobs(load_manifest(finished / "out").units)


def test_each_kind_of_step_is_timed_once_and_counted_as_often_as_it_is_taken(
    jobs, tmp_path, monkeypatch
):
    timed = []

    def seconds(step, device):
        step()  # it runs
        timed.append(step)
        return 3600.0

    monkeypatch.setattr(hours, "_seconds", seconds)
    trainings = [job for job in jobs if job.kind == "train"]
    evaluations = [job for job in jobs if job.kind == "evaluate"]
    # Of 4 images a step: an hour each.
    steps = sum(job.cell.train.iterations for job in trainings)
    steps += sum(job.n_sampled * job.cell.score_evaluations / 4 for job in evaluations)
    assert estimate_hours(jobs, context(tmp_path)) == pytest.approx(steps)
    assert len(timed) == 4  # conditional or not, training or sampling
    assert estimate_hours([], context(tmp_path)) == 0


@pytest.mark.parametrize("objective", ["dsm", "ssm_vr", "fd_ssm_vr"])
def test_a_step_of_every_objective_can_be_timed(jobs, tmp_path, objective):
    (job, *_) = (job for job in jobs if job.kind == "train")
    train = dataclasses.replace(job.cell.train, objective=objective)
    job = dataclasses.replace(job, cell=dataclasses.replace(job.cell, train=train))
    assert 0 < estimate_hours([job], context(tmp_path)) < 1
