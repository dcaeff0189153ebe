"""C, L, T and epsilon jointly, under a number of score evaluations: what each T costs in coverage.

Techniques 2 and 4 choose L first and leave T what is over (Song & Ermon 2020, Sec. 3.2 to 3.4). At
a fixed L T they are one choice: more steps at each noise scale are fewer scales farther apart.
"""

from __future__ import annotations

from dataclasses import dataclass

from scorekit.techniques.ladder import Ladder
from scorekit.techniques.noise_scales import coverage
from scorekit.techniques.step_size import (
    ladder_variance_ratios,
    langevin_variance_ratio,
    steady_variance_ratio,
)

#: The rules of epsilon that a design is held against.
RULES = ("Technique 4", "steady state")
_LEAST_COVERAGE = 1e-3
_MOST_ROWS = 24


@dataclass(frozen=True, kw_only=True)
class StepSize:
    """A rule's epsilon on a ladder, and the variance of samples over that of the noise scale.

    ``one_scale`` is Eq. (4), which lets samples arrive exact; ``steady`` is v*, what the ratio
    tends to along a long enough ladder, infinite where it grows; ``at_end`` is what it is at
    sigma_L of this one, begun with the right variance at sigma_1. 1 is right.
    """

    epsilon: float
    one_scale: float
    steady: float
    at_end: float


@dataclass(frozen=True, kw_only=True)
class Design:
    """A ladder within a budget: neighbouring scales overlap by ``coverage`` = C of Technique 2."""

    coverage: float
    ladder: Ladder  # with Technique 4's epsilon
    steps: dict[str, StepSize]  # by rule, of ``RULES``
    chosen: bool = False  # Technique 2's, C = 0.5


def design(ladder: Ladder, dim: int, *, chosen: bool = False) -> Design:
    """Return what a ladder comes to in ``dim`` dimensions, by both rules of epsilon."""
    gamma, end, steps = ladder.gamma, ladder.sigma_end, ladder.n_steps_each
    found = {}
    for rule in RULES:
        epsilon = ladder.by_rule(rule).step_size
        ratios = ladder_variance_ratios(epsilon, gamma, end, steps, ladder.n_levels)
        found[rule] = StepSize(
            epsilon=epsilon,
            one_scale=float(langevin_variance_ratio(epsilon, gamma, end, steps)),
            steady=steady_variance_ratio(epsilon, gamma, end, steps),
            at_end=float(ratios[-1]),
        )
    return Design(
        coverage=coverage(gamma, dim),
        ladder=ladder.by_rule(RULES[0]),
        steps=found,
        chosen=chosen,
    )


def design_frontier(sigma_begin: float, dim: int, evaluations: int) -> list[Design]:
    """Return designs of L T <= ``evaluations``, T ascending, each with the most noise scales.

    The denoising step is not counted. T are 1, 2, ..., then about evenly spaced in ratio, as long
    as neighbouring scales overlap; Technique 2's own design is among them and ``chosen``, unless
    even T = 1 is beyond the budget. Raises ValueError where that allows fewer than 2 noise scales.
    """
    if evaluations < 2:
        raise ValueError(
            f"evaluations = {evaluations} must be at least 2: a step at 2 noise scales"
        )
    own = Ladder.by_techniques(sigma_begin, dim, score_evaluations=evaluations)
    found: list[Design] = []
    for steps in _step_counts(evaluations // 2):
        levels = evaluations // steps
        ladder = Ladder(sigma_begin=sigma_begin, n_levels=levels, n_steps_each=steps, step_size=0.0)
        made = design(ladder, dim)
        if found and made.coverage < _LEAST_COVERAGE:
            break
        found.append(made)
    if own.n_steps <= evaluations:
        found = [made for made in found if made.ladder != own]
        found.append(design(own, dim, chosen=True))
    return sorted(found, key=lambda d: (d.ladder.n_steps_each, -d.ladder.n_levels))


def _step_counts(most: int) -> list[int]:
    counts = [1]
    while counts[-1] < most and len(counts) < _MOST_ROWS:
        counts.append(max(counts[-1] + 1, round(counts[-1] * 1.25)))
    return [count for count in counts if count <= most]
