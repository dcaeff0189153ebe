"""Annealed Langevin dynamics (Song & Ermon 2020, Algorithm 1), and what is done with its steps.

Consistent annealed sampling (Jolicoeur-Martineau et al. 2020, arXiv:2009.05475) has the same drift
and other noise; interpolation mixes the noise of two seeds (Song & Ermon 2020, App. B.2);
inpainting keeps known pixels at the noise scale of the others (Song & Ermon 2019, Algorithm 2).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from kernels.langevin_step import langevin_step
from kernels.philox import Stream, philox_key, philox_normal, philox_uniform
from scorekit.runtime.compilation import compiled, cuda_graph
from scorekit.sampling.consistent import (
    check_consistent_step_size,
    consistent_amplitudes,
    refined_sigmas,
)
from scorekit.techniques.ladder import Ladder
from scorekit.techniques.step_size import check_step_size

Score = Callable[[Tensor, Tensor], Tensor]


def interpolation_angles(n: int) -> Tensor:
    """Return the angles k pi / (2 (n + 1)), k = 1 ... n, of App. B.2, float32 (n,)."""
    if n < 1:
        raise ValueError(f"n = {n} must be at least 1")
    return (torch.arange(1, n + 1, dtype=torch.float64) * (math.pi / (2 * (n + 1)))).float()


@dataclass(frozen=True, kw_only=True)
class Samples:
    """End of a batch of trajectories: float32 images (B, C, H, W), not clamped to [0, 1]."""

    last: Tensor  # x_T, without the denoising step
    denoised: Tensor  # x + sigma_L^2 s(x, sigma_L), from the same trajectory
    levels: dict[int, Tensor] = field(default_factory=dict)  # x after the noise scales asked for


@dataclass(frozen=True)
class State:
    """A batch on its way, changed in place, and the function that takes it one step further."""

    x: Tensor
    sample_index: Tensor
    conditions: tuple[Tensor, ...]  # of mixing and of inpainting, as given to start
    step: Tensor  # int64 scalar: how many steps were taken
    advance: Callable[[], None]


class AnnealedLangevin:
    """Sampler of a score network along a ladder of noise scales.

    ``score(x, noise_index)`` maps images (B, C, H, W) and int64 (B,) to scores; with
    ``times_sigma`` it gives sigma * s(x, sigma) instead, as the output of an unconditional network
    before Technique 3's division, which is then part of the update; such a network can be sampled
    along any ladder. ``sigmas`` (L,) is the descending ladder, ``step_size`` is epsilon of
    Algorithm 1 and ``n_steps_each`` its T. The noise of a sample is a function of ``seed`` and the
    sample's index, so a sample does not depend on the batch it was drawn in beyond floating-point
    rounding.

    ``consistent`` takes one step x + epsilon sigma_i^2 / sigma_L^2 s(x, sigma_i) from each scale
    to the next, and adds the noise that gives it the variance of that scale; the last step adds
    none. ``n_steps_each`` > 1 then refines the ladder (:func:`refined_sigmas`), whose indices
    ``score`` is given, and needs ``times_sigma``. ValueError as in
    :func:`check_consistent_step_size`.

    Noise scale and step size follow from a step counter on the device. One graph, compiled where
    ``compile`` is set, and captured as a CUDA graph on a GPU, therefore serves a whole trajectory,
    which never waits for the device. Batches of equal size share it; a CUDA graph stays in the
    precision in which its first batch was drawn.
    """

    def __init__(
        self,
        score: Score,
        sigmas: Tensor,
        *,
        step_size: float,
        n_steps_each: int,
        seed: int = 0,
        times_sigma: bool = False,
        compile: bool = False,
        consistent: bool = False,
    ) -> None:
        if n_steps_each < 1:
            raise ValueError(f"n_steps_each = {n_steps_each} must be at least 1")
        self._n_levels = len(sigmas)
        self._n_steps_each = n_steps_each
        if consistent:
            check_consistent_step_size(step_size, sigmas, n_steps_each)
            if n_steps_each > 1 and not times_sigma:
                raise ValueError(
                    f"n_steps_each = {n_steps_each} refines the ladder of consistent annealed "
                    "sampling: it needs times_sigma, hence an unconditional network, or must be 1"
                )
            sigmas = refined_sigmas(sigmas, n_steps_each)
        else:
            check_step_size(step_size, float(sigmas[-1]))
        self._score = score
        self._times_sigma = times_sigma
        self._consistent = consistent
        self._seed = seed
        self._sigmas = sigmas.to(torch.float32)
        self._steps_per_sigma = 1 if consistent else n_steps_each
        alphas = step_size * (sigmas.double() / sigmas[-1].double()).square()
        self._alphas = alphas.to(torch.float32)
        self._rate = step_size / float(sigmas[-1]) ** 2
        self._amplitudes = (
            consistent_amplitudes(self._rate, sigmas).to(torch.float32) if consistent else None
        )
        self._key = philox_key(seed, sigmas.device)
        self._last_index = torch.tensor(len(sigmas) - 1, device=sigmas.device)
        device = str(sigmas.device)
        self._step = compiled(self._one_step, enable=compile, device=device)
        self._end = compiled(self._last_evaluation, enable=compile, device=device)
        self._graphed = compile and sigmas.is_cuda
        self._states: dict[tuple[object, ...], State] = {}  # of CUDA graphs, by shape and mode

    @classmethod
    def along(cls, score: Score, ladder: Ladder, *, device: str = "cpu", **options: Any) -> Self:
        """Return the sampler that descends a ladder with its T and epsilon.

        ``device`` is where the score works; ``options`` are the other arguments of the class.
        """
        return cls(
            score,
            ladder.sigmas.to(device),
            step_size=ladder.step_size,
            n_steps_each=ladder.n_steps_each,
            **options,
        )

    def _one_step(
        self,
        x: Tensor,
        step: Tensor,
        sample_index: Tensor,
        mix: tuple[Tensor, Tensor] | None,
        inpaint: tuple[Tensor, Tensor] | None,
    ) -> None:
        # Steps beyond the last, as a CUDA graph's warm-up takes, stay at the smallest noise scale.
        last = len(self._sigmas) - 1
        index = (step // self._steps_per_sigma).clamp(max=last)
        score = self._score(x, index.expand(x.shape[0]))
        alpha = _entry(self._alphas, index)
        sigma = _entry(self._sigmas, index) if self._times_sigma else None
        amplitude = None if self._amplitudes is None else _entry(self._amplitudes, index)
        langevin_step(
            x,
            score,
            alpha,
            self._key,
            sample_index,
            step,
            sigma=sigma,
            amplitude=amplitude,
            mix=mix,
            out=x,
        )
        if inpaint is not None:
            known, mask = inpaint
            # The scale at which x now is, and one draw for all steps at it.
            reached = (index + 1).clamp(max=last) if self._consistent else index
            shape = tuple(x.shape[1:])
            z = philox_normal(self._key, sample_index, reached, shape, Stream.INPAINTING)
            x.copy_(torch.where(mask, known + _entry(self._sigmas, reached) * z, x))
        step.add_(1)

    def _last_evaluation(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return x without and with the denoising step, from one evaluation of the network."""
        score = self._score(x, self._last_index.expand(x.shape[0])).to(x.dtype)
        sigma = self._sigmas[-1]
        shift = (sigma if self._times_sigma else sigma.square()) * score
        return x + self._rate * shift if self._consistent else x.clone(), x + shift

    def initial(self, sample_index: Tensor, image_shape: tuple[int, ...]) -> Tensor:
        """Return x_0 ~ U[0, 1]^D of samples ``sample_index`` (B,), float32 (B, *image_shape)."""
        zero = torch.zeros((), dtype=torch.int64, device=sample_index.device)
        return philox_uniform(self._key, sample_index, zero, image_shape, Stream.INITIAL)

    def start(
        self,
        x: Tensor,
        sample_index: Tensor,
        *,
        mix: tuple[Tensor, Tensor] | None = None,
        inpaint: tuple[Tensor, Tensor] | None = None,
    ) -> State:
        """Return the state of a batch at x_0; batches of one shape share that of a CUDA graph.

        ``mix`` is (second key, angles), ``inpaint`` (known, mask), each of x's shape.
        """
        given = (x, sample_index, *(mix or ()), *(inpaint or ()))
        mode = (tuple(x.shape), mix is not None, inpaint is not None)
        if self._graphed and (state := self._states.get(mode)) is not None:
            for own, new in zip(
                (state.x, state.sample_index, *state.conditions), given, strict=True
            ):
                own.copy_(new)
            state.step.zero_()
            return state
        # Ordinary tensors even in inference mode: a later call may come from outside of it.
        with torch.inference_mode(False):
            start, index, *conditions = (torch.empty_like(tensor) for tensor in given)
            step = torch.zeros((), dtype=torch.int64, device=x.device)
        for own, new in zip((start, index, *conditions), given, strict=True):
            own.copy_(new)
        own_mix = None if mix is None else (conditions[0], conditions[1])
        own_inpaint = None if inpaint is None else (conditions[-2], conditions[-1])

        def advance() -> None:
            self._step(start, step, index, own_mix, own_inpaint)

        state = State(start, index, tuple(conditions), step, advance)
        if not self._graphed:
            return state
        self._states[mode] = replace(state, advance=cuda_graph(advance, x.device))
        return self.start(x, sample_index, mix=mix, inpaint=inpaint)

    @torch.no_grad()
    def sample(
        self,
        sample_index: Tensor,
        image_shape: tuple[int, ...],
        *,
        initial: Tensor | None = None,
        mix_seed: int | None = None,
        mix_angle: Tensor | None = None,
        known: Tensor | None = None,
        mask: Tensor | None = None,
        keep_levels: Sequence[int] = (),
        progress: Callable[[int], None] = lambda level: None,
    ) -> Samples:
        """Return the samples with these indices (int64, (B,), each in [0, 2**32)).

        ``initial`` replaces the uniform x_0. With ``mix_seed`` the noise of each step is
        cos(angle) z1 + sin(angle) z2, z1 of the sampler's seed and z2 of this other one, at angles
        ``mix_angle`` (B,) in radians (App. B.2); x_0 stays that of the sampler's seed.

        ``known`` (B, C, H, W), in [0, 1], holds the pixels that ``mask``, bool (B, C, H, W) or
        (B, 1, H, W), marks as known; its others are not looked at. After each step they are set to
        known + sigma z, with sigma the scale that the step leads to and z drawn once for each
        scale, and in the result to ``known`` itself.

        ``keep_levels`` names noise indices after which x is kept, on the CPU; ``progress`` is
        called with each finished noise index. Memory is O(B). Raises ValueError for a noise index
        that does not exist, and for mixing and inpainting that are not as described.
        """
        if unknown := sorted(set(keep_levels) - set(range(self._n_levels))):
            raise ValueError(
                f"keep_levels holds {unknown[0]}: noise indices lie in [0, {self._n_levels})"
            )
        mix = self._mix(sample_index, mix_seed, mix_angle)
        inpaint = _inpaint(sample_index, image_shape, known, mask)
        first = self.initial(sample_index, image_shape) if initial is None else initial
        state = self.start(first, sample_index, mix=mix, inpaint=inpaint)
        kept = {}

        def finished(level: int, x: Tensor) -> None:
            if level in keep_levels:
                kept[level] = x.to("cpu", copy=True)
            progress(level)

        for step in range(1, self._n_steps + 1):
            state.advance()
            level, within = divmod(step, self._n_steps_each)
            if within == 0 and level < self._n_levels:
                finished(level - 1, state.x)
        last, denoised = self._end(state.x)
        if inpaint is not None:
            last, denoised = (torch.where(inpaint[1], inpaint[0], x) for x in (last, denoised))
        finished(self._n_levels - 1, last)
        return Samples(last=last, denoised=denoised, levels=kept)

    def _mix(
        self, sample_index: Tensor, seed: int | None, angle: Tensor | None
    ) -> tuple[Tensor, Tensor] | None:
        if seed is None and angle is None:
            return None
        if seed is None or angle is None:
            raise ValueError("mix_seed and mix_angle are needed together, or neither")
        if seed == self._seed:
            raise ValueError(f"mix_seed = {seed} is the sampler's own seed: another one is needed")
        if angle.shape != sample_index.shape:
            raise ValueError(
                f"mix_angle has shape {tuple(angle.shape)}; one per sample "
                f"({len(sample_index)},) is needed"
            )
        device = sample_index.device
        return philox_key(seed, device), angle.to(device, torch.float32)

    @property
    def _n_steps(self) -> int:
        # Consistent sampling's last step is part of the last evaluation.
        return (self._n_levels - self._consistent) * self._n_steps_each

    @property
    def score_evaluations(self) -> int:
        """Network evaluations per sample, denoising included: L T + 1; consistent (L - 1) T + 1."""
        return self._n_steps + 1


def _entry(values: Tensor, index: Tensor) -> Tensor:
    """Return ``values[index]`` of a scalar tensor without reading the index on the host.

    Indexing reads it, and torch.take does not compile as one graph under torch 2.11 to 2.13.
    """
    return values.index_select(0, index.reshape(1)).squeeze(0)


def _inpaint(
    sample_index: Tensor, image_shape: tuple[int, ...], known: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    if known is None and mask is None:
        return None
    if known is None or mask is None:
        raise ValueError("known and mask are needed together, or neither")
    shape = (len(sample_index), *image_shape)
    if tuple(known.shape) != shape or not known.is_floating_point():
        raise ValueError(
            f"known is {known.dtype} of shape {tuple(known.shape)}; "
            f"floating point {shape} is needed"
        )
    one_channel = (shape[0], 1, *shape[2:])
    if tuple(mask.shape) not in (shape, one_channel) or mask.dtype != torch.bool:
        raise ValueError(
            f"mask is {mask.dtype} of shape {tuple(mask.shape)}; torch.bool {shape} or "
            f"{one_channel} is needed"
        )
    device = sample_index.device
    known, mask = known.to(device, torch.float32), mask.to(device).expand(shape)
    if not bool((((known >= 0) & (known <= 1)) | ~mask).all()):
        raise ValueError("known pixels must lie in [0, 1]")
    return known, mask
