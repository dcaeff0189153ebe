"""Annealed Langevin dynamics (Song & Ermon 2020, Algorithm 1)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kernels.langevin_step import langevin_step
from kernels.philox import Stream, philox_key, philox_uniform
from scorekit.compilation import compiled, cuda_graph
from scorekit.techniques import check_step_size

Score = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Samples:
    """End of a batch of trajectories: float32 images (B, C, H, W), not clamped to [0, 1]."""

    last: Tensor  # x_T, without the denoising step
    denoised: Tensor  # x_T + sigma_L^2 s(x_T, sigma_L), from the same trajectory
    levels: dict[int, Tensor] = field(default_factory=dict)  # x after the noise scales asked for


@dataclass(frozen=True)
class State:
    """A batch on its way, changed in place, and the function that takes it one step further."""

    x: Tensor
    sample_index: Tensor
    step: Tensor  # int64 scalar: how many steps were taken
    advance: Callable[[], None]


class AnnealedLangevin:
    """Sampler of a score network along a ladder of noise scales.

    ``score(x, noise_index)`` maps images (B, C, H, W) and int64 (B,) to scores; with
    ``times_sigma`` it gives sigma * s(x, sigma) instead, as the output of an unconditional network
    before Technique 3's division, which is then part of the update. ``sigmas`` (L,) is the
    descending ladder, ``step_size`` is epsilon of Algorithm 1 and ``n_steps_each`` its T. The noise
    of a sample is a function of ``seed`` and the sample's index, so a sample does not depend on the
    batch it was drawn in beyond floating-point rounding.

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
    ) -> None:
        if n_steps_each < 1:
            raise ValueError(f"n_steps_each = {n_steps_each} must be at least 1")
        check_step_size(step_size, float(sigmas[-1]))
        self._score = score
        self._times_sigma = times_sigma
        self._sigmas = sigmas.to(torch.float32)
        self._n_levels = len(sigmas)
        self._n_steps_each = n_steps_each
        alphas = step_size * (sigmas.double() / sigmas[-1].double()).square()
        self._alphas = alphas.to(torch.float32)
        self._key = philox_key(seed, sigmas.device)
        self._last_level = torch.tensor(self._n_levels - 1, device=sigmas.device)
        device = str(sigmas.device)
        self._step = compiled(self._one_step, enable=compile, device=device)
        self._denoise = compiled(self._denoising_step, enable=compile, device=device)
        self._graphed = compile and sigmas.is_cuda
        self._states: dict[tuple[int, ...], State] = {}  # of CUDA graphs, by shape

    def _one_step(self, x: Tensor, step: Tensor, sample_index: Tensor) -> None:
        # Steps beyond the last, as a CUDA graph's warm-up takes, stay at the smallest noise scale.
        level = (step // self._n_steps_each).clamp(max=self._n_levels - 1)
        score = self._score(x, level.expand(x.shape[0]))
        # torch.take, since indexing with a scalar tensor would read it on the host.
        alpha = torch.take(self._alphas, level)
        sigma = torch.take(self._sigmas, level) if self._times_sigma else None
        langevin_step(x, score, alpha, self._key, sample_index, step, sigma=sigma, out=x)
        step.add_(1)

    def _denoising_step(self, x: Tensor) -> Tensor:
        score = self._score(x, self._last_level.expand(x.shape[0])).to(x.dtype)
        sigma = self._sigmas[-1]
        return x + (sigma if self._times_sigma else sigma.square()) * score

    def initial(self, sample_index: Tensor, image_shape: tuple[int, ...]) -> Tensor:
        """Return x_0 ~ U[0, 1]^D of samples ``sample_index`` (B,), float32 (B, *image_shape)."""
        zero = torch.zeros((), dtype=torch.int64, device=sample_index.device)
        return philox_uniform(self._key, sample_index, zero, image_shape, Stream.INITIAL)

    def start(self, x: Tensor, sample_index: Tensor) -> State:
        """Return the state of a batch at x_0; batches of one shape share that of a CUDA graph."""
        if self._graphed and (state := self._states.get(tuple(x.shape))) is not None:
            state.x.copy_(x)
            state.sample_index.copy_(sample_index)
            state.step.zero_()
            return state
        # Ordinary tensors even in inference mode: a later call may come from outside of it.
        with torch.inference_mode(False):
            start, index = torch.empty_like(x), torch.empty_like(sample_index)
            step = torch.zeros((), dtype=torch.int64, device=x.device)
        start.copy_(x)
        index.copy_(sample_index)

        def advance() -> None:
            self._step(start, step, index)

        if not self._graphed:
            return State(start, index, step, advance)
        self._states[tuple(x.shape)] = State(start, index, step, cuda_graph(advance, x.device))
        return self.start(x, sample_index)

    @torch.no_grad()
    def sample(
        self,
        sample_index: Tensor,
        image_shape: tuple[int, ...],
        *,
        initial: Tensor | None = None,
        keep_levels: Sequence[int] = (),
        progress: Callable[[int], None] = lambda level: None,
    ) -> Samples:
        """Return the samples with these indices (int64, (B,), each in [0, 2**32)).

        ``initial`` replaces the uniform x_0; ``keep_levels`` names noise indices after which x is
        kept, on the CPU (ValueError for one that does not exist); ``progress`` is called with each
        finished noise index. Memory is O(B).
        """
        if unknown := sorted(set(keep_levels) - set(range(self._n_levels))):
            raise ValueError(
                f"keep_levels holds {unknown[0]}: noise indices lie in [0, {self._n_levels})"
            )
        first = self.initial(sample_index, image_shape) if initial is None else initial
        state = self.start(first, sample_index)
        kept = {}
        for level in range(self._n_levels):
            for _ in range(self._n_steps_each):
                state.advance()
            if level in keep_levels:
                kept[level] = state.x.to("cpu", copy=True)
            progress(level)
        return Samples(last=state.x.clone(), denoised=self._denoise(state.x), levels=kept)

    @property
    def score_evaluations(self) -> int:
        """Network evaluations per sample, the denoising step included: L T + 1."""
        return self._n_levels * self._n_steps_each + 1
