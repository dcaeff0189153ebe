"""Predictor-corrector sampling, and Langevin steps by a signal-to-noise ratio."""

import math
from itertools import pairwise

import pytest
import torch

from kernels.philox import Stream, philox_key, philox_normal
from scorekit.sampling.corrector import PredictorCorrector
from scorekit.sampling.langevin import AnnealedLangevin
from scorekit.techniques.noise_scales import geometric_sigmas

MEAN, VARIANCE = 0.3, 0.2**2
SHAPE = (3, 8, 8)
SIGMAS = geometric_sigmas(5, 0.05, 6)


def gaussian_score(x, sigma):
    return (MEAN - x) / (VARIANCE + sigma.reshape(-1, 1, 1, 1) ** 2)


def corrected(x, score, z, snr):
    """Algorithm 5 of Song et al. 2021, image by image."""
    moved = []
    for image, s, noise in zip(x, score, z, strict=True):
        epsilon = 2 * (snr * float(noise.norm()) / float(s.norm())) ** 2
        moved.append(image + epsilon * s + math.sqrt(2 * epsilon) * noise)
    return torch.stack(moved)


@pytest.mark.parametrize("n_steps_each", [1, 2])
def test_the_trajectory_is_algorithms_2_and_5(n_steps_each):
    index, key, snr = torch.tensor([3, 17]), philox_key(5), 0.2
    drawer = PredictorCorrector(
        gaussian_score, SIGMAS, n_steps_each=n_steps_each, snr=snr, seed=5, takes_sigma=True
    )
    samples = drawer.sample(index, SHAPE)
    x, step = drawer.initial(index, SHAPE).double(), 0

    def noise():
        return philox_normal(key, index, torch.tensor(step), SHAPE, Stream.LANGEVIN).double()

    for before, after in pairwise(SIGMAS.double()):
        removed = before**2 - after**2
        x = x + removed * gaussian_score(x, before) + removed.sqrt() * noise()
        step += 1
        for _ in range(n_steps_each):
            x = corrected(x, gaussian_score(x, after), noise(), snr)
            step += 1
    assert step == drawer.score_evaluations - 1 == 5 * (1 + n_steps_each)
    torch.testing.assert_close(samples.last.double(), x, rtol=1e-4, atol=1e-4)


def test_langevin_steps_by_the_ratio_are_their_formula():
    index, key, snr = torch.tensor([3, 17]), philox_key(5), 0.1
    drawer = AnnealedLangevin(
        gaussian_score, SIGMAS, n_steps_each=2, snr=snr, seed=5, takes_sigma=True
    )
    samples = drawer.sample(index, SHAPE)
    x = drawer.initial(index, SHAPE).double()
    for step in range(12):
        z = philox_normal(key, index, torch.tensor(step), SHAPE, Stream.LANGEVIN).double()
        x = corrected(x, gaussian_score(x, SIGMAS.double()[step // 2]), z, snr)
    torch.testing.assert_close(samples.last.double(), x, rtol=1e-4, atol=1e-4)
    denoised = x + SIGMAS.double()[-1] ** 2 * gaussian_score(x, SIGMAS.double()[-1])
    torch.testing.assert_close(samples.denoised.double(), denoised, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("snr", [0.0, -0.1, math.inf, math.nan])
def test_a_ratio_out_of_range_is_refused(snr):
    with pytest.raises(ValueError, match=rf"snr = {snr} must be greater than 0"):
        PredictorCorrector(gaussian_score, SIGMAS, snr=snr)
    with pytest.raises(ValueError, match=rf"snr = {snr} must be greater than 0"):
        AnnealedLangevin(gaussian_score, SIGMAS, n_steps_each=1, snr=snr)


def test_step_size_and_ratio_are_one_or_the_other():
    for given in ({}, {"step_size": 1e-4, "snr": 0.1}):
        with pytest.raises(ValueError, match="step_size or snr is needed, one of them"):
            AnnealedLangevin(gaussian_score, SIGMAS, n_steps_each=1, **given)
    with pytest.raises(ValueError, match="consistent annealed sampling needs a step_size"):
        AnnealedLangevin(gaussian_score, SIGMAS, n_steps_each=1, snr=0.1, consistent=True)


def test_no_corrector_step_is_refused():
    with pytest.raises(ValueError, match="n_steps_each = 0 must be at least 1"):
        PredictorCorrector(gaussian_score, SIGMAS, n_steps_each=0)
