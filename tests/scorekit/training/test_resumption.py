"""Training that was interrupted, killed or damaged goes on bit for bit."""

import logging
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from places import ROOT
from tiny_training import (
    FEW_BLOCKS,
    SETTINGS,
    Interrupted,
    assert_same,
    everything,
    flip_a_bit,
    run_until,
)

from scorekit.checkpoints.store import snapshot_path
from scorekit.checkpoints.tensors import load_tensors, save_tensors
from scorekit.files import CorruptFile
from scorekit.models.score_network import ARCHITECTURES
from scorekit.runtime.interruption import Stopped
from scorekit.training.networks import load_snapshot
from scorekit.training.settings import OtherSettings
from scorekit.training.trainer import Trainer


@pytest.fixture(scope="module", autouse=True)
def few_blocks():
    """What is kept and read again is so for however many blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, SETTINGS.architecture, FEW_BLOCKS)
        yield


# Resuming


@pytest.mark.parametrize("stop", [4, 12, 20])
def test_an_interrupted_run_ends_bit_for_bit_as_the_undisturbed_one(
    digits, undisturbed, tmp_path, stop
):
    run_until(Trainer(SETTINGS, digits, tmp_path, compile=False), stop)
    resumed = Trainer(SETTINGS, digits, tmp_path, compile=False)
    resumed.run()
    assert len(resumed.losses) == 24
    assert_same(everything(resumed), everything(undisturbed))


@pytest.mark.parametrize(
    "change",
    [
        {"conditional": True},
        {"amsgrad": True, "adam_eps": 1e-3},
        {"dequantisation": "uniform", "flip": False},
        {"precision": "bf16"},
        {"ema_profiles": ("power:0.10", "ramp:0.9")},
        {"noise_levels": "log_normal", "conditioning": "none"},
    ],
    ids=lambda change: "-".join(change),
)
def test_every_kind_of_run_resumes_bit_for_bit(digits, tmp_path, change):
    settings = replace(SETTINGS, iterations=10, snapshot_interval=4, test_interval=2, **change)
    whole = Trainer(settings, digits, tmp_path / "whole", compile=False)
    whole.run()
    run_until(Trainer(settings, digits, tmp_path / "parts", compile=False), 6)
    resumed = Trainer(settings, digits, tmp_path / "parts", compile=False)
    resumed.run()
    assert_same(everything(resumed), everything(whole))


def test_a_finished_run_does_nothing_more(digits, undisturbed):
    calls = []
    again = Trainer(SETTINGS, digits, undisturbed.directory, compile=False)
    again.run(lambda iteration, loss: calls.append(iteration))
    assert calls == []
    assert_same(everything(again), everything(undisturbed))


def test_where_a_run_continues_is_logged(digits, tmp_path, caplog):
    run_until(Trainer(SETTINGS, digits, tmp_path, compile=False), 16)
    with caplog.at_level(logging.INFO, logger="scorekit"):
        Trainer(SETTINGS, digits, tmp_path, compile=False).run()
    assert "training continues at iteration 12" in caplog.text


@pytest.mark.parametrize("at", [0, 1, 6, 13, 23])
def test_a_run_stopped_at_an_iteration_continues_bit_for_bit(digits, undisturbed, tmp_path, at):
    first = Trainer(SETTINGS, digits, tmp_path, compile=False)
    asked = iter(range(24))
    with pytest.raises(Stopped, match=f"training stopped at iteration {at} "):
        first.run(stop=lambda: next(asked) == at)
    assert first.iteration == at
    assert len(list(tmp_path.glob("snapshot-*.pt"))) == at // 6
    if at:
        kind = "interim" if at % SETTINGS.snapshot_interval else "checkpoint"
        saved = load_tensors(tmp_path / f"{kind}-{at:07d}.pt")
        assert saved["losses"].tolist() == undisturbed.losses[:at]
    resumed = Trainer(SETTINGS, digits, tmp_path, compile=False)
    resumed.run()
    assert_same(everything(resumed), everything(undisturbed))
    assert resumed.best_test_loss == undisturbed.best_test_loss


def test_a_run_stopped_at_every_iteration_still_ends_bit_for_bit(digits, undisturbed, tmp_path):
    trainer = Trainer(SETTINGS, digits, tmp_path, compile=False)
    for at in range(1, 24):
        asked = iter(range(2))
        with pytest.raises(Stopped, match=f"at iteration {at} "):
            trainer.run(stop=lambda asked=asked: next(asked) == 1)
        trainer = Trainer(SETTINGS, digits, tmp_path, compile=False)
    trainer.run()
    assert_same(everything(trainer), everything(undisturbed))


def test_checkpoints_are_written_by_the_clock_too(digits, undisturbed, tmp_path):
    trainer = Trainer(SETTINGS, digits, tmp_path, compile=False)
    asked = iter(range(24))

    def crash() -> bool:
        if next(asked) == 11:
            raise Interrupted
        return False

    with pytest.raises(Interrupted):
        trainer.run(stop=crash, checkpoint_every_s=0)
    kept = sorted(path.name for path in tmp_path.glob("[ci]*.pt"))
    # However many, they push out none of those at snapshots, which mend a damaged one.
    assert kept == ["checkpoint-0000006.pt", "interim-0000010.pt"]
    resumed = Trainer(SETTINGS, digits, tmp_path, compile=False)
    resumed.run()
    assert_same(everything(resumed), everything(undisturbed))


@pytest.mark.slow
def test_a_killed_process_resumes_bit_for_bit(digits, undisturbed, tmp_path):
    directory = tmp_path / "run"
    program = f"""
        import sys
        from pathlib import Path
        import torch
        from tiny_training import FEW_BLOCKS
        from scorekit.data.registry import prepare
        from scorekit.models.score_network import ARCHITECTURES
        from scorekit.training.settings import TrainSettings
        from scorekit.training.trainer import Trainer
        ARCHITECTURES[{SETTINGS.architecture!r}] = FEW_BLOCKS
        torch.set_num_threads({torch.get_num_threads()})
        settings = TrainSettings(**{vars(SETTINGS)!r})
        dataset = prepare("digits", {str(digits.directory.parent)!r})
        def progress(iteration, loss):
            print(iteration, flush=True)
        Trainer(settings, dataset, Path({str(directory)!r}), compile=False).run(progress)
    """
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])
    environment = {**os.environ, "PYTHONPATH": paths}
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 8:
            break
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    assert (directory / "checkpoint-0000006.pt").exists()
    resumed = Trainer(SETTINGS, digits, directory, compile=False)
    resumed.run()
    assert_same(everything(resumed), everything(undisturbed))


def test_a_corrupt_newest_checkpoint_is_set_aside_and_the_one_before_is_used(
    digits, undisturbed, tmp_path, caplog
):
    run_until(Trainer(SETTINGS, digits, tmp_path, compile=False), 20)
    (tmp_path / "best-0000018.pt").unlink(missing_ok=True)
    flip_a_bit(tmp_path / "checkpoint-0000018.pt")
    with caplog.at_level(logging.INFO, logger="scorekit"):
        resumed = Trainer(SETTINGS, digits, tmp_path, compile=False)
        resumed.run()
    assert "checkpoint-0000018.pt: its checksum does not agree" in caplog.text
    assert "set aside as checkpoint-0000018.pt.corrupt-1" in caplog.text
    assert "training continues at iteration 12" in caplog.text
    assert (tmp_path / "checkpoint-0000018.pt.corrupt-1").exists()
    assert_same(everything(resumed), everything(undisturbed))


def test_where_every_checkpoint_is_corrupt_the_run_starts_again(
    digits, undisturbed, tmp_path, caplog
):
    run_until(Trainer(SETTINGS, digits, tmp_path, compile=False), 16)
    damaged = [*tmp_path.glob("checkpoint-*.pt"), *tmp_path.glob("best-*.pt")]
    for path in damaged:
        flip_a_bit(path)
    resumed = Trainer(SETTINGS, digits, tmp_path, compile=False)
    resumed.run()
    for path in damaged:
        assert path.name in caplog.text
    assert_same(everything(resumed), everything(undisturbed))


def test_a_checkpoint_of_other_settings_is_refused(digits, tmp_path):
    run_until(Trainer(SETTINGS, digits, tmp_path, compile=False), 12)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for other in ({"learning_rate": 2e-3}, {"seed": 1}, {"test_interval": 8}):
        trainer = Trainer(replace(SETTINGS, **other), digits, tmp_path, compile=False)
        with pytest.raises(OtherSettings, match="iteration 6 is of other settings"):
            trainer.run()
    other_data = replace(digits, fingerprint="0" * 64)
    with pytest.raises(OtherSettings, match="or data"):
        Trainer(SETTINGS, other_data, tmp_path, compile=False).run()
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}


@pytest.mark.parametrize("content", [[1], {"iteration": 6}, {"raw": {}, "ema": {}}])
def test_a_checkpoint_of_other_content_is_set_aside(digits, tmp_path, content, caplog):
    save_tensors(tmp_path / "checkpoint-0000006.pt", content)
    save_tensors(snapshot_path(tmp_path, 6), [content])
    trainer = Trainer(SETTINGS, digits, tmp_path, compile=False)
    run_until(trainer, 7)
    assert {path.name for path in tmp_path.glob("*.corrupt-1")} == {
        "checkpoint-0000006.pt.corrupt-1",
        "snapshot-0000006.pt.corrupt-1",
    }


@pytest.fixture(scope="module")
def begun(digits, tmp_path_factory) -> Path:
    """The folder of a run that was killed after its first checkpoint."""
    folder = tmp_path_factory.mktemp("begun")
    run_until(Trainer(SETTINGS, digits, folder, compile=False), 7)
    return folder


@pytest.mark.parametrize("entry", ["raw", "ema", "optimizer", "losses", "snapshot_s"])
@pytest.mark.parametrize("value", [3, {}, {"x": torch.zeros(2)}])
def test_a_checkpoint_of_other_parts_is_corrupt(digits, begun, tmp_path, entry, value):
    for path in [*begun.glob("checkpoint-*"), *begun.glob("best-*")]:
        save_tensors(tmp_path / path.name, load_tensors(path) | {entry: value})
    with pytest.raises(CorruptFile, match="its checkpoint is not of this training"):
        Trainer(SETTINGS, digits, tmp_path, compile=False).run()


@pytest.mark.parametrize("content", [[], {"raw": 1}, {"ema": 3}, {"ema": {}}])
def test_a_snapshot_of_other_content_is_corrupt(tmp_path, content):
    save_tensors(tmp_path / "snapshot-1.pt", content)
    with pytest.raises(CorruptFile, match=r"snapshot-1\.pt: "):
        load_snapshot(str(tmp_path / "snapshot-1.pt"), SETTINGS, 1, "ema")


# What a run leaves behind


def test_snapshots_hold_raw_and_ema_weights_at_their_iterations(undisturbed):
    assert SETTINGS.snapshot_iterations == [6, 12, 18, 24]
    names = sorted(path.name for path in undisturbed.directory.glob("snapshot-*.pt"))
    assert names == [snapshot_path(Path(), i).name for i in SETTINGS.snapshot_iterations]
    for weights, expected in (("raw", undisturbed.network), ("ema", undisturbed.ema_network)):
        path = snapshot_path(undisturbed.directory, 24)
        network = load_snapshot(path, SETTINGS, 1, weights)
        assert not network.training
        assert_same(network.state_dict(), expected.state_dict())
    first = load_snapshot(snapshot_path(undisturbed.directory, 6), SETTINGS, 1, "raw")
    assert not torch.equal(first.begin_conv.weight, undisturbed.network.begin_conv.weight)


def test_the_last_iteration_is_always_a_snapshot():
    assert replace(SETTINGS, iterations=20).snapshot_iterations == [6, 12, 18, 20]
    assert replace(SETTINGS, iterations=3).snapshot_iterations == [3]


def test_only_the_last_two_checkpoints_and_the_best_are_kept(undisturbed):
    names = {path.name for path in undisturbed.directory.iterdir()}
    snapshots = {snapshot_path(Path(), i).name for i in SETTINGS.snapshot_iterations}
    rest = names - snapshots
    assert {"checkpoint-0000018.pt", "checkpoint-0000024.pt"} <= rest
    others = rest - {"checkpoint-0000018.pt", "checkpoint-0000024.pt"}
    assert len(others) <= 1
    assert all(name.startswith("best-") for name in others)


@pytest.mark.parametrize(
    ("test_losses", "best"),
    [
        ([9.0, 5.0, 7.0, 8.0], 4),
        ([9.0, 8.0, 7.0, 6.0], 8),
        # Seen at 2, 4, 6, 8 with checkpoints at 4 and 8: the better of these two is at 4.
        ([1.0, 5.0, 7.0, 8.0], 4),
    ],
)
def test_the_best_checkpoint_has_the_lowest_test_loss_of_those_saved(
    digits, tmp_path, monkeypatch, test_losses, best
):
    given = iter(test_losses)
    monkeypatch.setattr(Trainer, "_test_loss", lambda self: next(given))
    settings = replace(SETTINGS, iterations=8, snapshot_interval=4, test_interval=2)
    Trainer(settings, digits, tmp_path, compile=False).run()
    assert [p.name for p in tmp_path.glob("best-*")] == [f"best-{best:07d}.pt"]


def test_losses_are_recorded_for_each_iteration_and_test_losses_at_their_interval(undisturbed):
    assert len(undisturbed.losses) == 24
    assert all(np.isfinite(undisturbed.losses))
    assert [iteration for iteration, _ in undisturbed.test_losses] == [4, 8, 12, 16, 20, 24]
    saved = load_tensors(undisturbed.directory / "checkpoint-0000024.pt")
    assert saved["losses"].tolist() == undisturbed.losses
    assert saved["elapsed_s"] > 0


def test_the_seconds_at_each_snapshot_grow_and_survive_a_restart(digits, tmp_path):
    interrupted = Trainer(SETTINGS, digits, tmp_path, compile=False)
    run_until(interrupted, 16)
    before = dict(interrupted.snapshot_s)
    resumed = Trainer(SETTINGS, digits, tmp_path, compile=False)
    resumed.run()
    assert list(resumed.snapshot_s) == SETTINGS.snapshot_iterations
    assert {i: resumed.snapshot_s[i] for i in before} == before != {}
    seconds = list(resumed.snapshot_s.values())
    assert sorted(set(seconds)) == seconds
    assert seconds[-1] == resumed.elapsed_s


def test_a_checkpoint_without_the_seconds_at_snapshots_is_continued(digits, tmp_path):
    run_until(Trainer(SETTINGS, digits, tmp_path, compile=False), 16)
    for path in tmp_path.glob("checkpoint-*.pt"):
        state = load_tensors(path)
        del state["snapshot_s"]
        save_tensors(path, state)
    resumed = Trainer(SETTINGS, digits, tmp_path, compile=False)
    resumed.run()
    assert set(resumed.snapshot_s) == {i for i in SETTINGS.snapshot_iterations if i > 12}


def test_a_damaged_snapshot_is_refused(digits, tmp_path):
    settings = replace(SETTINGS, iterations=1)
    Trainer(settings, digits, tmp_path, compile=False).run()
    path = snapshot_path(tmp_path, 1)
    flip_a_bit(path)
    with pytest.raises(CorruptFile, match="snapshot-0000001"):
        load_snapshot(path, settings, 1, "ema")


@pytest.mark.parametrize("which", ["first", "last", "all"])
@pytest.mark.parametrize("damage", ["gone", "flipped"])
def test_a_lost_snapshot_is_made_again_to_the_bit(digits, tmp_path, which, damage):
    settings = replace(SETTINGS, iterations=6, snapshot_interval=2)
    Trainer(settings, digits, tmp_path, compile=False).run()
    paths = [snapshot_path(tmp_path, i) for i in settings.snapshot_iterations]
    before = [load_tensors(path) for path in paths]
    for path in {"first": paths[:1], "last": paths[-1:], "all": paths}[which]:
        data = bytearray(path.read_bytes())
        data[100] ^= 1
        path.unlink()
        if damage == "flipped":
            path.write_bytes(data)
    Trainer(settings, digits, tmp_path, compile=False).run()
    for path, states in zip(paths, before, strict=True):
        again = load_tensors(path)
        for weights in ("raw", "ema"):
            for name, value in states[weights].items():
                assert torch.equal(again[weights][name], value)


@pytest.mark.parametrize("test_interval", [1, 4])
def test_a_run_that_had_to_go_back_gets_on_however_often_it_is_stopped(
    digits, tmp_path, test_interval
):
    settings = replace(SETTINGS, iterations=12, snapshot_interval=3, test_interval=test_interval)
    whole = Trainer(settings, digits, tmp_path, compile=False)
    whole.run()
    snapshot_path(tmp_path, 3).unlink()
    # No checkpoint is as old; from the beginning, one iteration or two at a time.
    for begun in range(6):
        trainer = Trainer(settings, digits, tmp_path, compile=False)
        asked = iter(range(3))
        try:
            trainer.run(stop=lambda asked=asked: next(asked, 0) == 2)
        except Stopped:
            assert trainer.iteration == 2 * (begun + 1)
        else:
            break
    assert snapshot_path(tmp_path, 3).exists()
    again = Trainer(settings, digits, tmp_path, compile=False)
    again.run()
    assert_same(everything(again), everything(whole))


def test_finite_differences_continue_bit_for_bit(digits, tmp_path) -> None:
    settings = replace(SETTINGS, objective="fd_ssm_vr", iterations=12)
    whole = Trainer(settings, digits, tmp_path / "whole", compile=False)
    whole.run()
    run_until(Trainer(settings, digits, tmp_path / "cut", compile=False), 8)
    again = Trainer(settings, digits, tmp_path / "cut", compile=False)
    again.run()
    assert again.losses == whole.losses
    assert_same(again.network.state_dict(), whole.network.state_dict())
