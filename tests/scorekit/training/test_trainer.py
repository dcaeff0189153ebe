"""Training: resumable bit for bit, stopped by divergence, a function of its settings."""

import logging
import os
import pickle
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
from tiny_training import SETTINGS

from kernels.philox import Stream, philox_integers, philox_key, philox_normal
from kernels.precision import float32_precision
from scorekit.checkpoints.store import snapshot_path
from scorekit.checkpoints.tensors import load_tensors, save_tensors
from scorekit.data.registry import prepare
from scorekit.files import CorruptFile
from scorekit.objectives.directions import projections
from scorekit.objectives.score_matching import annealed_score_matching_loss
from scorekit.runtime.compilation import compile_unavailable_reason
from scorekit.runtime.interruption import Diverged, Stopped
from scorekit.techniques.ema import ema_update
from scorekit.training import loss as loss_module
from scorekit.training.batches import augment
from scorekit.training.networks import load_snapshot
from scorekit.training.settings import OtherSettings
from scorekit.training.trainer import Trainer


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return prepare("digits", tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def undisturbed(digits, tmp_path_factory) -> Trainer:
    trainer = Trainer(SETTINGS, digits, tmp_path_factory.mktemp("whole"), compile=False)
    trainer.run()
    return trainer


class Interrupted(Exception):
    pass


def run_until(trainer: Trainer, stop: int) -> None:
    def progress(iteration: int, loss: float) -> None:
        if iteration >= stop:
            raise Interrupted

    with pytest.raises(Interrupted):
        trainer.run(progress)


def flatten(state, prefix: str = "") -> dict:
    if isinstance(state, dict):
        items = state.items()
    elif isinstance(state, list | tuple):
        items = enumerate(state)
    else:
        return {prefix: state}
    return {k: v for name, value in items for k, v in flatten(value, f"{prefix}.{name}").items()}


def assert_same(state, expected) -> None:
    state, expected = flatten(state), flatten(expected)
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(state[name], value), name
        else:
            assert state[name] == value, name


def everything(trainer: Trainer) -> dict:
    return {
        "iteration": trainer.iteration,
        "losses": trainer.losses,
        "test_losses": trainer.test_losses,
        "raw": trainer.network.state_dict(),
        "ema": trainer.ema_network.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
    }


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))


# Resuming


@pytest.mark.parametrize("stop", [4, 6, 8, 12, 20, 24])
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


@pytest.mark.parametrize("at", range(24))
def test_a_run_stopped_at_any_iteration_continues_bit_for_bit(digits, undisturbed, tmp_path, at):
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
        from scorekit.data.registry import prepare
        from scorekit.training.settings import TrainSettings
        from scorekit.training.trainer import Trainer
        torch.set_num_threads({torch.get_num_threads()})
        settings = TrainSettings(**{vars(SETTINGS)!r})
        dataset = prepare("digits", {str(digits.directory.parent)!r})
        def progress(iteration, loss):
            print(iteration, flush=True)
        Trainer(settings, dataset, Path({str(directory)!r}), compile=False).run(progress)
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
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


@pytest.mark.parametrize("entry", ["raw", "ema", "optimizer", "losses", "snapshot_s"])
@pytest.mark.parametrize("value", [3, {}, {"x": torch.zeros(2)}])
def test_a_checkpoint_of_other_parts_is_corrupt(digits, tmp_path, entry, value):
    run_until(Trainer(SETTINGS, digits, tmp_path, compile=False), 7)
    for path in [*tmp_path.glob("checkpoint-*"), *tmp_path.glob("best-*")]:
        save_tensors(path, load_tensors(path) | {entry: value})
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


# Learning


def test_the_loss_goes_down(digits, tmp_path):
    settings = replace(
        SETTINGS, iterations=60, batch_size=16, snapshot_interval=60, test_interval=60
    )
    trainer = Trainer(settings, digits, tmp_path, compile=False)
    trainer.run()
    assert np.mean(trainer.losses[-20:]) < 0.9 * np.mean(trainer.losses[:20])


def test_ema_weights_are_the_average_of_the_weights_after_each_step(digits, tmp_path, monkeypatch):
    seen = []

    def spy(averaged, parameters, momentum):
        parameters = list(parameters)
        seen.append([p.detach().double().clone() for p in parameters])
        ema_update(averaged, parameters, momentum)

    monkeypatch.setattr("scorekit.training.trainer.ema_update", spy)
    settings = replace(SETTINGS, iterations=5, ema_momentum=0.9)
    trainer = Trainer(settings, digits, tmp_path, compile=False)
    average = [p.detach().double().clone() for p in trainer.network.parameters()]
    trainer.run()
    assert len(seen) == 5
    for parameters in seen:
        average = [0.9 * a + 0.1 * p for a, p in zip(average, parameters, strict=True)]
    for ours, expected in zip(trainer.ema_network.parameters(), average, strict=True):
        torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-6)


def test_the_seed_and_nothing_else_decides_the_run(digits, tmp_path):
    settings = replace(SETTINGS, iterations=4)
    runs = []
    for name, seed, disturbance in (("a", 0, 1), ("b", 0, 2), ("c", 1, 1)):
        torch.manual_seed(disturbance)
        np.random.seed(disturbance)
        before = torch.random.get_rng_state()
        trainer = Trainer(replace(settings, seed=seed), digits, tmp_path / name, compile=False)
        trainer.run()
        assert torch.equal(torch.random.get_rng_state(), before)
        runs.append(trainer)
    assert_same(everything(runs[1]), everything(runs[0]))
    assert runs[2].losses != runs[0].losses


@pytest.mark.parametrize("batch_size", [23, 64, 100, 250])
def test_each_epoch_visits_every_image_once(digits, tmp_path, monkeypatch, batch_size):
    small = replace(digits, train=digits.train[:100])
    batches = []
    original = loss_module.augment

    def spy(images, **options):
        batches.append(images.clone())
        return original(images, **options)

    monkeypatch.setattr(loss_module, "augment", spy)
    iterations = -(-300 // batch_size)
    settings = replace(
        SETTINGS,
        batch_size=batch_size,
        iterations=iterations,
        test_interval=iterations + 1,
        snapshot_interval=iterations,
    )
    Trainer(settings, small, tmp_path, compile=False).run()
    assert all(len(batch) == batch_size for batch in batches)
    assert len(np.unique(small.train, axis=0)) == 100
    visited = torch.cat(batches).numpy()
    epochs = [visited[start : start + 100] for start in range(0, 300, 100)]
    for epoch in epochs:
        assert len(np.unique(epoch, axis=0)) == 100
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[1], epochs[2])


def test_the_test_loss_is_of_the_ema_weights_on_plain_images(digits, tmp_path, monkeypatch):
    """A momentum near 1 leaves the initial weights, whose test loss is then the same each time."""
    settings = replace(SETTINGS, iterations=8, ema_momentum=1 - 1e-12, test_interval=2)
    trainer = Trainer(settings, digits, tmp_path, compile=False)
    trainer.run()
    values = [loss for _, loss in trainer.test_losses]
    assert values == pytest.approx([values[0]] * 4, rel=1e-5)


# Divergence


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(
    digits, tmp_path, monkeypatch
):
    calls = []
    original = loss_module.keyed_dsm_loss

    def failing(*arguments):
        calls.append(None)
        loss = original(*arguments)
        return loss * float("nan") if len(calls) == 15 else loss

    monkeypatch.setattr(loss_module, "keyed_dsm_loss", failing)
    settings = replace(SETTINGS, test_interval=100)
    with pytest.raises(Diverged, match=r"the loss is nan at iteration 15; .* iteration 12") as e:
        Trainer(settings, digits, tmp_path, compile=False).run()
    assert (e.value.iteration, e.value.last_good) == (15, 12)
    good = load_tensors(tmp_path / "checkpoint-0000012.pt")
    assert good["iteration"] == 12
    assert all(bool(value.isfinite().all()) for value in good["raw"].values())
    assert not (tmp_path / "checkpoint-0000018.pt").exists()
    assert not snapshot_path(tmp_path, 18).exists()


def test_an_absurd_learning_rate_diverges_with_an_error(digits, tmp_path):
    settings = replace(SETTINGS, learning_rate=1e30, iterations=20, test_interval=5)
    with pytest.raises(Diverged, match=r"training diverged: .* at iteration \d+"):
        Trainer(settings, digits, tmp_path, compile=False).run()
    assert list(tmp_path.glob("checkpoint-*.pt")) == []


@pytest.mark.slow
@pytest.mark.skipif(compile_unavailable_reason() is not None, reason="torch.compile does not work")
def test_a_compiled_run_is_one_graph_and_agrees_with_the_eager_one(digits, tmp_path):
    # Batches of 8 run across the end of a tiny epoch, which therefore has no short one.
    few = replace(digits, train=digits.train[:20])
    eager = Trainer(SETTINGS, few, tmp_path / "eager", compile=False)
    eager.run()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    trainer = Trainer(SETTINGS, few, tmp_path / "compiled")
    trainer.run()
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    assert trainer.compile_s > 0
    assert trainer.elapsed_s > 0
    assert eager.compile_s == 0
    assert trainer.losses == pytest.approx(eager.losses, rel=1e-3)


def test_divergence_survives_a_process_boundary():
    error = pickle.loads(pickle.dumps(Diverged(7, "the loss is nan", 5)))
    assert (error.iteration, error.what, error.last_good) == (7, "the loss is nan", 5)
    assert "the loss is nan at iteration 7" in str(error)


# Precision and settings


def test_precision_holds_for_the_backward_pass_too(digits, tmp_path, monkeypatch):
    """Convolutions have TF32 on by default: fp32 must turn it off for gradients as well."""
    seen = {}

    def spy(*arguments):
        loss = original(*arguments)
        conv = torch.backends.cudnn.conv
        seen["forward"] = conv.fp32_precision
        loss.register_hook(lambda g: seen.update(backward=conv.fp32_precision))
        return loss

    original = loss_module.keyed_dsm_loss
    monkeypatch.setattr(loss_module, "keyed_dsm_loss", spy)
    settings = replace(SETTINGS, iterations=1, test_interval=2)
    with float32_precision("tf32"):
        Trainer(settings, digits, tmp_path, compile=False).run()
    assert seen == {"forward": "ieee", "backward": "ieee"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("iterations", 0),
        ("iterations", -5),
        ("batch_size", 0),
        ("snapshot_interval", 0),
        ("test_interval", 0),
        ("learning_rate", 0.0),
        ("learning_rate", -1e-4),
        ("learning_rate", float("inf")),
        ("learning_rate", float("nan")),
        ("adam_eps", 0.0),
        ("adam_eps", float("nan")),
        ("ema_momentum", 1.0),
        ("ema_momentum", -0.1),
        ("ema_momentum", float("nan")),
        ("width", 1),
        ("precision", "fp16"),
        ("dequantisation", "gaussian"),
        ("seed", -1),
        ("seed", 2**32),
        ("sigma_begin", 0.01),
        ("sigma_begin", float("nan")),
        ("sigma_begin", float("inf")),
        ("sigma_end", 0.0),
        ("sigma_end", -1.0),
        ("sigma_end", 5.0),
        ("n_levels", 1),
        ("n_levels", 0),
        ("architecture", "512"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=name):
        replace(SETTINGS, **{name: value})


def test_images_that_do_not_fit_are_refused_before_anything_is_written(digits, tmp_path):
    settings = replace(SETTINGS, architecture="256", width=2)
    odd = replace(digits, train=np.zeros((9, 1, 12, 12), np.uint8))
    with pytest.raises(ValueError, match="image_size = 12 does not fit architecture '256'"):
        Trainer(settings, odd, tmp_path / "odd")
    with pytest.raises(ValueError, match="architecture = '512' is unknown"):
        Trainer(replace(SETTINGS, architecture="512"), digits, tmp_path / "odd")
    assert not (tmp_path / "odd").exists()


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


SLICED = ("ssm", "ssm_vr", "fd_ssm", "fd_ssm_vr")


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("objective", ["exact_sm", *SLICED])
def test_a_step_takes_the_annealed_loss_of_its_objective(
    objective, conditional, digits, tmp_path
) -> None:
    settings = replace(SETTINGS, objective=objective, conditional=conditional, batch_size=3)
    few = replace(digits, train=digits.train[:3])
    trainer = Trainer(settings, few, tmp_path, compile=False)
    network, sigmas = trainer.network, settings.sigmas
    key, index, step = philox_key(0), torch.arange(3), torch.tensor(5)
    order = np.random.Generator(np.random.Philox(key=[0, 5])).permutation(3)
    flip = philox_integers(key, index, step, 2, Stream.FLIP).bool()
    x = augment(torch.from_numpy(np.array(few.train[order])), flip=flip)
    level = philox_integers(key, index, step, len(sigmas), Stream.NOISE_LEVEL)
    v = projections("rademacher", key, index, step, (1, 8, 8)) if objective in SLICED else None
    expected = annealed_score_matching_loss(
        network,
        x,
        sigmas=sigmas,
        noise_index=level,
        noise=philox_normal(key, index, step, (1, 8, 8), Stream.PERTURBATION),
        objective=objective,
        projection=v,
    )
    assert float(trainer.step(5)) == pytest.approx(float(expected.detach().mean()), rel=1e-5)


def test_finite_differences_continue_bit_for_bit(digits, tmp_path) -> None:
    settings = replace(SETTINGS, objective="fd_ssm_vr", iterations=12)
    whole = Trainer(settings, digits, tmp_path / "whole", compile=False)
    whole.run()
    run_until(Trainer(settings, digits, tmp_path / "cut", compile=False), 8)
    again = Trainer(settings, digits, tmp_path / "cut", compile=False)
    again.run()
    assert again.losses == whole.losses
    assert_same(again.network.state_dict(), whole.network.state_dict())


def test_test_losses_are_of_one_objective_whatever_is_trained(digits, tmp_path) -> None:
    losses = []
    for objective in ("dsm", "ssm_vr", "fd_ssm_vr"):
        settings = replace(SETTINGS, objective=objective, learning_rate=1e-12, iterations=1)
        settings = replace(settings, test_interval=1, snapshot_interval=1)
        trainer = Trainer(settings, digits, tmp_path / objective, compile=False)
        trainer.run()
        losses.append(trainer.test_losses[0][1])
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "sm"}, "objective = 'sm' is unknown; known: dsm"),
        ({"objective": "fd_dsm"}, "'fd_dsm' is not defined for a score network"),
        ({"projection": "uniform"}, "projection = 'uniform' is unknown"),
        ({"objective": "fd_ssm", "precision": "bf16"}, "needs precision = 'fp32', not 'bf16'"),
        ({"fd_epsilon": 0.1}, r"only objectives that begin with fd_ .*'dsm'"),
        ({"objective": "fd_ssm", "fd_epsilon": -1.0}, "fd_epsilon = -1.0 must be a positive"),
    ],
)
def test_objectives_that_cannot_be_are_named(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SETTINGS, **changes)


@pytest.mark.slow
@pytest.mark.skipif(compile_unavailable_reason() is not None, reason="torch.compile does not work")
def test_compiled_finite_differences_train_as_eager_ones(digits, tmp_path) -> None:
    settings = replace(SETTINGS, objective="fd_ssm_vr", iterations=6)
    eager = Trainer(settings, digits, tmp_path / "eager", compile=False)
    eager.run()
    torch._dynamo.reset()
    compiled = Trainer(settings, digits, tmp_path / "compiled")
    compiled.run()
    # A trace term without its gradient would show from the second step on.
    assert compiled.losses == pytest.approx(eager.losses, rel=2e-3)
