"""Predictor-corrector sampling (Song et al. 2021, arXiv:2011.13456, Algorithms 2 and 5)."""

from typing import Any

import torch
from torch import Tensor

from scorekit.sampling.trajectory import Sampler, Score, check_scales, entry, per_sample
from scorekit.techniques.step_size import SNR, check_snr, snr_step_size


class PredictorCorrector(Sampler):
    """Reverse diffusion to the next noise scale, and Langevin steps there; as :class:`Sampler`.

    ``sigmas`` (L,), L >= 2, is the descending ladder; ``n_steps_each`` >= 1 is the number M of
    corrector steps after each predictor's (:class:`ReverseDiffusion`), each with the epsilon of
    :func:`scorekit.techniques.step_size.snr_step_size`, of which ``snr`` is r, in each sample.
    Network evaluations per sample: (L - 1) (1 + M) + 1.
    """

    def __init__(
        self,
        score: Score,
        sigmas: Tensor,
        *,
        n_steps_each: int = 1,
        snr: float = SNR,
        **options: Any,
    ) -> None:
        check_scales("predictor-corrector sampling", sigmas)
        check_snr(snr)
        if n_steps_each < 1:
            raise ValueError(f"n_steps_each = {n_steps_each} must be at least 1")
        each = 1 + n_steps_each
        super().__init__(
            score,
            sigmas,
            n_levels=len(sigmas),
            steps_per_level=each,
            n_steps=(len(sigmas) - 1) * each,
            **options,
        )
        self._snr = snr
        self._removed = -sigmas.double().square().diff().to(torch.float32)

    def _advance(
        self,
        x: Tensor,
        step: Tensor,
        sample_index: Tensor,
        mix: tuple[Tensor, Tensor] | None,
        memory: tuple[Tensor, ...],
    ) -> Tensor:
        # One evaluation a step, of either kind, so that the graph holds one network.
        level = (step // self._steps_per_level).clamp(max=len(self._removed) - 1)
        predicts = step % self._steps_per_level == 0
        score = self._evaluate_score(x, torch.where(predicts, level, level + 1))
        z = self._noise(x, step, sample_index, mix)
        removed = entry(self._removed, level)
        epsilon = snr_step_size(score, z, self._snr)
        drift = per_sample(torch.where(predicts, removed, epsilon), x)
        noise = per_sample(torch.where(predicts, removed, 2 * epsilon).sqrt(), x)
        x.copy_(x + drift * score + noise * z)
        return level + 1
