"""C, L, T and epsilon under a budget, and the variance that a whole ladder leaves."""

import numpy as np
import pytest

from scorekit.techniques.frontier import RULES, design, design_frontier
from scorekit.techniques.ladder import Ladder
from scorekit.techniques.noise_scales import coverage
from scorekit.techniques.step_size import (
    ladder_variance_ratios,
    langevin_variance_ratio,
    steady_variance_ratio,
)
from scorekit.techniques.table_4 import published

CIFAR10 = published("NCSNv2", "cifar10").ladder


@pytest.mark.parametrize(("initial", "n_steps"), [(1.0, 3), (0.0, 1), (4.0, 2)])
def test_variances_along_a_ladder_are_those_of_simulated_annealing(initial, n_steps):
    """Langevin dynamics on a point at 0, whose score at sigma is -x / sigma^2."""
    gamma, epsilon, levels = 1.5, 4e-5, 6
    rng = np.random.default_rng(0)
    sigmas = 0.01 * gamma ** np.arange(levels - 1, -1, -1.0)
    x = np.sqrt(initial) * sigmas[0] * rng.normal(size=400_000)
    found = ladder_variance_ratios(epsilon, gamma, 0.01, n_steps, levels, initial=initial)
    assert found.shape == (levels,)
    for sigma, ratio in zip(sigmas, found, strict=True):
        alpha = epsilon * sigma**2 / 0.01**2
        for _ in range(n_steps):
            x = x - alpha * x / sigma**2 + np.sqrt(2 * alpha) * rng.normal(size=x.size)
        assert ratio == pytest.approx(x.var() / sigma**2, rel=0.02)


def test_a_ladder_begins_with_eq_4_and_tends_to_the_steady_state():
    gamma = CIFAR10.gamma
    # One scale after exact samples of the scale before is Eq. (4).
    first = ladder_variance_ratios(6.2e-6, gamma, 0.01, 5, 1, initial=gamma**2)
    assert first[0] == pytest.approx(langevin_variance_ratio(6.2e-6, gamma, 0.01, 5))
    last = ladder_variance_ratios(6.2e-6, gamma, 0.01, 5, 232)[-1]
    assert last == pytest.approx(steady_variance_ratio(6.2e-6, gamma, 0.01, 5), rel=1e-6)


def test_a_design_is_what_each_rule_comes_to():
    made = design(CIFAR10, 3 * 32**2)
    assert made.coverage == pytest.approx(0.567, abs=1e-3)  # as Table 4's L follow from
    assert [step.epsilon for step in made.steps.values()] == pytest.approx(
        [6.18e-6, 1.15e-5], rel=5e-3
    )
    assert [step.steady for step in made.steps.values()] == pytest.approx([1.129, 1.096], abs=1e-3)
    assert made.steps["steady state"].one_scale == pytest.approx(1.066, abs=1e-3)
    once = design(Ladder(sigma_begin=50, n_levels=232, n_steps_each=1, step_size=0.0), 3 * 32**2)
    assert once.steps["Technique 4"].steady == pytest.approx(2, abs=1e-3)


def test_a_frontier_spends_the_budget_and_has_technique_2_in_it():
    designs = design_frontier(4.8, 64, 250)
    shapes = [(made.ladder.n_levels, made.ladder.n_steps_each) for made in designs]
    assert shapes[:3] == [(250, 1), (125, 2), (83, 3)]
    assert [steps for _, steps in shapes] == sorted(steps for _, steps in shapes)
    assert len(set(shapes)) == len(shapes)
    (chosen,) = [made for made in designs if made.chosen]
    assert chosen.ladder == Ladder.by_techniques(4.8, 64, score_evaluations=250)
    for made in designs:
        levels, steps = made.ladder.n_levels, made.ladder.n_steps_each
        assert levels * steps <= 250
        assert made.chosen or (levels + 1) * steps > 250
        assert made.coverage == coverage(made.ladder.gamma, 64)
        assert tuple(made.steps) == RULES
    covered = [made.coverage for made in designs if not made.chosen]
    assert covered == sorted(covered, reverse=True) and 0 < covered[-1] < 0.5 < covered[0]


def test_technique_2_stands_once_where_it_spends_the_budget_too():
    own = Ladder.by_techniques(4.8, 64, score_evaluations=210)
    assert own.n_steps == 210
    designs = design_frontier(4.8, 64, 210)
    assert [made.chosen for made in designs if made.ladder == own] == [True]


def test_a_budget_below_technique_2_has_no_design_of_it():
    designs = design_frontier(50, 3 * 32**2, 100)
    assert not any(made.chosen for made in designs)
    assert designs[0].ladder.n_levels == 100
    with pytest.raises(ValueError, match="evaluations = 1 must be at least 2"):
        design_frontier(50, 3 * 32**2, 1)
