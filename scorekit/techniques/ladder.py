"""A ladder of noise scales and the Langevin steps on it, as Techniques 1, 2 and 4 give it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor

from scorekit.techniques.noise_scales import (
    check_ladder,
    geometric_sigmas,
    ladder_ratio,
    n_noise_scales,
    noise_scale_ratio,
)
from scorekit.techniques.step_size import (
    affordable_steps,
    check_n_steps_each,
    consistent_step_size,
    langevin_step_size,
    steady_state_step_size,
)

#: Rules that make epsilon, each of gamma, sigma_L and T.
STEP_RULES: dict[str, Callable[[float, float, int], float]] = {
    "Technique 4": langevin_step_size,
    "steady state": steady_state_step_size,
    "consistent": consistent_step_size,
}


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """Noise scales sigma_1 > ... > sigma_L, geometric, and T Langevin steps at each of them.

    ``step_size`` is epsilon, the step at sigma_L; at sigma_i it is epsilon sigma_i^2 / sigma_L^2.
    ``step_rule`` says where it is from: one of ``STEP_RULES``, "Table 4" or "given". Raises
    ValueError for what is no ladder; which epsilon will do depends on the sampler, which looks.
    """

    sigma_begin: float
    sigma_end: float = 0.01  # Sec. 3
    n_levels: int
    n_steps_each: int
    step_size: float
    step_rule: str = "given"

    def __post_init__(self) -> None:
        check_ladder(self.sigma_begin, self.sigma_end, self.n_levels)
        check_n_steps_each(self.n_steps_each)

    @classmethod
    def by_techniques(
        cls,
        max_distance: float,
        dim: int,
        *,
        sigma_end: float = 0.01,
        coverage: float = 0.5,
        n_levels: int | None = None,
        n_steps_each: int | None = None,
        score_evaluations: int | None = None,
        step_size: float | None = None,
    ) -> Self:
        """Return the ladder of data of ``dim`` dimensions whose sigma_1 is ``max_distance``.

        Technique 1 measures that: :func:`scorekit.techniques.noise_scales.initial_noise_scale`. L
        follows by Technique 2 from ``dim`` and ``coverage``, T from the ``score_evaluations`` that
        a sample may take, epsilon by Technique 4; of these, what is given stays as it is. Raises
        ValueError for values out of range, and where T is neither given nor follows.
        """
        if n_levels is None:
            gamma = noise_scale_ratio(dim, coverage)
            n_levels = n_noise_scales(max_distance, sigma_end, gamma)
        if n_steps_each is None:
            if score_evaluations is None:
                raise ValueError("n_steps_each or score_evaluations is needed: T follows from them")
            n_steps_each = affordable_steps(score_evaluations, n_levels)
        ladder = cls(
            sigma_begin=max_distance,
            sigma_end=sigma_end,
            n_levels=n_levels,
            n_steps_each=n_steps_each,
            step_size=0.0 if step_size is None else step_size,
        )
        return ladder.by_rule("Technique 4") if step_size is None else ladder

    def by_rule(self, rule: str) -> Self:
        """Return this ladder with the epsilon that one of ``STEP_RULES`` gives on it."""
        step_size = STEP_RULES[rule](self.gamma, self.sigma_end, self.n_steps_each)
        return replace(self, step_size=step_size, step_rule=rule)

    @property
    def sigmas(self) -> Tensor:
        """The noise scales, float32 (L,), index 0 the largest."""
        return geometric_sigmas(self.sigma_begin, self.sigma_end, self.n_levels)

    @property
    def gamma(self) -> float:
        """The ratio of neighbouring noise scales, sigma_{i-1} / sigma_i."""
        return ladder_ratio(self.sigmas)

    @property
    def n_steps(self) -> int:
        """L T: the score evaluations of a sample, its denoising step not counted."""
        return self.n_levels * self.n_steps_each
