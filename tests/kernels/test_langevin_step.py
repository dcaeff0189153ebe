"""One Langevin step against Eq. (1)."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_device import BOTH, DEVICE, needs_kernel

from kernels.langevin_step import langevin_step, langevin_step_reference, langevin_step_triton
from kernels.philox import Stream, philox_key, philox_normal

SHAPES = [(2, 3, 5, 4), (3, 1, 1, 1), (1, 63), (2, 4, 4, 4), (0, 3, 4), (2, 0), (3,), (1, 1030)]


def step(x, score, alpha, *, seed=0, first=0, t=5):
    index = torch.arange(first, first + len(x))
    alpha = torch.tensor(alpha, dtype=torch.float32)
    return langevin_step(x, score, alpha, philox_key(seed), index, torch.tensor(t))


def by_the_book(x, score, alpha, *, seed=0, first=0, t=5):
    index = torch.arange(first, first + len(x))
    z = philox_normal(philox_key(seed), index, torch.tensor(t), tuple(x.shape[1:]), Stream.LANGEVIN)
    alpha = float(torch.tensor(alpha, dtype=torch.float32))
    return x.double() + alpha * score.double() + (2 * alpha) ** 0.5 * z.double()


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.floats(1e-9, 1e3),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=50, deadline=None)
def test_float64_steps_equal_equation_1(shape, alpha, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, dtype=torch.float64, generator=generator)
    score = torch.randn(shape, dtype=torch.float64, generator=generator)
    result = step(x, score, alpha, seed=seed)
    assert result.dtype == torch.float64
    torch.testing.assert_close(
        result, by_the_book(x, score, alpha, seed=seed), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("alpha", [6.2e-6, 0.01, 155.0])
def test_float32_steps_are_as_precise_as_float32_allows(alpha):
    x = torch.rand(3, 3, 8, 8)
    score = torch.randn(3, 3, 8, 8) / alpha**0.5
    result = step(x, score, alpha)
    assert result.dtype == torch.float32
    exact = by_the_book(x, score, alpha)
    scale = exact.abs().max()
    assert (result - exact).abs().max() < 4 * torch.finfo(torch.float32).eps * scale


@pytest.mark.parametrize("score_dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_score_of_any_precision_is_added_without_rounding_the_images(dtype, score_dtype):
    x = torch.randn(2, 3, 4, 4, dtype=dtype)
    score = torch.randn(2, 3, 4, 4).to(score_dtype)
    result = step(x, score, 0.01)
    assert result.dtype == dtype
    torch.testing.assert_close(result, by_the_book(x, score, 0.01).to(dtype), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("alpha", [1e-4, 0.3])
def test_mean_and_variance_of_a_step(alpha):
    x = torch.full((64, 4096), 0.25, dtype=torch.float64)
    score = torch.full((64, 4096), -2.0)
    moved = (step(x, score, alpha) - x).flatten()
    n = len(moved)
    deviation = (2 * alpha) ** 0.5
    assert abs(float(moved.mean()) + 2 * alpha) < 4 * deviation / n**0.5
    assert float(moved.var()) == pytest.approx(2 * alpha, rel=4 * (2 / n) ** 0.5)


def test_noise_differs_by_step_and_sample_and_inputs_stay_untouched():
    x = torch.zeros(2, 100)
    score = torch.zeros(2, 100)
    first, second = step(x, score, 0.5, t=0), step(x, score, 0.5, t=1)
    assert (first != second).float().mean() > 0.99
    assert (first[0] != first[1]).float().mean() > 0.99
    assert torch.equal(step(x, score, 0.5, t=0, first=1)[0], first[1])
    assert not x.any()
    assert not score.any()


def inputs(shape, *, dtype=torch.float32, score_dtype=torch.float32, seed=0):
    """x, score and the rest of the arguments, on the device of the kernel."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(shape, dtype=dtype, generator=generator)
    score = 5 * torch.randn(shape, generator=generator)
    rest = (torch.tensor(0.03), philox_key(seed), torch.arange(7, 7 + shape[0]), torch.tensor(5))
    return x.to(DEVICE), score.to(DEVICE, score_dtype), *(t.to(DEVICE) for t in rest)


def options(shape, *, sigma=False, amplitude=None, angles=None):
    """Keyword arguments: scalars, and a mixture with one angle or as many as samples."""
    given = {"sigma": torch.tensor(0.37, device=DEVICE)} if sigma else {}
    if amplitude is not None:
        given["amplitude"] = torch.tensor(amplitude, device=DEVICE)
    if angles is not None:
        angle = torch.tensor(0.4) if angles == "one" else torch.linspace(0, 1.5, shape[0])
        given["mix"] = (philox_key(99, DEVICE), angle.to(DEVICE))
    return given


LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.to(memory_format=torch.channels_last) if x.ndim == 4 else x,
    "every other pixel": lambda x: torch.stack([x, x], dim=-1)[..., 0],
    "transposed": lambda x: x.mT.contiguous().mT if x.ndim > 1 else x,
    "samples last": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    "cut out": lambda x: torch.nn.functional.pad(x, (1, 2))[..., 1:-2] if x.ndim > 1 else x,
}


def exact(x, score, *rest, **given):
    return langevin_step_reference(x.double(), score.double(), *rest, **given)


def check(result, x, score, *rest, **given):
    """Kernel against float64, allowed twice the error of plain torch in float32."""
    assert result.dtype == x.dtype and result.shape == x.shape
    truth = exact(x, score, *rest, **given)
    reference = langevin_step_reference(x, score, *rest, **given)
    if x.numel():
        own = (reference - truth).abs().max()
        # The normals of kernel and torch differ by the rounding of fused multiply-adds.
        assert (result - truth).abs().max() <= 2 * own + 2e-6


@needs_kernel
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("score_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("sigma", "amplitude", "angles"),
    [(False, None, None), (True, None, "one"), (False, 0.6, None), (True, 0.6, "each")],
)
def test_the_kernel_equals_plain_torch(shape, score_dtype, sigma, amplitude, angles):
    arguments = inputs(shape, score_dtype=score_dtype)
    given = options(shape, sigma=sigma, amplitude=amplitude, angles=angles)
    check(langevin_step(*arguments, **given, impl="triton"), *arguments, **given)


@needs_kernel
@given(
    st.sampled_from(SHAPES),
    *(st.sampled_from(list(LAYOUTS)) for _ in range(3)),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=10, deadline=None)
def test_memory_layouts_do_not_change_the_sample(shape, x_layout, score_layout, out_layout, seed):
    x, score, *rest = inputs(shape, seed=seed)
    plain = langevin_step(x, score, *rest, impl="triton")
    x, score = LAYOUTS[x_layout](x), LAYOUTS[score_layout](score)
    out = LAYOUTS[out_layout](torch.full_like(x, math.nan, memory_format=torch.contiguous_format))
    assert langevin_step(x, score, *rest, out=out, impl="triton") is out
    assert torch.equal(out, plain)
    check(out, x, score, *rest)
    apart = langevin_step(x, score, *rest, impl="triton")
    assert torch.equal(apart, plain)
    assert apart.stride() == torch.empty_like(x).stride()
    assert langevin_step(x, score, *rest, out=x, impl="triton") is x
    assert torch.equal(x, plain)


@needs_kernel
@pytest.mark.parametrize("size", [1, 63, 64, 1030])
def test_the_kernel_writes_every_element_and_nothing_else(size):
    x, score, *rest = inputs((3, size))
    room = torch.full((3, size + 32), math.nan, device=DEVICE)
    alpha, key, index, step = rest
    out = room[:, 16 : 16 + size]
    langevin_step_triton(out, x, score, alpha, None, None, key, index, step, None, None)
    check(out, x, score, *rest)
    assert room[:, :16].isnan().all() and room[:, 16 + size :].isnan().all()


@pytest.mark.parametrize("impl", BOTH)
def test_the_noise_scale_divides_the_score_only(impl):
    x, score, *rest = inputs((2, 3, 4, 4))
    sigma = torch.tensor(0.37, device=DEVICE)
    folded = langevin_step(x, score, *rest, sigma=sigma, impl=impl)
    divided = langevin_step(x, score / sigma, *rest, impl=impl)
    torch.testing.assert_close(folded, divided, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("impl", BOTH)
def test_the_amplitude_scales_the_noise_only(impl):
    x, score, alpha, *rest = inputs((2, 3, 4, 4))
    sigma = torch.tensor(0.37, device=DEVICE)
    amplitudes = [torch.tensor(a, device=DEVICE) for a in (0.0, 0.5, 1.0)]
    still, half, whole = (
        langevin_step(x, score, alpha, *rest, sigma=sigma, amplitude=a, impl=impl)
        for a in amplitudes
    )
    torch.testing.assert_close(still, x + alpha / sigma * score, rtol=1e-6, atol=1e-6)
    z = philox_normal(*rest, (3, 4, 4), Stream.LANGEVIN)
    torch.testing.assert_close(whole - still, z, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(half - still, z / 2, rtol=1e-5, atol=1e-5)
    usual = langevin_step(x, score, alpha, *rest, impl=impl)
    given = langevin_step(x, score, alpha, *rest, amplitude=torch.sqrt(2 * alpha), impl=impl)
    assert torch.equal(given, usual)


@pytest.mark.parametrize("impl", BOTH)
def test_mixtures_turn_one_noise_into_another(impl):
    x, score, alpha, key, index, step = inputs((3, 2, 4, 4))
    other, quarter = philox_key(99, DEVICE), math.pi / 2
    ends = [langevin_step(x, score, alpha, k, index, step, impl=impl) for k in (key, other)]
    angles = torch.tensor([0.0, quarter, 0.5], device=DEVICE)
    arguments = (x, score, alpha, key, index, step)
    mixed = langevin_step(*arguments, mix=(other, angles), impl=impl)
    torch.testing.assert_close(mixed[0], ends[0][0], rtol=0, atol=1e-6)
    torch.testing.assert_close(mixed[1], ends[1][1], rtol=0, atol=1e-6)
    drift = x + alpha * score
    expected = drift + math.cos(0.5) * (ends[0] - drift) + math.sin(0.5) * (ends[1] - drift)
    torch.testing.assert_close(mixed[2], expected[2], rtol=0, atol=1e-5)
    same = langevin_step(*arguments, mix=(other, angles[2]), impl=impl)
    assert torch.equal(same[2], mixed[2])


@pytest.mark.parametrize("amplitude", [None, 0.0, 0.6])
def test_float64_mixtures_equal_the_paper(amplitude):
    x, score, alpha, key, index, step = inputs((2, 3, 4), dtype=torch.float64)
    given = options((2, 3, 4), sigma=True, amplitude=amplitude, angles="each")
    result = langevin_step(x, score, alpha, key, index, step, **given)
    z1, z2 = (
        philox_normal(k, index, step, (3, 4), Stream.LANGEVIN) for k in (key, given["mix"][0])
    )
    angle = given["mix"][1].double().reshape(2, 1, 1)
    z = angle.cos() * z1.double() + angle.sin() * z2.double()
    alpha, sigma = float(alpha), float(given["sigma"])
    noise = (2 * alpha) ** 0.5 if amplitude is None else float(given["amplitude"])
    expected = x + alpha / sigma * score.double() + noise * z
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("impl", BOTH)
@pytest.mark.parametrize("inplace", [False, True])
def test_out_receives_the_result(impl, inplace):
    x, score, *rest = inputs((2, 3, 4, 4))
    expected = langevin_step(x, score, *rest, impl=impl)
    out = x if inplace else torch.full_like(x, math.nan)
    assert langevin_step(x, score, *rest, out=out, impl=impl) is out
    assert torch.equal(out, expected)


@pytest.mark.parametrize("impl", BOTH)
@pytest.mark.parametrize("inplace", [False, True])
def test_compiled_steps_mutate_what_eager_ones_do(impl, inplace):
    def f(x, score, *rest):
        given = options(x.shape, sigma=True, amplitude=0.6, angles="each")
        return langevin_step(2 * x if not inplace else x, score, *rest, **given, impl=impl,
                             out=x if inplace else None)  # fmt: skip

    arguments = inputs((2, 3, 4, 4))
    eager_x, compiled_x = arguments[0].clone(), arguments[0].clone()
    eager = f(eager_x, *arguments[1:])
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")(compiled_x, *arguments[1:])
    torch.testing.assert_close(compiled, eager, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(compiled_x, eager_x, rtol=1e-6, atol=1e-6)
    assert torch.equal(compiled_x, arguments[0]) != inplace


@pytest.mark.slow
def test_inductor_compiles_the_plain_step():
    def f(x, *rest):
        return langevin_step(x, *rest, out=x, impl="torch")

    arguments = inputs((2, 3, 9, 7))
    x = arguments[0].clone()
    expected = f(arguments[0].clone(), *arguments[1:])
    result = torch.compile(f, fullgraph=True)(x, *arguments[1:])
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(x, result)


@needs_kernel
@pytest.mark.parametrize("inplace", [False, True])
def test_the_operation_says_what_it_mutates(inplace):
    x, score, alpha, key, index, step = inputs((2, 3, 4, 4))
    out, source = (x, None) if inplace else (torch.zeros_like(x), x)
    arguments = (out, source, score, alpha, None, None, key, index, step, None, None)
    torch.library.opcheck(torch.ops.scorekit.langevin_step.default, arguments)


def test_gradients_are_plain_torchs():
    x, score, alpha, *rest = inputs((2, 5))
    score.requires_grad_()
    step = langevin_step(x, score, alpha, *rest)
    step.sum().backward()
    torch.testing.assert_close(score.grad, alpha.expand(2, 5))
    with pytest.raises(
        ValueError, match=r"impl = 'triton' is not possible .*(gradient|triton|CPU)"
    ):
        langevin_step(x, score, alpha, *rest, impl="triton")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"x": torch.zeros(2, 4, dtype=torch.int64)},
            r"x is torch.int64 of shape \(2, 4\); float32",
        ),
        ({"x": torch.tensor(0.0)}, r"x is torch.float32 of shape \(\); float32 or float64 \(B"),
        ({"score": torch.zeros(2, 5)}, r"score has shape \(2, 5\); that of x is \(2, 4\)"),
        ({"alpha": torch.ones(1)}, r"alpha has shape \(1,\); a scalar"),
        ({"sigma": torch.ones(2)}, r"sigma has shape \(2,\); a scalar"),
        ({"amplitude": torch.ones(2)}, r"amplitude has shape \(2,\); a scalar"),
        ({"sample_index": torch.arange(3)}, r"sample_index has shape \(3,\); one per sample of x"),
        ({"key": torch.arange(4)}, r"key has shape \(4,\); \(2,\)"),
        ({"step": torch.arange(1)}, r"step has shape \(1,\); a scalar"),
        ({"mix": (torch.arange(1), torch.tensor(0.0))}, r"mix has a key of shape \(1,\)"),
        ({"mix": (torch.arange(2), torch.zeros(3))}, r"mix has an angle of shape \(3,\); \(\) or"),
        (
            {"out": torch.zeros(2, 4, dtype=torch.float64)},
            r"out is torch.float64 of shape \(2, 4\)",
        ),
        ({"out": torch.zeros(4, 2)}, r"out is torch.float32 of shape \(4, 2\); torch.float32 of"),
        ({"out": torch.zeros(1, 4).expand(2, 4)}, r"out has strides \(0, 1\); elements must not"),
        ({"impl": "cuda"}, "impl = 'cuda' is unknown"),
        ({"score": torch.zeros(2, 4, device="meta")}, "langevin_step needs its tensors on one dev"),
    ],
)
def test_bad_arguments_are_refused(change, message):
    arguments = {
        "x": torch.zeros(2, 4),
        "score": torch.zeros(2, 4),
        "alpha": torch.tensor(0.1),
        "key": philox_key(0),
        "sample_index": torch.arange(2),
        "step": torch.tensor(0),
    }
    with pytest.raises(ValueError, match=message):
        langevin_step(**{**arguments, **change})


@pytest.mark.parametrize(
    ("dtype", "score_dtype", "reason"),
    [
        (torch.float64, torch.float32, "x is torch.float64"),
        (torch.float32, torch.float64, "score is torch.float64"),
    ],
)
@needs_kernel
def test_dtypes_the_kernel_does_not_take(dtype, score_dtype, reason):
    arguments = inputs((2, 5), dtype=dtype, score_dtype=score_dtype)
    with pytest.raises(ValueError, match=f"not possible for langevin_step: {reason}"):
        langevin_step(*arguments, impl="triton")
