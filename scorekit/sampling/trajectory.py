"""Trajectories from noise to samples: what every sampler of this room shares.

A sampler is a rule for what one score evaluation does to x. Batches, keyed noise, the start,
compiling, interpolation (Song & Ermon 2020, App. B.2) and inpainting, which keeps known pixels at
the noise scale of the others (Song & Ermon 2019, Algorithm 2), are the same for all of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Self, get_args

import torch
from torch import Tensor

from kernels.philox import Stream, philox_key, philox_normal, philox_uniform
from scorekit.runtime.compilation import compiled, cuda_graph
from scorekit.techniques.ladder import Ladder

Score = Callable[[Tensor, Tensor], Tensor]

#: x_0 ~ U[0, 1]^D (Song & Ermon 2019), or N(mean, sigma_1^2 I) (Song et al. 2021).
Start = Literal["uniform", "gaussian"]


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


class Sampler:
    """A way along a ladder of noise scales; subclasses say what a step does (``_advance``).

    ``score(x, noise_index)`` maps images (B, C, H, W) and int64 (B,) to scores; with
    ``takes_sigma`` it is given the noise scales themselves, float32 (B,), as a network told any of
    them takes them; with ``times_sigma`` it gives sigma * s(x, sigma) instead, as the output of an
    unconditional network before Technique 3's division. ``scales`` are those at which the score is
    evaluated, whose indices it is given. The noise of a sample is a function of ``seed`` and the
    sample's index, so a sample does not depend on the batch it was drawn in beyond floating-point
    rounding.

    ``start`` "uniform" draws x_0 ~ U[0, 1]^D, "gaussian" N(mean, sigma_1^2 I) with ``start_mean``,
    a number or a tensor that fits an image (C, H, W); ValueError for another word.

    What changes from step to step follows from a step counter on the device. One graph, compiled
    where ``compile`` is set, and captured as a CUDA graph on a GPU, therefore serves a whole
    trajectory, which never waits for the device. Batches of equal size share it; a CUDA graph stays
    in the precision in which its first batch was drawn.

    Of the ``n_levels`` scales that samples descend, each is finished after ``steps_per_level``
    steps, a score evaluation each. ``n_steps`` are all of them, and one more ends the trajectory.
    """

    #: Tensors like x that a step hands to the next.
    n_memories: ClassVar[int] = 0

    def __init__(
        self,
        score: Score,
        scales: Tensor,
        *,
        n_levels: int,
        steps_per_level: int,
        n_steps: int,
        seed: int = 0,
        times_sigma: bool = False,
        takes_sigma: bool = False,
        compile: bool = False,
        start: Start = "uniform",
        start_mean: float | Tensor = 0.5,
    ) -> None:
        if start not in get_args(Start):
            raise ValueError(f"start = {start!r}: one of {', '.join(get_args(Start))}")
        self._score = score
        self._times_sigma, self._takes_sigma = times_sigma, takes_sigma
        self._seed = seed
        self._sigmas = scales.to(torch.float32)
        self._sigma_begin = self._sigmas[0]
        self._n_levels, self._steps_per_level, self._n_steps = n_levels, steps_per_level, n_steps
        self._start_from, self._start_mean = start, start_mean
        self._key = philox_key(seed, scales.device)
        self._last_index = torch.tensor(len(scales) - 1, device=scales.device)
        device = str(scales.device)
        self._step = compiled(self._one_step, enable=compile, device=device)
        self._end = compiled(self._last_evaluation, enable=compile, device=device)
        self._graphed = compile and scales.is_cuda
        self._states: dict[tuple[object, ...], State] = {}  # of CUDA graphs, by shape and mode

    @classmethod
    def along(cls, score: Score, ladder: Ladder, *, device: str = "cpu", **options: Any) -> Self:
        """Return the sampler that descends a ladder as that says.

        ``device`` is where the score works; ``options`` are the other arguments of the class.
        """
        return cls(score, ladder.sigmas.to(device), **cls._of_ladder(ladder), **options)

    @classmethod
    def _of_ladder(cls, ladder: Ladder) -> dict[str, Any]:
        return {"n_steps_each": ladder.n_steps_each}

    @property
    def score_evaluations(self) -> int:
        """Network evaluations per sample, denoising included."""
        return self._n_steps + 1

    def _advance(
        self,
        x: Tensor,
        step: Tensor,
        sample_index: Tensor,
        mix: tuple[Tensor, Tensor] | None,
        memory: tuple[Tensor, ...],
    ) -> Tensor:
        """Change x in place by one score evaluation; return the index of the scale it then has.

        Steps beyond the last are taken, by a CUDA graph's warm-up: indices are to be clamped.
        """
        raise NotImplementedError

    def _one_step(
        self,
        x: Tensor,
        step: Tensor,
        sample_index: Tensor,
        mix: tuple[Tensor, Tensor] | None,
        inpaint: tuple[Tensor, Tensor] | None,
        memory: tuple[Tensor, ...],
    ) -> None:
        reached = self._advance(x, step, sample_index, mix, memory)
        if inpaint is not None:
            known, mask = inpaint
            # One draw for all steps at a scale.
            shape = tuple(x.shape[1:])
            z = philox_normal(self._key, sample_index, reached, shape, Stream.INPAINTING)
            x.copy_(torch.where(mask, known + entry(self._sigmas, reached) * z, x))
        step.add_(1)

    def _evaluate(self, x: Tensor, index: Tensor) -> Tensor:
        """Return the score's own output at one of the scales, in its own dtype."""
        told = entry(self._sigmas, index) if self._takes_sigma else index
        return self._score(x, told.expand(x.shape[0]))

    def _evaluate_score(self, x: Tensor, index: Tensor) -> Tensor:
        """Return s(x, sigma) at one of the scales, in x's dtype."""
        output = self._evaluate(x, index).to(x.dtype)
        return output / entry(self._sigmas, index) if self._times_sigma else output

    def _noise(
        self, x: Tensor, step: Tensor, sample_index: Tensor, mix: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """Return the noise of a step, of x's shape: that of :func:`kernels.langevin_step`."""
        shape = tuple(x.shape[1:])
        z = philox_normal(self._key, sample_index, step, shape, Stream.LANGEVIN)
        if mix is None:
            return z
        key, angle = mix
        other = philox_normal(key, sample_index, step, shape, Stream.LANGEVIN)
        return per_sample(angle.cos(), x) * z + per_sample(angle.sin(), x) * other

    def _last_evaluation(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return x without and with the denoising step, from one evaluation of the network."""
        shift = self._denoising_shift(x)
        return x.clone(), x + shift

    def _denoising_shift(self, x: Tensor) -> Tensor:
        """Return sigma_L^2 s(x, sigma_L)."""
        score = self._evaluate(x, self._last_index).to(x.dtype)
        sigma = self._sigmas[-1]
        return (sigma if self._times_sigma else sigma.square()) * score

    def initial(self, sample_index: Tensor, image_shape: tuple[int, ...]) -> Tensor:
        """Return x_0 of samples ``sample_index`` (B,), float32 (B, *image_shape)."""
        zero = torch.zeros((), dtype=torch.int64, device=sample_index.device)
        if self._start_from == "uniform":
            return philox_uniform(self._key, sample_index, zero, image_shape, Stream.INITIAL)
        z = philox_normal(self._key, sample_index, zero, image_shape, Stream.INITIAL)
        mean = torch.as_tensor(self._start_mean, dtype=torch.float32, device=z.device)
        if torch.broadcast_shapes(mean.shape, image_shape) != torch.Size(image_shape):
            raise ValueError(
                f"start_mean has shape {tuple(mean.shape)}; a number or {image_shape} is needed"
            )
        return mean + self._sigma_begin * z

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
            memory = tuple(torch.zeros_like(start) for _ in range(self.n_memories))
        for own, new in zip((start, index, *conditions), given, strict=True):
            own.copy_(new)
        own_mix = None if mix is None else (conditions[0], conditions[1])
        own_inpaint = None if inpaint is None else (conditions[-2], conditions[-1])

        def advance() -> None:
            self._step(start, step, index, own_mix, own_inpaint, memory)

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

        ``initial`` replaces x_0. With ``mix_seed`` the noise of each step is
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
            level, within = divmod(step, self._steps_per_level)
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


def check_refinable(name: str, n_steps_each: int, **options: Any) -> None:
    """Raise ValueError unless a sampler may take steps between the scales of its ladder.

    ``options`` are those of :class:`Sampler`; only T = 1 does without a score of any scale.
    """
    if n_steps_each < 1:
        raise ValueError(f"n_steps_each = {n_steps_each} must be at least 1")
    if n_steps_each > 1 and not (options.get("times_sigma") or options.get("takes_sigma")):
        raise ValueError(
            f"n_steps_each = {n_steps_each} refines the ladder of {name}: it needs times_sigma or "
            "takes_sigma, hence a network of any noise scale, or must be 1"
        )


def check_scales(name: str, sigmas: Tensor) -> None:
    """Raise ValueError unless there are at least 2 noise scales, each below the one before."""
    if len(sigmas) < 2 or not bool((sigmas.diff() < 0).all()):
        raise ValueError(f"{name} needs 2 or more descending noise scales, got {len(sigmas)}")


def entry(values: Tensor, index: Tensor) -> Tensor:
    """Return ``values[index]`` of a scalar tensor without reading the index on the host.

    Indexing reads it, and torch.take does not compile as one graph under torch 2.11 to 2.13.
    """
    return values.index_select(0, index.reshape(1)).squeeze(0)


def per_sample(values: Tensor, x: Tensor) -> Tensor:
    """Return ``values``, a scalar or one for each sample (B,), as they multiply x (B, ...)."""
    return values.reshape(-1, *(1 for _ in x.shape[1:]))


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
