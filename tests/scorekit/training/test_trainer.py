"""Training: a function of its settings, stopped by divergence."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_training import FEW_BLOCKS, SETTINGS, assert_same, everything

from kernels.philox import Stream, philox_integers, philox_key, philox_normal
from kernels.precision import float32_precision
from scorekit.checkpoints.store import snapshot_path
from scorekit.checkpoints.tensors import load_tensors
from scorekit.models.score_network import ARCHITECTURES
from scorekit.objectives.directions import projections
from scorekit.objectives.score_matching import annealed_score_matching_loss
from scorekit.runtime.compilation import compile_unavailable_reason
from scorekit.runtime.interruption import Diverged
from scorekit.techniques.ema import ema_update
from scorekit.training import loss as loss_module
from scorekit.training import objectives
from scorekit.training.batches import augment
from scorekit.training.trainer import Trainer

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
    original = objectives.keyed_dsm_loss

    def failing(*arguments):
        calls.append(None)
        loss = original(*arguments)
        return loss * float("nan") if len(calls) == 15 else loss

    monkeypatch.setattr(objectives, "keyed_dsm_loss", failing)
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


def compare_compiled(settings, data, folder, rel: float) -> None:
    """A compiled run is one graph and gives the eager run's losses to a relative error."""
    eager = Trainer(settings, data, folder / "eager", compile=False)
    eager.run()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    trainer = Trainer(settings, data, folder / "compiled")
    trainer.run()
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    assert trainer.compile_s > 0
    assert trainer.elapsed_s > 0
    assert eager.compile_s == 0
    assert trainer.losses == pytest.approx(eager.losses, rel=rel)


@pytest.mark.slow
@pytest.mark.skipif(compile_unavailable_reason() is not None, reason="torch.compile does not work")
@pytest.mark.parametrize("blocks", ["few", "all, traced"])
def test_a_compiled_run_is_one_graph_and_agrees_with_the_eager_one(
    digits, tmp_path, monkeypatch, request, blocks
):
    settings = SETTINGS
    if blocks == "few":
        monkeypatch.setitem(ARCHITECTURES, "few", FEW_BLOCKS)
        settings = replace(settings, architecture="few")
    else:
        request.getfixturevalue("traced")
    # Batches of 8 run across the end of a tiny epoch, which therefore has no short one.
    compare_compiled(settings, replace(digits, train=digits.train[:20]), tmp_path, rel=1e-3)


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

    original = objectives.keyed_dsm_loss
    monkeypatch.setattr(objectives, "keyed_dsm_loss", spy)
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


SLICED = ("ssm", "ssm_vr", "fd_ssm", "fd_ssm_vr")


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("objective", ["exact_sm", *SLICED])
def test_a_step_takes_the_annealed_loss_of_its_objective(
    objective, conditional, digits, tmp_path, monkeypatch
) -> None:
    settings = replace(SETTINGS, objective=objective, conditional=conditional, batch_size=3)
    if objective == "exact_sm":  # as many directions as pixels
        monkeypatch.setitem(ARCHITECTURES, "few", FEW_BLOCKS)
        settings = replace(settings, architecture="few")
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
def test_compiled_finite_differences_train_as_eager_ones(digits, tmp_path, traced) -> None:
    settings = replace(SETTINGS, objective="fd_ssm_vr", iterations=6)
    # Adam's first steps take the sign of gradients that are nothing but rounding. A trace term
    # without its gradient shows far above that: 5 % at the second step, 16 % at the fourth.
    compare_compiled(settings, digits, tmp_path, rel=2e-2)
