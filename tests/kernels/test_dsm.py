"""The fused objective against plain torch in float64, and against scorekit's."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_device import BOTH, DEVICE, needs_kernel

from kernels.dispatch import INTERPRETED
from kernels.dsm import (
    dsm_residual_loss,
    dsm_residual_loss_reference,
    perturb,
    perturb_reference,
)
from kernels.philox import Stream, philox_key, philox_normal
from scorekit.objectives.dsm import dsm_loss

SHAPES = [(2, 3, 5, 4), (3, 1, 1, 1), (1, 63), (2, 4, 4, 4), (0, 3, 4), (2, 0), (3,), (1, 1030)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.to(memory_format=torch.channels_last) if x.ndim == 4 else x,
    "every other pixel": lambda x: torch.stack([x, x], dim=-1)[..., 0],
    "transposed": lambda x: x.mT.contiguous().mT if x.ndim > 1 else x,
    "samples last": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
}


def inputs(shape, *, dtype=torch.float32, seed=0):
    """x or a score, and sigma, key, sample_index and step."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator).to(DEVICE, dtype)
    sigma = torch.rand(shape[0], generator=generator) * 3 + 0.01
    rest = (sigma, philox_key(seed), torch.arange(5, 5 + shape[0]), torch.tensor(2))
    return x, *(tensor.to(DEVICE) for tensor in rest)


@pytest.fixture
def poisoned():
    """Memory that is not written to holds NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)
    torch.utils.deterministic.fill_uninitialized_memory = fill


def noise(shape, key, index, step):
    return philox_normal(key, index, step, tuple(shape[1:]), Stream.PERTURBATION)


def loss_and_gradient(function, score, *rest, weights=None, **given):
    score = score.detach().requires_grad_()
    loss = function(score, *rest, **given)
    weights = torch.linspace(0.5, 2, len(loss), device=loss.device) if weights is None else weights
    (gradient,) = torch.autograd.grad(loss, score, weights.to(loss.dtype))
    return loss.detach(), gradient


def assert_as_good(result, reference, truth, atol):
    """At most twice the reference's distance from the truth."""
    assert result.dtype == reference.dtype and result.shape == reference.shape
    if truth.numel():
        own = (reference.double() - truth).abs().max()
        assert (result.double() - truth).abs().max() <= 2 * own + atol


@needs_kernel
@pytest.mark.parametrize("shape", SHAPES)
def test_perturbed_images_equal_plain_torchs(shape, poisoned):
    x, *rest = inputs(shape)
    result = perturb(x, *rest, impl="triton")
    truth = perturb_reference(x.double(), *rest)
    # Normals of kernel and torch differ by up to 2e-6, and sigma is up to 3.
    assert_as_good(result, perturb_reference(x, *rest), truth, 6e-6)


@needs_kernel
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_losses_and_gradients_equal_plain_torchs(shape, dtype, poisoned):
    score, *rest = inputs(shape, dtype=dtype)
    loss, gradient = loss_and_gradient(dsm_residual_loss, score, *rest, impl="triton")
    reference = loss_and_gradient(dsm_residual_loss_reference, score, *rest)
    truth = loss_and_gradient(dsm_residual_loss_reference, score.double(), *rest)
    assert loss.dtype == torch.float32
    # Normals of kernel and torch differ by up to 2e-6: sum |residual| <= (2 D loss)**(1/2).
    spread = (2 * math.prod(shape[1:]) * truth[0]).sqrt().sum()
    assert_as_good(loss, reference[0], truth[0], 2e-6 * float(spread))
    assert gradient.dtype == dtype
    atol = 1e-5
    if INTERPRETED and dtype == torch.bfloat16 and gradient.numel():
        # The interpreter cuts the lower half off where kernels round to nearest.
        atol += torch.finfo(dtype).eps * float(truth[1].abs().max())
    assert_as_good(gradient, reference[1], truth[1], atol)


@needs_kernel
@given(st.sampled_from(SHAPES), *(st.sampled_from(list(LAYOUTS)) for _ in range(2)), st.data())
@settings(max_examples=8, deadline=None)
def test_memory_layouts_change_nothing(shape, x_layout, score_layout, data):
    x, *rest = inputs(shape, seed=data.draw(st.integers(0, 1000)))
    plain = perturb(x, *rest, impl="triton")
    laid_out = LAYOUTS[x_layout](x)
    result = perturb(laid_out, *rest, impl="triton")
    assert torch.equal(result, plain)
    assert result.stride() == torch.empty_like(laid_out).stride()

    loss, gradient = loss_and_gradient(dsm_residual_loss, x, *rest, impl="triton")
    laid_out = LAYOUTS[score_layout](x)
    same = loss_and_gradient(dsm_residual_loss, laid_out, *rest, impl="triton")
    assert torch.equal(same[0], loss) and torch.equal(same[1], gradient)
    assert same[1].stride() == torch.empty_like(laid_out).stride()


@pytest.mark.parametrize("impl", BOTH)
def test_the_loss_is_scorekits_with_the_same_noise(impl):
    images, sigma, key, index, step = inputs((3, 2, 5, 4))
    rest = (sigma, key, index, step)
    sigmas = torch.stack([sigma[2], sigma[0], sigma[1]])
    level = torch.tensor([1, 2, 0], device=DEVICE)
    weight = torch.tensor(0.7, device=DEVICE, requires_grad=True)

    def score(x, level):
        return -weight * x.sin() / sigmas[level].reshape(-1, 1, 1, 1)

    expected = dsm_loss(score, images, sigmas, level, noise(images.shape, key, index, step))
    loss = dsm_residual_loss(score(perturb(images, *rest, impl=impl), level), *rest, impl=impl)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad(each.mean(), weight)[0] for each in (loss, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("impl", BOTH)
def test_the_score_of_the_noise_alone_has_no_loss_and_that_of_nothing_half_its_square(impl):
    _, sigma, key, index, step = inputs((3, 2, 5, 4))
    z = noise((3, 2, 5, 4), key, index, step)
    perfect = -z / sigma.reshape(-1, 1, 1, 1)
    assert dsm_residual_loss(perfect, sigma, key, index, step, impl=impl).max() < 1e-10
    none = dsm_residual_loss(torch.zeros_like(z), sigma, key, index, step, impl=impl)
    torch.testing.assert_close(none, 0.5 * z.flatten(1).square().sum(1), rtol=1e-5, atol=1e-5)
    moved = perturb(torch.zeros_like(z), sigma, key, index, step, impl=impl)
    torch.testing.assert_close(moved, sigma.reshape(-1, 1, 1, 1) * z, rtol=1e-6, atol=6e-6)


@pytest.mark.parametrize("shape", [(2, 3, 2, 2), (3, 5), (2,)])
def test_gradients_of_plain_torch_in_float64(shape):
    x, *rest = inputs(shape)
    x = x.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: perturb(x, *rest), (x,))
    assert torch.autograd.gradcheck(lambda score: dsm_residual_loss(score, *rest), (x,))


@pytest.mark.parametrize("impl", BOTH)
def test_the_gradient_to_the_images_is_the_identity_and_none_reaches_sigma(impl):
    x, sigma, *rest = inputs((2, 3, 4, 4))
    x.requires_grad_()
    sigma.requires_grad_()
    upstream = torch.randn_like(x)
    perturb(x, sigma, *rest, impl=impl).backward(upstream)
    assert torch.equal(x.grad, upstream)
    dsm_residual_loss(x, sigma, *rest, impl=impl).sum().backward()
    assert sigma.grad is None


@needs_kernel
def test_losses_are_the_same_to_the_last_bit_in_every_run():
    score, *rest = inputs((2, 3000))
    losses = [dsm_residual_loss(score, *rest, impl="triton") for _ in range(3)]
    assert torch.equal(losses[0], losses[1]) and torch.equal(losses[0], losses[2])


@needs_kernel
def test_gradients_of_a_mean_and_of_one_image():
    """Upstream gradients that are expanded, or zero but for one image."""
    score, *rest = inputs((3, 2, 5))
    for weights in (torch.full((), 1 / 3, device=DEVICE).expand(3), torch.eye(3, device=DEVICE)[1]):
        _, ours = loss_and_gradient(dsm_residual_loss, score, *rest, weights=weights, impl="triton")
        _, theirs = loss_and_gradient(dsm_residual_loss_reference, score, *rest, weights=weights)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torch_sees_through_the_operations(dtype):
    score, sigma, *rest = inputs((2, 3, 4, 4), dtype=dtype)
    ops = torch.ops.scorekit
    for memory_format in (torch.contiguous_format, torch.channels_last):
        score = score.detach().to(memory_format=memory_format).requires_grad_()
        torch.library.opcheck(ops.dsm_residual_loss.default, (score, sigma, *rest))
        torch.library.opcheck(ops.perturb.default, (score.float(), sigma, *rest))
        grad = (sigma.clone(), score.detach(), sigma, *rest)
        torch.library.opcheck(ops.dsm_residual_grad.default, grad)


@pytest.mark.parametrize("impl", BOTH)
def test_a_compiled_training_loss_equals_the_eager_one(impl):
    def f(x, weight, *rest):
        x_noisy = perturb(x, *rest, impl=impl)
        return dsm_residual_loss((weight * x_noisy).to(torch.bfloat16), *rest, impl=impl).mean()

    x, *rest = inputs((2, 3, 4, 4))
    results = []
    for function in (f, torch.compile(f, fullgraph=True, backend="aot_eager")):
        weight = torch.full_like(x, 0.3, requires_grad=True)
        loss = function(x, weight, *rest)
        loss.backward()
        results.append((loss.detach(), weight.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("function", "name"), [(perturb, "x"), (dsm_residual_loss, "score")], ids=["perturb", "loss"]
)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {0: torch.zeros(2, 3, dtype=torch.int32)},
            r"{} is torch.int32 of shape \(2, 3\); a float",
        ),
        (
            {0: torch.tensor(0.0)},
            r"{} is torch.float32 of shape \(\); a floating dtype, \(B, ...\)",
        ),
        ({1: torch.ones(3)}, r"sigma has shape \(3,\); one per sample of {} \(2,\) is needed"),
        ({1: torch.tensor(1.0)}, r"sigma has shape \(\); one per sample of {} \(2,\) is needed"),
        ({2: torch.arange(3)}, r"key has shape \(3,\); \(2,\)"),
        ({3: torch.arange(1)}, r"sample_index has shape \(1,\); one per sample of {}"),
        ({4: torch.arange(1)}, r"step has shape \(1,\); a scalar"),
    ],
)
def test_bad_arguments_are_refused(function, name, change, message):
    arguments = [torch.zeros(2, 3), torch.ones(2), philox_key(0), torch.arange(2), torch.tensor(0)]
    for position, value in change.items():
        arguments[position] = value
    with pytest.raises(ValueError, match=message.format(name)):
        function(*arguments)


def test_dtypes_that_are_refused_or_left_to_plain_torch():
    _, *rest = inputs((2, 3))
    with pytest.raises(ValueError, match=r"x is torch.bfloat16; float32 or float64 is needed"):
        perturb(torch.zeros(2, 3, dtype=torch.bfloat16, device=DEVICE), *rest)
    double = torch.zeros(2, 3, dtype=torch.float64, device=DEVICE)
    assert perturb(double, *rest).dtype == torch.float64
    assert dsm_residual_loss(double, *rest).dtype == torch.float64
    for function in (perturb, dsm_residual_loss):
        with pytest.raises(ValueError, match="impl = 'triton' is not possible"):
            function(double, *rest, impl="triton")
