"""Annealed Langevin dynamics (Song & Ermon 2020, Algorithm 1)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kernels.langevin_step import langevin_step
from kernels.philox import Stream, philox_key, philox_uniform
from scorekit.techniques import check_step_size

Score = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Samples:
    """End of a batch of trajectories: float32 images (B, C, H, W), not clamped to [0, 1]."""

    last: Tensor  # x_T, without the denoising step
    denoised: Tensor  # x_T + sigma_L^2 s(x_T, sigma_L), from the same trajectory
    levels: dict[int, Tensor] = field(default_factory=dict)  # x after the noise scales asked for


class AnnealedLangevin:
    """Sampler of a score network along a ladder of noise scales.

    ``score(x, noise_index)`` maps images (B, C, H, W) and int64 (B,) to scores. ``sigmas`` (L,) is
    the descending ladder, ``step_size`` is epsilon of Algorithm 1 and ``n_steps_each`` its T. The
    noise of a sample is a function of ``seed`` and the sample's index, so a sample does not depend
    on the batch it was drawn in beyond floating-point rounding. ``transform`` may compile one step:
    noise scales and step sizes are tensors, so one graph serves the whole trajectory.
    """

    def __init__(
        self,
        score: Score,
        sigmas: Tensor,
        *,
        step_size: float,
        n_steps_each: int,
        seed: int = 0,
        transform: Callable[[Callable[..., Tensor]], Callable[..., Tensor]] = lambda f: f,
    ) -> None:
        if n_steps_each < 1:
            raise ValueError(f"n_steps_each = {n_steps_each} must be at least 1")
        check_step_size(step_size, float(sigmas[-1]))
        device = sigmas.device
        self._score = score
        self._n_levels = len(sigmas)
        self._n_steps_each = n_steps_each
        self._alphas = step_size * (sigmas.double() / sigmas[-1].double()).square()
        self._alphas = self._alphas.to(torch.float32)
        self._final_variance = sigmas[-1].square()
        self._key = philox_key(seed, device)
        self._step = transform(self._one_step)
        self._denoise = transform(self._denoising_step)

    def _one_step(
        self, x: Tensor, alpha: Tensor, level: Tensor, step: Tensor, key: Tensor, index: Tensor
    ) -> Tensor:
        score = self._score(x, level.expand(x.shape[0]))
        return langevin_step(x, score, alpha, key, index, step)

    def _denoising_step(self, x: Tensor, level: Tensor, variance: Tensor) -> Tensor:
        return x + variance * self._score(x, level.expand(x.shape[0])).to(x.dtype)

    def initial(self, sample_index: Tensor, image_shape: tuple[int, ...]) -> Tensor:
        """Return x_0 ~ U[0, 1]^D of samples ``sample_index`` (B,), float32 (B, *image_shape)."""
        zero = torch.zeros((), dtype=torch.int64, device=sample_index.device)
        return philox_uniform(self._key, sample_index, zero, image_shape, Stream.INITIAL)

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
        x = self.initial(sample_index, image_shape) if initial is None else initial.clone()
        levels = torch.arange(self._n_levels, device=x.device)
        steps = torch.arange(self._n_levels * self._n_steps_each, device=x.device)
        kept = {}
        for i in range(self._n_levels):
            for t in range(self._n_steps_each):
                at = steps[i * self._n_steps_each + t]
                x = self._step(x, self._alphas[i], levels[i], at, self._key, sample_index)
            if i in keep_levels:
                kept[i] = x.cpu()
            progress(i)
        denoised = self._denoise(x, levels[-1], self._final_variance)
        return Samples(last=x, denoised=denoised, levels=kept)

    @property
    def score_evaluations(self) -> int:
        """Network evaluations per sample, the denoising step included: L T + 1."""
        return self._n_levels * self._n_steps_each + 1
