"""The denoising score matching loss of Eq. (2), and the images it is computed on."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_device import BOTH, DEVICE

from kernels.dispatch import IMPL_VARIABLE
from kernels.philox import Stream, philox_key, philox_normal
from scorekit.objectives.dsm import dsm_loss, keyed_dsm_loss
from scorekit.objectives.likelihood import maximum_likelihood_loss
from scorekit.techniques.noise_scales import geometric_sigmas
from scorekit.training.batches import augment


def draw(seed: int, shape: tuple[int, ...], n_levels: int = 6):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(shape, dtype=torch.float64, generator=generator)
    noise = torch.randn(shape, dtype=torch.float64, generator=generator)
    index = torch.randint(0, n_levels, shape[:1], generator=generator)
    return images, geometric_sigmas(50, 0.01, n_levels).double(), index, noise


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)),
)
@settings(max_examples=50, deadline=None)
def test_loss_is_equation_2(seed, shape):
    images, sigmas, index, noise = draw(seed, shape)

    def score(x, noise_index):
        return torch.sin(3 * x) + noise_index.reshape(-1, 1, 1, 1)

    expected = []
    for x, i, z in zip(images.numpy(), index.tolist(), noise.numpy(), strict=True):
        sigma = float(sigmas[i])
        perturbed = x + sigma * z
        s = np.sin(3 * perturbed) + i
        expected.append(0.5 * ((sigma * s + (perturbed - x) / sigma) ** 2).sum())
    loss = dsm_loss(score, images, sigmas, index, noise)
    assert loss.shape == shape[:1]
    assert loss.tolist() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("impl", BOTH)
def test_the_loss_of_a_key_is_that_of_its_noise(impl, monkeypatch):
    images, sigmas, level, _ = (tensor.to(DEVICE) for tensor in draw(3, (4, 3, 5, 5)))
    images, sigmas = images.float(), sigmas.float()
    key = philox_key(9, DEVICE)
    index, step = (torch.tensor(n, device=DEVICE) for n in ([5, 0, 2**31, 7], 12))
    noise = philox_normal(key, index, step, (3, 5, 5), Stream.PERTURBATION, impl="torch")
    weight = torch.tensor(0.3, requires_grad=True, device=DEVICE)

    def score(x, noise_index):
        return torch.tanh(weight * x) - noise_index.reshape(-1, 1, 1, 1)

    expected = dsm_loss(score, images, sigmas, level, noise)
    (slope,) = torch.autograd.grad(expected.sum(), weight)
    monkeypatch.setenv(IMPL_VARIABLE, impl)
    loss = keyed_dsm_loss(score, images, sigmas, level, key, index, step)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        torch.autograd.grad(loss.sum(), weight)[0], slope, rtol=1e-4, atol=1e-4
    )


def test_the_authors_form_of_the_loss_is_the_same():
    """1/2 ||s(x~) + (x~ - x) / sigma^2||^2 sigma^2."""
    images, sigmas, index, noise = draw(0, (20, 3, 4, 4))
    sigma = sigmas[index].reshape(-1, 1, 1, 1)
    s = torch.cos(images + sigma * noise)
    theirs = 0.5 * (s + noise / sigma).square().sum((1, 2, 3)) * sigma.flatten() ** 2
    ours = dsm_loss(lambda x, i: torch.cos(x), images, sigmas, index, noise)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=0)


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 32, 32)])
def test_a_score_of_zero_gives_half_the_dimension(shape):
    n, dim = 512, int(np.prod(shape))
    images, sigmas, index, noise = draw(1, (n, *shape))
    loss = dsm_loss(lambda x, i: torch.zeros_like(x), images, sigmas, index, noise)
    assert float(loss.mean()) == pytest.approx(dim / 2, abs=4 * (dim / 2 / n) ** 0.5)


def test_the_true_score_of_gaussian_data_minimises_the_loss():
    n, mean, deviation = 40_000, 0.4, 0.3
    generator = torch.Generator().manual_seed(0)
    shape = (n, 1, 2, 2)
    images = mean + deviation * torch.randn(shape, dtype=torch.float64, generator=generator)
    noise = torch.randn(shape, dtype=torch.float64, generator=generator)
    sigmas = torch.tensor([1.0, 0.3, 0.1], dtype=torch.float64)
    index = torch.randint(0, 3, (n,), generator=generator)

    def loss(scale=1.0, shift=0.0):
        def score(x, i):
            variance = deviation**2 + sigmas[i].reshape(-1, 1, 1, 1) ** 2
            return -scale * (x - mean - shift) / variance

        return float(dsm_loss(score, images, sigmas, index, noise).mean())

    best = loss()
    for change in ({"scale": 0.9}, {"scale": 1.1}, {"shift": 0.05}, {"shift": -0.05}):
        assert loss(**change) > best
    # By hand: D/2 E_sigma[1 - sigma^2 / (deviation^2 + sigma^2)].
    variance = deviation**2
    exact = 2 * float((1 - sigmas**2 / (variance + sigmas**2)).mean())
    assert best == pytest.approx(exact, rel=0.02)


def test_a_score_in_bfloat16_gives_a_loss_in_the_noises_precision():
    images, sigmas, index, noise = draw(2, (4, 1, 3, 3))
    loss = dsm_loss(
        lambda x, i: (x * 0).to(torch.bfloat16),
        images.float(),
        sigmas.float(),
        index,
        noise.float(),
    )
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, 0.5 * noise.float().square().sum((1, 2, 3)))


def test_the_loss_has_gradients():
    images, sigmas, index, noise = draw(3, (4, 1, 2, 2))
    weight = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)

    def loss(w):
        return dsm_loss(lambda x, i: w * x, images, sigmas, index, noise).sum()

    assert torch.autograd.gradcheck(loss, (weight,))


def uint8_images(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randint(
        0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def test_plain_images_are_divided_by_255():
    every = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    result = augment(every)
    assert result.dtype == torch.float32
    assert float(result.min()) == 0
    assert float(result.max()) == 1
    assert torch.equal((result * 255).round().to(torch.uint8), every)
    np.testing.assert_allclose(result.numpy(), every.numpy() / 255, rtol=1e-6)


def test_flipped_images_are_exact_mirrors_and_others_untouched():
    images = uint8_images((6, 3, 5, 7))
    flip = torch.tensor([True, False, True, True, False, False])
    plain, result = augment(images), augment(images, flip=flip)
    for i in range(6):
        expected = plain[i].flip(-1) if flip[i] else plain[i]
        assert torch.equal(result[i], expected)
    assert not torch.equal(result[0], plain[0])


@pytest.mark.parametrize("u", [0.0, 0.25, 1.0])
def test_dequantisation_spreads_each_value_over_its_cell(u):
    every = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    result = augment(every, dequantisation=torch.full(every.shape, u)).double()
    np.testing.assert_allclose(result.numpy(), (every.numpy() + u) / 256, rtol=1e-6, atol=1e-9)
    assert float(result.min()) >= 0
    assert float(result.max()) <= 1
    # The authors' form: x 255/256 + u/256 of x in [0, 1].
    theirs = augment(every).double() * 255 / 256 + u / 256
    torch.testing.assert_close(result, theirs, rtol=1e-6, atol=1e-7)


def test_flips_and_dequantisation_together_are_a_mirrored_dequantised_image():
    images = uint8_images((2, 1, 4, 4))
    u = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    flip = torch.tensor([True, False])
    spread = augment(images, dequantisation=u)
    both = augment(images, flip=flip, dequantisation=u)
    assert torch.equal(both[0], spread[0].flip(-1))
    assert torch.equal(both[1], spread[1])


class Normal:
    def __init__(self, per_sample: bool = True):
        self.per_sample = per_sample

    def log_prob(self, x):
        density = torch.distributions.Normal(0.0, 1.0).log_prob(x)
        return density.sum(1) if self.per_sample else density


def test_maximum_likelihood_is_minus_log_prob_of_each_sample():
    x = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    expected = np.log(2 * np.pi) + torch.tensor([0.0, 2.5])
    torch.testing.assert_close(maximum_likelihood_loss(Normal(), x), expected)
    with pytest.raises(ValueError, match=r"log_prob returned shape \(2, 2\); \(2,\) is needed"):
        maximum_likelihood_loss(Normal(per_sample=False), x)
