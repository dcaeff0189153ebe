"""Samplers by name, the built-in ones and one's own, and what each spends on a sample."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from scorekit.sampling.corrector import PredictorCorrector
from scorekit.sampling.heun import Heun
from scorekit.sampling.langevin import AnnealedLangevin
from scorekit.sampling.reverse import Ancestral, ReverseDiffusion
from scorekit.sampling.trajectory import Sampler, Score, Start
from scorekit.techniques.ladder import Ladder
from scorekit.techniques.step_size import MAX_STEPS_EACH


class Factory(Protocol):
    """(score, ladder, device, seed, times_sigma, takes_sigma, compile, start, ...) -> sampler.

    The options are those of :class:`Sampler`, and ``snr`` and ``churn`` where they are set.
    """

    def __call__(self, score: Score, ladder: Ladder, **options: Any) -> Sampler:
        """Return the sampler of a score along a ladder."""


@dataclass(frozen=True)
class SamplerKind:
    """How a sampler is made, and its score evaluations per sample, of L and T."""

    make: Factory
    evaluations: Callable[[int, int], int]
    options: frozenset[str] = frozenset()  # those of "snr" and "churn" that it takes
    #: (T, churn) -> whether it evaluates scores between the ladder's scales.
    between: Callable[[int, float], bool] = lambda each, churn: False
    step_size: bool = True  # whether the ladder's epsilon is of any use to it


def _consistent(score: Score, ladder: Ladder, **options: Any) -> Sampler:
    return AnnealedLangevin.along(score, ladder, consistent=True, **options)


def _transitions(n_levels: int, n_steps_each: int) -> int:
    return (n_levels - 1) * n_steps_each + 1


def _refines(n_steps_each: int, churn: float) -> bool:
    return n_steps_each > 1


#: By the name that a setting gives: add to them by :func:`register_sampler`.
SAMPLERS: dict[str, SamplerKind] = {
    "annealed": SamplerKind(AnnealedLangevin.along, lambda levels, each: levels * each + 1),
    "consistent": SamplerKind(_consistent, _transitions, between=_refines),
    "reverse_diffusion": SamplerKind(
        ReverseDiffusion.along, _transitions, between=_refines, step_size=False
    ),
    "ancestral": SamplerKind(Ancestral.along, _transitions, between=_refines, step_size=False),
    "predictor_corrector": SamplerKind(
        PredictorCorrector.along,
        lambda levels, each: (levels - 1) * (1 + each) + 1,
        frozenset({"snr"}),
        step_size=False,
    ),
    "heun": SamplerKind(
        Heun.along,
        lambda levels, each: 2 * (levels - 1) * each + 1,
        frozenset({"churn"}),
        between=lambda each, churn: each > 1 or churn > 0,
        step_size=False,
    ),
}


def register_sampler(
    name: str,
    factory: Factory,
    *,
    evaluations: Callable[[int, int], int] = lambda levels, each: levels * each + 1,
    options: frozenset[str] | set[str] = frozenset(),
    between: Callable[[int, float], bool] = lambda each, churn: False,
) -> None:
    """Let :func:`make_sampler` make a sampler of one's own under a name that is not taken.

    ``evaluations`` gives its score evaluations per sample of L and T, denoising included;
    ``options`` are those of "snr" and "churn" that ``factory`` takes, and ``between`` says, of T
    and churn, whether scores are evaluated between the ladder's scales. ValueError for a name
    that is taken.
    """
    if name in SAMPLERS:
        raise ValueError(f"sampler = {name!r} is registered already")
    SAMPLERS[name] = SamplerKind(factory, evaluations, frozenset(options), between)


def sampler_kind(name: str) -> SamplerKind:
    """Return the sampler of a name; ValueError, which lists those known, for another."""
    if name not in SAMPLERS:
        raise ValueError(f"sampler = {name!r} is unknown; known: {', '.join(SAMPLERS)}")
    return SAMPLERS[name]


def make_sampler(
    name: str,
    score: Score,
    ladder: Ladder,
    *,
    device: str = "cpu",
    seed: int = 0,
    times_sigma: bool = False,
    takes_sigma: bool = False,
    compile: bool = False,
    start: Start = "uniform",
    start_mean: float | Tensor = 0.5,
    snr: float | None = None,
    churn: float = 0.0,
) -> Sampler:
    """Return the sampler ``name`` of ``SAMPLERS`` along a ladder.

    Arguments as :class:`Sampler` says. ``snr`` is r of predictor-corrector sampling, 0.16 where
    None; annealed Langevin dynamics has the ladder's. ``churn`` is Heun's. The ladder's T is
    Langevin steps at each scale for "annealed", corrector steps for "predictor_corrector", and
    steps from each scale to the next for the others, of which "annealed" and "consistent" alone
    take its epsilon. Raises ValueError for another name, and for an option without effect.
    """
    kind = sampler_kind(name)
    given: dict[str, Any] = {}
    for option, value, unset in (("snr", snr, None), ("churn", churn, 0.0)):
        if value == unset:
            continue
        if option not in kind.options:
            takers = [other for other, its in SAMPLERS.items() if option in its.options]
            raise ValueError(
                f"{option} = {value:g} has no effect with sampler = {name!r}; "
                f"{', '.join(takers)} alone takes it"
            )
        given[option] = value
    return kind.make(
        score,
        ladder,
        device=device,
        seed=seed,
        times_sigma=times_sigma,
        takes_sigma=takes_sigma,
        compile=compile,
        start=start,
        start_mean=start_mean,
        **given,
    )


def evaluates_between(name: str, n_steps_each: int, churn: float = 0.0) -> bool:
    """Return whether a sampler evaluates scores between its ladder's scales: it needs any sigma."""
    return sampler_kind(name).between(n_steps_each, churn)


def sampler_evaluations(name: str, n_levels: int, n_steps_each: int) -> int:
    """Return the score evaluations per sample, denoising included, of a sampler at L and T."""
    return sampler_kind(name).evaluations(n_levels, n_steps_each)


def affordable_steps_of(name: str, score_evaluations: int, n_levels: int) -> int:
    """Return the largest T with which a sampler keeps to a budget of evaluations per sample.

    Denoising counts, other than in :func:`scorekit.techniques.step_size.affordable_steps`. Raises
    ValueError where T = 1 is beyond it, and says what that takes.
    """
    evaluations = sampler_kind(name).evaluations
    if (least := evaluations(n_levels, 1)) > score_evaluations:
        raise ValueError(
            f"score_evaluations = {score_evaluations} is less than the {least} that sampler = "
            f"{name!r} takes along n_levels = {n_levels} noise scales; make it larger, or L smaller"
        )
    low, high = 1, MAX_STEPS_EACH + 1  # of T that fits, and of one that is not taken
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (
            (middle, high) if evaluations(n_levels, middle) <= score_evaluations else (low, middle)
        )
    return low
