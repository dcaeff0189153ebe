"""Losses that other programs follow while a network trains."""

import json

import numpy as np

from ablations.engine.context import Context
from ablations.pipeline import loss_log
from ablations.pipeline.loss_log import LossLog, loss_log_path
from ablations.pipeline.manifest import load_manifest
from scorekit.files import load_arrays


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_training_leaves_the_losses_that_it_recorded(finished):
    out = finished / "out"
    cell = load_manifest(out).units[0]
    stage = cell.train_stage()
    found = lines(loss_log_path(out, f"train-{stage.digest}"))
    folder = Context.reading(out, out / "data").store.directory(stage)
    recorded = load_arrays(folder / "losses.npz", ["train", "test", "test_iteration"])
    interval = cell.train.test_interval
    means = recorded["train"].reshape(-1, interval).mean(axis=1)
    assert [line["iteration"] for line in found] == [2, 4, 6]
    np.testing.assert_allclose([line["loss"] for line in found], means)
    np.testing.assert_allclose([line["test_loss"] for line in found], recorded["test"])


def test_lines_are_whole_and_not_written_more_often_than_people_look(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(loss_log.time, "monotonic", lambda: now[0])
    path = tmp_path / "jobs" / "train-1.losses.jsonl"
    log = LossLog(path, interval=2)
    log([1.0, 3.0, 5.0], [(2, 9.0)])
    assert lines(path) == [
        {"iteration": 2, "loss": 2.0, "test_loss": 9.0},
        {"iteration": 3, "loss": 5.0},
    ]
    now[0] += loss_log.EVERY_S / 2
    log([1.0] * 4, [])
    assert len(lines(path)) == 2 and lines(path)[1]["iteration"] == 3
    log([1.0] * 5, [], last=True)
    assert [line["iteration"] for line in lines(path)] == [2, 4, 5]
    # One that went back to a checkpoint tells no more of what was lost.
    LossLog(path, interval=2)([7.0, 7.0], [])
    assert lines(path) == [{"iteration": 2, "loss": 7.0}]
