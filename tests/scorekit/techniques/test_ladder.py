"""Ladders: Techniques 1, 2 and 4 as one, and what is given in place of one of them."""

import math
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scorekit.techniques.ladder import STEP_RULES, Ladder
from scorekit.techniques.noise_scales import geometric_sigmas, ladder_ratio
from scorekit.techniques.step_size import langevin_step_size, langevin_variance_ratio
from scorekit.techniques.table_4 import published

BY_HAND = Ladder(sigma_begin=5, n_levels=8, n_steps_each=3, step_size=2e-5)


# data set, D, sigma_1, L of Technique 2 at C = 0.5 and at the coverage behind Table 4, T, epsilon
@pytest.mark.parametrize(
    ("name", "dim", "sigma_1", "at_half", "printed", "n_steps", "epsilon"),
    [
        ("cifar10", 3 * 32**2, 50, 219, 232, 5, 6.18e-6),
        ("celeba", 3 * 64**2, 90, 472, 500, 5, 3.34e-6),
        ("church_outdoor", 3 * 96**2, 140, 745, 788, 4, 2.31e-6),
        ("bedroom", 3 * 128**2, 190, 1026, 1086, 3, 1.77e-6),
        ("ffhq", 3 * 256**2, 348, 2182, 2311, 3, 8.93e-7),
    ],
)
def test_the_techniques_give_table_4(name, dim, sigma_1, at_half, printed, n_steps, epsilon):
    row = published("NCSNv2", name)
    made = Ladder.by_techniques(sigma_1, dim, coverage=0.5668, n_steps_each=n_steps)
    assert replace(made, step_size=row.ladder.step_size, step_rule="Table 4") == row.ladder
    assert (made.n_levels, made.step_rule) == (printed, "Technique 4")
    assert float(f"{made.step_size:.2e}") == epsilon
    assert Ladder.by_techniques(sigma_1, dim, n_steps_each=n_steps).n_levels == at_half
    # T from what Table 4 spends on a sample.
    same = Ladder.by_techniques(sigma_1, dim, coverage=0.5668, score_evaluations=row.ladder.n_steps)
    assert same == made


@given(
    sigma_1=st.floats(0.05, 1e3),
    dim=st.integers(10, 10**6),
    coverage=st.floats(0.05, 0.95),
    n_steps=st.integers(1, 50),
)
@settings(max_examples=40, deadline=None)
def test_epsilon_is_that_of_the_ladder_made(sigma_1, dim, coverage, n_steps):
    made = Ladder.by_techniques(sigma_1, dim, coverage=coverage, n_steps_each=n_steps)
    sigmas = geometric_sigmas(sigma_1, 0.01, made.n_levels)
    assert torch.equal(made.sigmas, sigmas) and made.gamma == ladder_ratio(sigmas)
    assert made.step_size == langevin_step_size(made.gamma, 0.01, n_steps)
    assert made.n_steps == made.n_levels * n_steps


def test_what_is_given_stays():
    made = Ladder.by_techniques(
        5, 64, sigma_end=0.02, n_levels=8, n_steps_each=3, score_evaluations=999, step_size=2e-5
    )
    assert made == replace(BY_HAND, sigma_end=0.02)
    assert made.step_rule == "given"
    assert Ladder.by_techniques(5, 64, n_levels=8, score_evaluations=25).n_steps_each == 3


@pytest.mark.parametrize("rule", STEP_RULES)
def test_a_rule_changes_epsilon_alone(rule):
    made = BY_HAND.by_rule(rule)
    assert replace(made, step_size=2e-5, step_rule="given") == BY_HAND
    assert made.step_size == STEP_RULES[rule](BY_HAND.gamma, 0.01, 3) != BY_HAND.step_size
    assert made.step_rule == rule
    if rule == "Technique 4":  # at T = 3 this ladder is too coarse for a root of Eq. (4)
        other = langevin_variance_ratio(1.1 * made.step_size, made.gamma, 0.01, 3)
        best = langevin_variance_ratio(made.step_size, made.gamma, 0.01, 3)
        assert abs(best - 1) < abs(other - 1)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("sigma_begin", 0.01, "sigma_end < sigma_begin"),
        ("sigma_begin", math.nan, "sigma_end < sigma_begin"),
        ("sigma_end", -1, "sigma_end < sigma_begin"),
        ("n_levels", 1, "n_levels = 1 must be at least 2"),
        ("n_steps_each", 0, "n_steps_each = 0 must be at least 1"),
    ],
)
def test_what_is_no_ladder_is_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        replace(BY_HAND, **{field: value})
    with pytest.raises(FrozenInstanceError):
        setattr(BY_HAND, field, value)


def test_a_ladder_needs_something_that_t_follows_from():
    with pytest.raises(ValueError, match="n_steps_each or score_evaluations is needed"):
        Ladder.by_techniques(5, 64)
    with pytest.raises(ValueError, match="coverage = 2"):
        Ladder.by_techniques(5, 64, coverage=2, n_steps_each=1)


def test_a_ladder_by_another_schedule_descends_between_the_same_ends():
    karras = replace(BY_HAND, schedule="rho")
    sigmas = karras.sigmas.double()
    # Karras et al. 2022, Eq. 5: the seventh roots are evenly spaced.
    roots = sigmas ** (1 / 7)
    torch.testing.assert_close(
        roots.diff(), torch.full((7,), float(roots[-1] - roots[0]) / 7).double(), rtol=1e-4, atol=0
    )
    assert (float(sigmas[0]), float(sigmas[-1])) == (5, pytest.approx(0.01))
    assert karras.gamma == pytest.approx(float((sigmas[:-1] / sigmas[1:]).max()))
    assert karras.gamma > BY_HAND.gamma
    with pytest.raises(ValueError, match="schedule = 'linear': one of geometric, rho"):
        replace(BY_HAND, schedule="linear")


def test_the_rule_of_a_ratio_leaves_epsilon_to_the_sampler():
    made = BY_HAND.by_rule("snr")
    assert (made.step_size, made.step_rule, made.snr) == (0, "snr", 0.16)
    assert replace(BY_HAND, snr=0.1).by_rule("snr").snr == 0.1
    assert made.by_rule("Technique 4").snr is None
    with pytest.raises(ValueError, match="snr = 0 must be greater than 0"):
        replace(BY_HAND, snr=0)
    with pytest.raises(ValueError, match=r"step_rule = 'best': one of Technique 4, .*snr"):
        BY_HAND.by_rule("best")
