import dataclasses
import shutil

import numpy as np
import pytest
import torch
from resolved import whole_jobs
from torch._dynamo.testing import CompileCounter

from ablations.engine import run
from ablations.engine.context import Context
from ablations.engine.failures import read_failure
from ablations.pipeline import cell, measuring
from ablations.pipeline.jobs import NeighboursJob, shown_jobs
from ablations.pipeline.manifest import load_manifest
from ablations.pipeline.selection import selected_iterations
from ablations.studies.ncsnv2.collect import collect
from scorekit.runtime.interruption import Stopped
from scorekit.runtime.memory import BatchTooLarge
from scorekit.sampling import trajectory


def context(out, data_root, **changes):
    plain = Context(
        out=out, data_root=data_root, device="cpu", threads=1, compile=False, sampling_batch=4
    )
    return dataclasses.replace(plain, **changes)


@pytest.fixture
def copy(finished, tmp_path):
    """A finished grid of which one evaluation is to be done again."""
    out = tmp_path / "out"
    shutil.copytree(finished / "out", out)
    job = next(
        job
        for job in whole_jobs(load_manifest(out).units)
        if job.kind == "evaluate" and job.cell.variant.name == "NCSNv2"
    )
    return out, job


def sample_bytes(out):
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted((out / "stages" / "sample").rglob("*.npy"))
    }


def test_a_job_without_its_dumps_is_not_done(copy):
    out, job = copy
    where = context(out, out / "data")
    assert job.is_done(where)
    shutil.rmtree(out / "samples")
    assert not job.is_done(where)
    run.run_job(job, where)
    assert job.is_done(where)
    assert len(list((out / "samples").iterdir())) == 2


@pytest.mark.parametrize("batch", [1, 64])
def test_the_sampling_batch_changes_no_sample_beyond_rounding(copy, batch):
    out, job = copy
    before = sample_bytes(out)
    shutil.rmtree(out / "stages" / "distance")
    shutil.rmtree(out / "stages" / "features")
    shutil.rmtree(out / "stages" / "sample")
    run.run_job(job, context(out, out / "data", sampling_batch=batch))
    after = sample_bytes(out)
    assert after
    for name, data in after.items():
        old, new = (np.frombuffer(d[128:], np.uint8).astype(int) for d in (before[name], data))
        assert np.abs(old - new).max() <= 1


@pytest.mark.slow
def test_a_whole_job_compiles_each_step_once(copy, monkeypatch):
    out, job = copy
    shutil.rmtree(out / "stages" / "distance")
    shutil.rmtree(out / "stages" / "features")
    shutil.rmtree(out / "stages" / "sample")
    counted = CompileCounter()
    torch._dynamo.reset()

    def compiled(function, *, enable, device):
        return torch.compile(function, backend=counted, fullgraph=True, dynamic=False)

    monkeypatch.setattr(trajectory, "compiled", compiled)
    run.run_job(job, context(out, out / "data"))
    # The Langevin step and the denoising step, over two snapshots and two blocks of samples.
    assert counted.frame_count == 2
    torch._dynamo.reset()


def test_an_interrupted_stage_keeps_the_batches_that_were_drawn(copy, monkeypatch):
    out, job = copy
    before = sample_bytes(out)
    for kind in ("distance", "features", "sample"):
        shutil.rmtree(out / "stages" / kind)
    drawn = []
    original = trajectory.Sampler.sample

    def counting(self, index, *arguments, **keywords):
        if len(drawn) == 1:
            drawn.append("interrupted")
            raise KeyboardInterrupt
        drawn.append(index.tolist())
        return original(self, index, *arguments, **keywords)

    monkeypatch.setattr(trajectory.Sampler, "sample", counting)
    where = context(out, out / "data", sampling_batch=2)
    with pytest.raises(KeyboardInterrupt):
        run.run_job(job, where)
    assert len(list((out / "stages" / "sample").rglob("chunk-0-2.pt"))) == 1
    run.run_job(job, where)
    assert drawn[2] == [2, 3]  # the first two were not drawn again
    assert not list((out / "stages" / "sample").rglob("chunk-*"))
    for name, data in sample_bytes(out).items():
        old, new = (np.frombuffer(d[128:], np.uint8).astype(int) for d in (before[name], data))
        assert np.abs(old - new).max() <= 1


@pytest.mark.parametrize("asked", [0, 2, 9])
def test_a_stopped_evaluation_leaves_no_failure_and_continues_to_the_same_bytes(copy, asked):
    out, job = copy
    before = sample_bytes(out)
    for kind in ("distance", "features", "sample", "quality"):
        shutil.rmtree(out / "stages" / kind)
    where = context(out, out / "data")
    count = iter(range(10**6))
    with pytest.raises(Stopped, match="stopped"):
        run.run_job(job, where, stop=lambda: next(count) >= asked)
    assert read_failure(out, job.name) is None
    assert not job.is_done(where)
    run.run_job(job, where)
    assert job.is_done(where)
    after = sample_bytes(out)
    assert after
    assert after.items() <= before.items()


def test_a_job_stopped_whenever_it_is_asked_ends_all_the_same(copy):
    """Every attempt may ask eight times, enough to draw a batch after what is done."""
    out, job = copy
    before = sample_bytes(out)
    for kind in ("distance", "features", "sample", "quality"):
        shutil.rmtree(out / "stages" / kind)
    stops = 0
    while not job.is_done(context(out, out / "data")):
        count = iter(range(10**6))
        try:
            run.run_job(job, context(out, out / "data"), stop=lambda count=count: next(count) >= 8)
        except Stopped:
            stops += 1
            assert stops < 50
    assert stops
    assert sample_bytes(out).items() <= before.items()


def test_a_batch_that_is_too_large_is_halved_and_gives_the_same_samples(copy, monkeypatch, caplog):
    """Memory for two images at a time, where the batch is of four."""
    out, job = copy
    before = sample_bytes(out)
    for kind in ("distance", "features", "sample", "quality"):
        shutil.rmtree(out / "stages" / kind)
    original = trajectory.Sampler.sample
    sizes = []

    def small(self, index, *arguments, **keywords):
        sizes.append(len(index))
        if len(index) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return original(self, index, *arguments, **keywords)

    monkeypatch.setattr(trajectory.Sampler, "sample", small)
    run.run_job(job, context(out, out / "data"))
    assert sizes.count(4) == 1
    assert set(sizes) == {2, 4}
    assert "sampling: out of memory with a batch of 4; going on with batches of 2" in caplog.text
    after = sample_bytes(out)
    assert after.keys() <= before.keys()
    for name, data in after.items():
        old, new = (np.frombuffer(d[128:], np.uint8).astype(int) for d in (before[name], data))
        assert np.abs(old - new).max() <= 1


def test_a_device_too_small_for_one_image_is_a_clear_failure(copy, monkeypatch):
    out, job = copy
    for kind in ("distance", "features", "sample", "quality"):
        shutil.rmtree(out / "stages" / kind)

    def full(self, *arguments, **keywords):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(trajectory.Sampler, "sample", full)
    with pytest.raises(BatchTooLarge, match="not even a batch of 1"):
        run.run_job(job, context(out, out / "data"))
    assert "not even a batch of 1" in read_failure(out, job.name)["message"]


@pytest.mark.parametrize("snapshot", ["last", "selected"])
def test_neighbours_of_blocks_are_those_of_the_whole_split(copy, monkeypatch, snapshot):
    out, job = copy
    (job,) = shown_jobs(NeighboursJob, [job.cell], snapshot=snapshot)

    def found(data_root):
        where = context(out, data_root)
        run.run_job(job, where)
        (shown,) = (s for s in collect(out).neighbours if s.snapshot == snapshot)
        iteration, final = job.shown(selected_iterations(job.cell, where.store))
        stage = job.stage(iteration, final=final)
        assert where.store.result(stage)["n_searched"] == shown.n_searched == job.cell.data.n_train
        with np.load(shown.path) as file:
            arrays = dict(file)
        shutil.rmtree(shown.path.parent)
        return shown, arrays

    shown, whole = found(out / "data")
    chosen = selected_iterations(job.cell, context(out, out / "data").store)
    ends = {"last": job.cell.train.iterations, "selected": chosen[True]}
    assert shown.iteration == ends[snapshot]
    drawn = {"last": job.cell.n_selection, "selected": job.cell.n_final}
    assert len(whole["fake_distance"]) == drawn[snapshot]
    # The first block differs too, so that it must be made again.
    for n in (400, 1499):
        shutil.rmtree(out / "data" / "reference")
        for module in (cell, measuring):
            monkeypatch.setattr(module, "MAX_REFERENCE", n)
        _, parts = found(out / "data")
        assert set(parts) == set(whole)
        for name, array in whole.items():
            np.testing.assert_allclose(parts[name], array, rtol=1e-4, err_msg=name)
