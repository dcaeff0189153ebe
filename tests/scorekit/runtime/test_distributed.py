"""Several processes as one: the same training, the same samples, one end."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ranks import exit_codes, run_ranks, start_ranks
from tiny_training import FEW_BLOCKS, SETTINGS

from scorekit.checkpoints.store import snapshot_path
from scorekit.checkpoints.tensors import load_tensors
from scorekit.data.registry import prepare
from scorekit.data.store import Dataset
from scorekit.models.score_network import ARCHITECTURES
from scorekit.runtime.distributed import RankDied, World, current_world
from scorekit.runtime.interruption import Diverged, Stopped
from scorekit.training.gradients import GradientSum, micro_batches
from scorekit.training.trainer import Trainer

# A batch's gradients are summed in another order, which changes their last bits. Adam divides a
# gradient by its size, so that a weight whose gradient is next to zero may move otherwise by a part
# of a step (1e-3): a twentieth of one is allowed. Another split of the batch, or other noise,
# changes whole steps, and losses in their first digits.
WEIGHTS = {"rtol": 1e-4, "atol": 5e-5}


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Dataset:
    return prepare("digits", tmp_path_factory.mktemp("data"))


def load(folder: Path) -> Dataset:
    return prepare("digits", folder)


def train(world, settings, data, directory, accumulation=1, stop_rank=None, stop_at=None):
    with pytest.MonkeyPatch.context() as patch:
        # Sums over ranks and micro-batches are the same for however many blocks.
        patch.setitem(ARCHITECTURES, settings.architecture, FEW_BLOCKS)
        trainer = Trainer(
            settings,
            load(data),
            directory,
            compile=False,
            world=world,
            accumulation=accumulation,
        )
        asked = iter(range(10**6))

        def stop() -> bool:
            return world.rank == stop_rank and next(asked) == stop_at

        if stop_at is None:
            trainer.run(stop=stop)
        else:
            with pytest.raises(Stopped, match=f"at iteration {stop_at} "):
                trainer.run(stop=stop)
    state = {
        "losses": trainer.losses,
        "test_losses": trainer.test_losses,
        "raw": [p.detach() for p in trainer.network.parameters()],
        "ema": list(trainer.ema_network.parameters()),
    }
    torch.save(state, directory / f"rank-{world.rank}.pt")


def trained(directory: Path, rank: int = 0) -> dict:
    return torch.load(directory / f"rank-{rank}.pt", weights_only=False)


def alone(settings, digits, directory: Path) -> dict:
    train(World(), settings, digits.directory.parent, directory)
    return trained(directory)


def assert_close(state: dict, expected: dict, loss_rtol: float = 1e-4) -> None:
    assert len(state["losses"]) == len(expected["losses"])
    assert state["losses"] == pytest.approx(expected["losses"], rel=loss_rtol)
    assert [i for i, _ in state["test_losses"]] == [i for i, _ in expected["test_losses"]]
    for (_, ours), (_, theirs) in zip(state["test_losses"], expected["test_losses"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    for weights in ("raw", "ema"):
        for ours, theirs in zip(state[weights], expected[weights], strict=True):
            torch.testing.assert_close(ours, theirs, **WEIGHTS)


def assert_identical(state: dict, expected: dict) -> None:
    assert state["losses"] == expected["losses"]
    assert state["test_losses"] == expected["test_losses"]
    for weights in ("raw", "ema"):
        for ours, theirs in zip(state[weights], expected[weights], strict=True):
            assert torch.equal(ours, theirs)


# Places


def test_a_process_without_torchruns_variables_is_alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert current_world() == World(rank=0, size=1, local_rank=0)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "0"}, "WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT must be set"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE = 'two' must be a whole number"),
        ({"RANK": "2"}, r"RANK = 2 must lie in \[0, WORLD_SIZE = 2\)"),
        ({"MASTER_PORT": "x"}, "MASTER_PORT = 'x'"),
        ({"WORLD_SIZE": "0", "RANK": "0"}, "WORLD_SIZE = 0 must be at least 1"),
    ],
)
def test_a_place_that_cannot_be_is_refused(monkeypatch, variables, message):
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    whole = dict(zip(names, ("1", "2", "1", "localhost", "29500"), strict=True))
    for name in names:
        monkeypatch.delenv(name, raising=False)
    given = (
        variables
        if len(variables) == 1 and "RANK" in variables and variables["RANK"] == "0"
        else whole | variables
    )
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        current_world()


@pytest.mark.parametrize("n", [0, 1, 2, 7, 100])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_shares_are_all_of_it_once_and_differ_by_one(n, size):
    shares = [World(rank=rank, size=size).share(n) for rank in range(size)]
    assert [i for a, b in shares for i in range(a, b)] == list(range(n))
    lengths = [b - a for a, b in shares]
    assert max(lengths) - min(lengths) <= 1
    parts = micro_batches(n, size)
    assert [i for a, b in parts for i in range(a, b)] == list(range(n))


# Training


@pytest.fixture(scope="module")
def seven(digits, tmp_path_factory) -> dict:
    """One process's run with batches of seven, which no number of ranks here divides."""
    return alone(replace(SETTINGS, batch_size=7), digits, tmp_path_factory.mktemp("seven"))


def test_ranks_train_as_one_process_does(digits, seven, tmp_path):
    settings = replace(SETTINGS, batch_size=7)
    run_ranks(3, train, settings, digits.directory.parent, tmp_path)
    assert_close(trained(tmp_path), seven)
    for rank in (1, 2):
        assert_identical(trained(tmp_path, rank), trained(tmp_path))
    snapshots = sorted(path.name for path in tmp_path.glob("snapshot-*.pt"))
    assert snapshots == [snapshot_path(tmp_path, i).name for i in settings.snapshot_iterations]
    assert load_tensors(tmp_path / "checkpoint-0000024.pt")["iteration"] == 24


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": "ssm_vr", "iterations": 6, "conditional": True},
        {"objective": "fd_ssm_vr", "iterations": 6, "dequantisation": "uniform"},
        {"objective": "dsm", "iterations": 6, "amsgrad": True},
    ],
    ids=lambda changes: changes["objective"],
)
def test_objectives_go_the_same_way_over_ranks_and_micro_batches(digits, tmp_path, changes):
    settings = replace(
        SETTINGS, **{"batch_size": 7, "snapshot_interval": 3, "test_interval": 2, **changes}
    )
    expected = alone(settings, digits, tmp_path)
    # A finite difference divides the rounding of neighbouring scores by its displacement.
    rtol = 2e-2 if settings.objective.startswith("fd_") else 1e-4
    (tmp_path / "micro").mkdir()
    train(World(), settings, digits.directory.parent, tmp_path / "micro", accumulation=3)
    assert_close(trained(tmp_path / "micro"), expected, rtol)
    (tmp_path / "both").mkdir()
    run_ranks(2, train, settings, digits.directory.parent, tmp_path / "both", 2)
    assert_close(trained(tmp_path / "both"), expected, rtol)


@pytest.mark.parametrize(("before", "after"), [(1, 2), (3, 1)])
def test_a_run_continues_on_another_number_of_ranks(digits, seven, tmp_path, before, after):
    settings = replace(SETTINGS, batch_size=7)
    data = digits.directory.parent
    run_ranks(before, train, settings, data, tmp_path, 1, before - 1, 9)
    assert len(list(tmp_path.glob("interim-*9.pt"))) == 1
    run_ranks(after, train, settings, data, tmp_path)
    assert_close(trained(tmp_path), seven)


def test_ranks_that_were_stopped_continue_bit_for_bit(digits, tmp_path):
    """The same number of ranks adds in the same order: nothing may differ."""
    settings = replace(SETTINGS, batch_size=7)
    data = digits.directory.parent
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    run_ranks(2, train, settings, data, tmp_path / "whole")
    run_ranks(2, train, settings, data, tmp_path / "parts", 1, 1, 9)
    run_ranks(2, train, settings, data, tmp_path / "parts")
    assert_identical(trained(tmp_path / "parts"), trained(tmp_path / "whole"))


def diverge(world, data, directory):
    settings = replace(SETTINGS, learning_rate=1e30, batch_size=7, test_interval=5)
    with pytest.raises(Diverged) as error:
        Trainer(settings, load(data), directory, compile=False, world=world).run()
    (directory / f"rank-{world.rank}.txt").write_text(str(error.value))


def test_divergence_is_found_by_all_ranks_at_once(digits, tmp_path):
    run_ranks(3, diverge, digits.directory.parent, tmp_path)
    messages = {path.read_text() for path in tmp_path.glob("rank-*.txt")}
    assert len(list(tmp_path.glob("rank-*.txt"))) == 3
    assert len(messages) == 1
    assert "training diverged" in messages.pop()


@pytest.mark.parametrize("accumulation", [0, -1, 8])
def test_micro_batches_that_cannot_be_are_refused(digits, tmp_path, accumulation):
    settings = replace(SETTINGS, batch_size=7)
    with pytest.raises(ValueError, match=f"accumulation = {accumulation}"):
        Trainer(settings, digits, tmp_path / "run", accumulation=accumulation)
    with pytest.raises(ValueError, match="needs a batch of at least 8 images; batch_size = 7"):
        Trainer(settings, digits, tmp_path / "run", accumulation=4, world=World(size=2))
    assert not (tmp_path / "run").exists()


def test_a_sum_of_gradients_is_that_of_the_whole_batch():
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(16, 1), torch.nn.Linear(1, 1)
    ).to(memory_format=torch.channels_last)
    unused = torch.nn.Parameter(torch.ones(2))
    parameters = [*network.parameters(), unused]
    x = torch.randn(6, 3, 4, 4)
    network(x).square().sum().backward()
    expected = [None if p.grad is None else p.grad.clone() for p in parameters]
    total = GradientSum(parameters, World())
    for _ in range(2):  # a second sum knows nothing of the first
        for p in parameters:
            p.grad = None
        total.clear()
        for part in x.split([1, 3, 2]):
            loss = network(part).square().sum()
            loss.backward()
            total.add(loss)
        loss = total.finish()
    assert loss == pytest.approx(float(network(x).detach().square().sum()), rel=1e-5)
    assert unused.grad is None
    for p, gradient in zip(parameters[:-1], expected[:-1], strict=True):
        assert p.grad.stride() == p.stride()
        torch.testing.assert_close(p.grad, gradient, rtol=1e-5, atol=1e-5)


# Deaths


def wait_or_die(world, directory, how, where):
    (directory / f"pid-{world.rank}").write_text(str(os.getpid()))
    if world.rank == 1 and how == "raise":
        time.sleep(0.5)
        raise ValueError("only here")
    if where == "collective":
        world.broadcast(None)
        world.add_(torch.zeros(1)) if world.rank != 1 else time.sleep(600)
    else:
        time.sleep(600)


@pytest.mark.parametrize("where", ["collective", "elsewhere"])
@pytest.mark.parametrize("how", ["kill", "raise"])
def test_a_rank_that_is_gone_takes_the_others_down_in_seconds(tmp_path, how, where):
    if how == "raise" and where == "collective":
        where = "elsewhere"
    processes = start_ranks(3, wait_or_die, tmp_path, how, where)
    if how == "kill":
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("pid-*"))) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)
        os.kill(int((tmp_path / "pid-1").read_text()), signal.SIGKILL)
    codes = exit_codes(processes, timeout=60)  # of the 600 s that they would wait otherwise
    assert codes == [1, -signal.SIGKILL if how == "kill" else 1, 1]


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (RuntimeError("[/pytorch/third_party/gloo/pair.cc:1] Connection closed"), RankDied),
        (torch.distributed.DistBackendError("NCCL communicator was aborted"), RankDied),
        (torch.OutOfMemoryError("CUDA out of memory"), torch.OutOfMemoryError),
        (RuntimeError("shapes differ"), RuntimeError),
    ],
)
def test_only_what_tells_of_other_ranks_is_called_a_death(monkeypatch, error, raised):
    def fail(*_):
        raise error

    monkeypatch.setattr("torch.distributed.all_reduce", fail)
    with pytest.raises(raised) as caught:
        World(rank=0, size=2).add_(torch.zeros(1))
    assert type(caught.value) is raised
