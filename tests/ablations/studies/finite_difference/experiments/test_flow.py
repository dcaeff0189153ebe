"""Trials of flows: one start for every objective, an exact likelihood, and what they are given."""

import gzip
import math
import struct

import numpy as np
import pytest
import torch
from scipy import stats

from ablations.launch import main
from ablations.studies.finite_difference.experiments.flow import flow
from ablations.studies.finite_difference.trials import FLOW_OBJECTIVES
from scorekit.data.embedded import digits_split
from scorekit.data.pixels import to_float

SETTINGS = {
    **{"dataset": "digits", "device": "cpu", "seed": 0, "iterations": 2, "batch_size": 8},
    **{"width": 6, "n_hidden": 1, "n_couplings": 2, "learning_rate": 1e-3, "epsilon": 0.1},
    **{"sigma": 0.3, "n_held_out": 20, "n_exact": 2, "evaluations": 3},
}
TINY = (
    *("flow_iterations=2", "flow_batch_size=4", "flow_width=4", "flow_held_out=3"),
    *("flow_n_exact=1", "flow_evaluations=2", "implicit_iterations=2", "implicit_warm_up=0"),
    *("implicit_batch_size=4", "implicit_latent_dim=2", "implicit_width=4"),
    *("implicit_held_out=3", "implicit_n_bound=1", "implicit_samples=3"),
)


def train(tmp_path, **changes):
    result, files = flow(SETTINGS | changes, tmp_path, lambda fraction, text: None, tmp_path)
    assert files == []
    return result


def test_every_objective_starts_from_one_flow_and_moves(tmp_path):
    results = {name: train(tmp_path, objective=name, iterations=4) for name in FLOW_OBJECTIVES}
    assert len({result["curve"]["nll"][0] for result in results.values()}) == 1
    assert len({result["curve"]["nll"][-1] for result in results.values()}) == len(results)
    for name, result in results.items():
        assert math.isfinite(result["exact_sm"])
        assert (result["error"] is not None) == name.startswith("fd_")
        assert result["curve"]["iteration"] == [0, 1, 4]
        assert result["curve"]["seconds"] == sorted(result["curve"]["seconds"])


def test_the_start_is_independent_logistic_pixels_of_the_data_s_variance(tmp_path):
    found = train(tmp_path, objective="mle", n_held_out=297)["curve"]["nll"][0]
    train_set, test = (to_float(digits_split(s)[0]).flatten(1).double() for s in ("train", "test"))
    variance = train_set.var(0) + 0.3**2
    generator = torch.Generator().manual_seed(0)
    noisy = test + 0.3 * torch.randn(test.shape, dtype=torch.float64, generator=generator)
    scale = (3 * variance).sqrt() / math.pi
    expected = -stats.logistic.logpdf(noisy.numpy(), train_set.mean(0).numpy(), scale.numpy())
    # Other noise: equal up to a few standard errors.
    error = expected.sum(1).std() / math.sqrt(len(test))
    assert found == pytest.approx(expected.sum(1).mean(), abs=4 * error)


def test_a_small_epsilon_is_sliced_score_matching(tmp_path):
    exact = train(tmp_path, objective="ssm", iterations=4)
    finite = train(tmp_path, objective="fd_ssm", iterations=4, epsilon=0.05)
    assert finite["curve"]["nll"][-1] == pytest.approx(exact["curve"]["nll"][-1], rel=1e-3)


@pytest.mark.slow
def test_maximum_likelihood_and_score_matching_raise_the_likelihood(tmp_path):
    for objective in ("mle", "dsm", "ssm_vr"):
        nll = train(tmp_path, objective=objective, iterations=250, width=32)["curve"]["nll"]
        assert nll[-1] < nll[0] - 0.5


def test_a_flow_that_runs_away_is_named(tmp_path):
    with pytest.raises(FloatingPointError, match="dsm diverged"):
        train(tmp_path, objective="dsm", learning_rate=1e30)


def mnist(root, damaged=False):
    """Write made-up MNIST files where the data root keeps them."""
    folder = root / "raw" / "mnist"
    folder.mkdir(parents=True)
    for name, n in (("train", 6), ("t10k", 4)):
        images = np.random.default_rng(n).integers(0, 256, (n, 28, 28)).astype(np.uint8)
        data = struct.pack(">IIII", 0x803, n, 28, 28) + images.tobytes()
        content = gzip.compress(data[:-9] if damaged else data)
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(content)
    return root


def launch(out, root, *more):
    flags = ["--grid", "finite-difference", "--budget", "quick", "--device", "cpu", "--seeds", "1"]
    sets = [f"--set={pair}" for pair in TINY]
    places = ["--threads", "1", "--out", str(out), "--data-root", str(root)]
    return main([*flags, *places, *sets, "--grid", "fd-flow,fd-implicit", *more])


@pytest.mark.slow
def test_mnist_is_taken_where_it_is(tmp_path):
    only = "flow/mnist/fd_ssm/*,implicit/mnist/*/fd_ssm/*"
    assert launch(tmp_path / "out", mnist(tmp_path / "data"), "--only", only) == 0
    page = (tmp_path / "out" / "report" / "index.html").read_text()
    assert "MNIST, 28×28" in page and "MNIST is not prepared" not in page
    csv = (tmp_path / "out" / "report" / "tables" / "flow.csv").read_text()
    assert 'ours,"MNIST, 28×28",FD-SSM' in csv


def test_damaged_mnist_is_one_line_before_any_work(tmp_path, capsys):
    assert launch(tmp_path / "out", mnist(tmp_path / "data", damaged=True)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "ubyte.gz: is not an idx file of 28x28 images, or is damaged" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("flow_evaluations=1", "flow_evaluations = 1 must be at least 2"),
        ("flow_sigma=-1", "flow_sigma = -1.0 must be a positive number"),
        ("flow_n_couplings=-1", "flow_n_couplings = -1 must be at least 0"),
        ("implicit_samples=1", "implicit_samples = 1 must be at least 2"),
        ("implicit_epsilon=nan", "implicit_epsilon = nan must be a positive number"),
        ("distance_samples=1", "distance_samples = 1 must be at least 2"),
        ("distance_ema_momentum=1.5", "momentum = 1.5 must lie in"),
    ],
)
def test_settings_out_of_range_are_refused_before_any_work(tmp_path, capsys, pair, message):
    assert launch(tmp_path / "out", tmp_path, "--set", pair) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()
