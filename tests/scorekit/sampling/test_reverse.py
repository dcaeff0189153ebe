"""Reverse diffusion and ancestral sampling: the sources' steps, and the variance they leave."""

import math
from itertools import pairwise

import pytest
import torch

from kernels.philox import Stream, philox_key, philox_normal
from scorekit.sampling.consistent import refined_sigmas
from scorekit.sampling.reverse import Ancestral, ReverseDiffusion
from scorekit.techniques.noise_scales import geometric_sigmas

CLASSES = {"reverse_diffusion": ReverseDiffusion, "ancestral": Ancestral}
MEAN, VARIANCE = 0.3, 0.2**2
SHAPE = (3, 8, 8)


def gaussian_score(x, sigma):
    """The score of N(MEAN, VARIANCE) blurred by sigma."""
    return (MEAN - x) / (VARIANCE + sigma.reshape(-1, 1, 1, 1) ** 2)


def added(name: str, before: float, after: float) -> float:
    """Variance of the noise of a step, as the papers write it."""
    removed = before**2 - after**2
    return removed if name == "reverse_diffusion" else after**2 * removed / before**2


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("n_steps_each", [1, 3])
def test_the_trajectory_is_the_recursion(name, n_steps_each):
    sigmas, index, key = geometric_sigmas(5, 0.05, 6), torch.tensor([3, 17]), philox_key(5)
    drawer = CLASSES[name](
        gaussian_score, sigmas, n_steps_each=n_steps_each, seed=5, takes_sigma=True
    )
    samples = drawer.sample(index, SHAPE)
    ladder = refined_sigmas(sigmas, n_steps_each).double()
    x = drawer.initial(index, SHAPE).double()
    for i, (before, after) in enumerate(pairwise(ladder)):
        z = philox_normal(key, index, torch.tensor(i), SHAPE, Stream.LANGEVIN).double()
        drift = (before**2 - after**2) * gaussian_score(x, before)
        x = x + drift + math.sqrt(added(name, float(before), float(after))) * z
    torch.testing.assert_close(samples.last.double(), x, rtol=1e-5, atol=1e-5)
    denoised = x + ladder[-1] ** 2 * gaussian_score(x, ladder[-1])
    torch.testing.assert_close(samples.denoised.double(), denoised, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CLASSES)
def test_the_variance_on_a_gaussian_is_that_of_its_recursion(name):
    """And nears that of the data as steps become small."""
    sigmas = geometric_sigmas(5, 0.05, 8)
    errors = []
    for n_steps_each in (1, 2, 8):
        drawer = CLASSES[name](
            gaussian_score,
            sigmas,
            n_steps_each=n_steps_each,
            takes_sigma=True,
            start="gaussian",
            start_mean=MEAN,
        )
        last = (drawer.sample(torch.arange(400), SHAPE).last - MEAN).double()
        variance = float(sigmas[0]) ** 2
        ladder = refined_sigmas(sigmas, n_steps_each).double().tolist()
        for before, after in pairwise(ladder):
            kept = 1 - (before**2 - after**2) / (VARIANCE + before**2)
            variance = kept**2 * variance + added(name, before, after)
        assert float(last.square().mean()) == pytest.approx(
            variance, rel=5 * math.sqrt(2 / last.numel())
        )
        assert abs(float(last.mean())) < 5 * math.sqrt(variance / last.numel())
        errors.append(abs(variance - VARIANCE - ladder[-1] ** 2))
    assert errors[2] < errors[1] < errors[0]
    assert errors[2] < 0.2 * errors[0]


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("sigmas", [[1.0], [0.1, 1.0], [1.0, 1.0]])
def test_what_does_not_descend_is_refused(name, sigmas):
    with pytest.raises(ValueError, match="needs 2 or more descending noise scales"):
        CLASSES[name](gaussian_score, torch.tensor(sigmas))
