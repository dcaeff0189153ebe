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
    rho_sigmas,
)
from scorekit.techniques.step_size import (
    SNR,
    affordable_steps,
    check_n_steps_each,
    check_snr,
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

#: Ways to place noise scales between sigma_1 and sigma_L: Technique 2's, and Karras et al.'s.
SCHEDULES: dict[str, Callable[[float, float, int], Tensor]] = {
    "geometric": geometric_sigmas,
    "rho": rho_sigmas,
}


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """Noise scales sigma_1 > ... > sigma_L, and T Langevin steps at each of them.

    ``step_size`` is epsilon, the step at sigma_L; at sigma_i it is epsilon sigma_i^2 / sigma_L^2.
    ``step_rule`` says where it is from: one of ``STEP_RULES``, "snr", "Table 4" or "given". With
    "snr" no epsilon is set, ``step_size`` is 0 and ``snr`` is r of
    :func:`scorekit.techniques.step_size.snr_step_size`. ``schedule`` is one of ``SCHEDULES``; of a
    geometric ladder all neighbours have one ratio. Raises ValueError for what is no ladder; which
    epsilon will do depends on the sampler, which looks.
    """

    sigma_begin: float
    sigma_end: float = 0.01  # Sec. 3
    n_levels: int
    n_steps_each: int
    step_size: float
    step_rule: str = "given"
    schedule: str = "geometric"
    snr: float | None = None

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule = {self.schedule!r}: one of {', '.join(SCHEDULES)}")
        if self.snr is not None:
            check_snr(self.snr)
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
        """Return this ladder with the epsilon that one of ``STEP_RULES`` gives on it.

        "snr" leaves epsilon to the sampler, with the ladder's ``snr`` or, without one, 0.16. Raises
        ValueError for another word.
        """
        if rule == "snr":
            return replace(self, step_size=0.0, step_rule=rule, snr=self.snr or SNR)
        if rule not in STEP_RULES:
            raise ValueError(f"step_rule = {rule!r}: one of {', '.join([*STEP_RULES, 'snr'])}")
        step_size = STEP_RULES[rule](self.gamma, self.sigma_end, self.n_steps_each)
        return replace(self, step_size=step_size, step_rule=rule, snr=None)

    @property
    def sigmas(self) -> Tensor:
        """The noise scales, float32 (L,), index 0 the largest."""
        return SCHEDULES[self.schedule](self.sigma_begin, self.sigma_end, self.n_levels)

    @property
    def gamma(self) -> float:
        """The ratio of neighbouring noise scales, sigma_{i-1} / sigma_i, the largest of them.

        Step sizes are made for it; where neighbours lie closer together they do more than enough.
        """
        sigmas = self.sigmas
        if self.schedule == "geometric":
            return ladder_ratio(sigmas)
        return float((sigmas[:-1].double() / sigmas[1:].double()).max())

    @property
    def n_steps(self) -> int:
        """L T: the score evaluations of a sample, its denoising step not counted."""
        return self.n_levels * self.n_steps_each
