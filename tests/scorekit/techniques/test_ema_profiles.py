"""Averages by other profiles, against direct averaging, and any width from two that were kept."""

import math

import numpy as np
import pytest
import torch

from scorekit.techniques.ema import ema_update
from scorekit.techniques.ema_profiles import (
    MAX_WIDTH,
    parse_ema,
    posthoc_average,
    posthoc_fit,
    power_gamma,
    power_width,
)

NAMES = ["0.9", "ramp:0.99", "power:0.05", "power:0.10", "power:0.2886"]


def path(iterations: int, seed: int = 0) -> torch.Tensor:
    """Weights on their way, float64 (T + 1, 5)."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(iterations + 1, 5, generator=generator, dtype=torch.float64)
    return steps.cumsum(0)


def averaged(name: str, thetas: torch.Tensor) -> list[torch.Tensor]:
    """The average after 0, 1, ... T iterations, by updates."""
    profile, average = parse_ema(name), thetas[0].clone()
    found = [average.clone()]
    for t, theta in enumerate(thetas[1:], start=1):
        ema_update([average], [theta], profile.momentum(t))
        found.append(average.clone())
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("iterations", [1, 2, 60])
def test_updates_come_to_the_weighted_sum(name, iterations):
    thetas = path(iterations)
    weights = parse_ema(name).weights(iterations)
    assert weights.shape == (iterations + 1,) and weights.sum() == pytest.approx(1, abs=1e-12)
    expected = torch.from_numpy(weights) @ thetas
    torch.testing.assert_close(averaged(name, thetas)[-1], expected, rtol=1e-9, atol=1e-9)


def test_momenta_are_their_formulas():
    gamma = parse_ema("power:0.05").number
    assert [parse_ema("power:0.05").momentum(t) for t in (1, 2, 50)] == pytest.approx(
        [0, 0.5 ** (gamma + 1), 0.98 ** (gamma + 1)]
    )
    assert [parse_ema("ramp:0.9").momentum(t) for t in (1, 10, 1000)] == [2 / 11, 11 / 20, 0.9]
    assert [parse_ema("0.9").momentum(t) for t in (1, 1000)] == [0.9, 0.9]


@pytest.mark.parametrize(("width", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_the_widths_of_the_paper_have_its_exponents(width, gamma):
    # Karras et al. 2023, Sec. 3.1.
    assert power_gamma(width) == pytest.approx(gamma, abs=0.005)
    assert parse_ema(f"power:{width}").number == power_gamma(width)


@pytest.mark.parametrize("width", [0.001, 0.02, 0.1, 0.25, MAX_WIDTH])
def test_a_width_gives_the_exponent_that_gives_the_width(width):
    assert power_width(power_gamma(width)) == pytest.approx(width, rel=1e-6)
    profile = parse_ema(f"power:{width!r}")
    assert profile.relative_width(20_000) == pytest.approx(width, rel=5e-3)


def test_all_weights_count_alike_in_the_widest_power_function():
    assert power_gamma(MAX_WIDTH) == pytest.approx(0, abs=1e-6)
    weights = parse_ema(f"power:{MAX_WIDTH!r}").weights(8)
    assert weights == pytest.approx([0, *[1 / 8] * 8], abs=1e-6)


@pytest.mark.parametrize(
    ("name", "iterations", "width"),
    [
        ("0.999", 300_000, 1 / 300),  # the paper's
        ("0.997", 1800, 0.18),  # the quick budget's
        ("0", 50, 0.0),
    ],
)
def test_relative_widths_of_momenta(name, iterations, width):
    found = parse_ema(name).relative_width(iterations)
    assert found == pytest.approx(width, rel=0.03, abs=1e-9)


def test_a_ramp_becomes_its_momentum():
    ramp, constant = parse_ema("ramp:0.99").weights(5000), parse_ema("0.99").weights(5000)
    assert ramp[-500:] == pytest.approx(constant[-500:], rel=1e-9)
    # It forgets the initial weights, of which the constant one still has 0.99^50.
    assert parse_ema("ramp:0.99").weights(50)[0] < 1e-6 < parse_ema("0.99").weights(50)[0]


@pytest.mark.parametrize("target", ["power:0.03", "power:0.07", "power:0.10", "power:0.2"])
def test_any_width_is_made_of_two_that_were_kept(target):
    """Karras et al. 2023, Sec. 3.2: widths 0.05 and 0.10 at snapshots, here 16 of them."""
    iterations, every = 800, 50
    thetas = path(iterations)
    kept, states = [], []
    for name in ("power:0.05", "power:0.10"):
        by_iteration = averaged(name, thetas)
        for t in range(every, iterations + 1, every):
            kept.append((parse_ema(name), t))
            states.append({"theta": by_iteration[t], "buffer": torch.tensor([1.5])})
    fit = posthoc_fit(kept, parse_ema(target), iterations)
    assert fit.coefficients.sum() == pytest.approx(1, abs=1e-9)
    assert fit.residual < 0.06
    made = posthoc_average(states, fit.coefficients)
    direct = averaged(target, thetas)[-1]
    spread = float((thetas[-1] - direct).norm())
    assert float((made["theta"] - direct).norm()) < 0.02 * spread
    assert torch.equal(made["buffer"], torch.tensor([1.5]))


def test_an_average_that_was_kept_is_itself():
    kept = [(parse_ema("power:0.05"), 40), (parse_ema("power:0.10"), 40)]
    fit = posthoc_fit(kept, parse_ema("power:0.10"), 40)
    assert fit.coefficients == pytest.approx([0, 1], abs=1e-9) and fit.residual < 1e-9
    # A width between them is not made of two averages alone, and the residual tells.
    assert posthoc_fit(kept, parse_ema("power:0.2"), 40).residual > 0.1
    alone = posthoc_fit(kept[:1], parse_ema("power:0.2"), 40)
    assert alone.coefficients == pytest.approx([1]) and alone.residual > 0.5


def test_a_momentum_is_made_of_power_functions_too():
    kept = [(parse_ema(n), t) for n in ("power:0.05", "power:0.10") for t in range(20, 401, 20)]
    fit = posthoc_fit(kept, parse_ema("0.97"), 400)
    thetas = path(400)
    states = [{"theta": averaged(p.name, thetas)[t]} for p, t in kept]
    direct = averaged("0.97", thetas)[-1]
    made = posthoc_average(states, fit.coefficients)["theta"]
    assert float((made - direct).norm()) < 0.1 * float((thetas[-1] - direct).norm())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1.0", r"ema = '1.0': ema_momentum = 1.0 must lie in \[0, 1\)"),
        ("power:0.3", r"ema = 'power:0.3': relative width = 0.3 must lie in \(0, 0.2887\]"),
        ("power:0", "relative width = 0.0 must lie in"),
        ("power:", "ema = 'power:': could not convert"),
        ("ramp:1.5", "ema_momentum = 1.5 must lie in"),
        ("cosine:0.9", "ema = 'cosine:0.9': a momentum, 0.999, or ramp:0.999, or a width"),
        ("", "ema = '': could not convert"),
        ("nan", "ema_momentum = nan must lie in"),
    ],
)
def test_words_without_meaning_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_ema(text)


def test_fits_of_nothing_and_of_later_averages_are_refused():
    target = parse_ema("power:0.1")
    with pytest.raises(ValueError, match="at least 1 is needed"):
        posthoc_fit([], target, 10)
    with pytest.raises(ValueError, match="iteration 11 has no part in one of 10"):
        posthoc_fit([(target, 11)], target, 10)
    with pytest.raises(ValueError, match="2 states and 1 coefficients"):
        posthoc_average([{}, {}], [1.0])
    with pytest.raises(ValueError, match="do not hold the same names"):
        posthoc_average([{"a": torch.ones(1)}, {"b": torch.ones(1)}], [0.5, 0.5])


def test_weights_of_every_profile_are_exact_for_many_iterations():
    for name in NAMES:
        weights = parse_ema(name).weights(100_000)
        assert np.isfinite(weights).all() and (weights >= 0).all()
        assert math.fsum(weights) == pytest.approx(1, abs=1e-9)
