"""InstanceNorm++ with ELU: every implementation against the paper's formula in float64."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kernel_device import BOTH, DEVICE, needs_kernel
from torch import Tensor
from torch.utils import deterministic

from kernels.dispatch import INTERPRETED, fallback_reasons, plain_operations
from kernels.instance_norm_plus import (
    _blocks,
    elu,
    instance_norm_plus,
    instance_norm_plus_reference,
)

LAYOUTS = ("contiguous", "channels_last", "sliced", "sliced channels_last")
# Channels not a power of two, one pixel, an odd image, an empty batch, several tiles of space.
SHAPES = [(2, 3, 7, 9), (3, 5, 1, 1), (2, 48, 4, 3), (0, 4, 3, 2), (1, 2, 1, 63), (1, 3, 33, 64)]


def images(shape, layout: str, generator: torch.Generator, dtype=torch.float32) -> Tensor:
    x = torch.randn(shape, generator=generator).mul(2).add(0.5).to(dtype).to(DEVICE)
    if "sliced" in layout:
        x = x.repeat_interleave(2, dim=1)
    if "channels_last" in layout:
        x = x.contiguous(memory_format=torch.channels_last)
    return x[:, ::2] if "sliced" in layout else x


def parameters(shape, conditional: bool, generator: torch.Generator) -> list[Tensor]:
    rows = shape[:2] if conditional else shape[1:2]
    return [torch.randn(rows, generator=generator).to(DEVICE) for _ in range(3)]


def value_and_grads(function, arguments, dy: Tensor, dtype, **options) -> list[Tensor]:
    arguments = [argument.detach().to(dtype).requires_grad_() for argument in arguments]
    y = function(*arguments, **options)
    return [y, *torch.autograd.grad(y, arguments, dy.to(dtype))]


def check(function, arguments, dy: Tensor, **options) -> list[Tensor]:
    """Errors of value and gradients are at most twice those of the float32 reference."""
    activation = {"activation": options["activation"]}
    reference = instance_norm_plus_reference
    exact = value_and_grads(reference, arguments, dy, torch.float64, **activation)
    plain = value_and_grads(reference, arguments, dy, torch.float32, **activation)
    ours = value_and_grads(function, arguments, dy, torch.float32, **options)
    for name, got, want, single in zip(
        ("y", "x", "gamma", "alpha", "beta"), ours, exact, plain, strict=True
    ):
        assert got.shape == want.shape, name
        assert got.dtype == torch.float32, name
        if not want.numel():
            continue
        # Where two terms of some size cancel, the scale of the result says little.
        allowed = 2 * (single - want).abs().max() + 4e-6 * (1 + want.abs().max())
        if name == "x":
            x, gamma, alpha = (argument.double() for argument in arguments[:3])
            rstd = (x.var((2, 3), correction=0) + 1e-5).rsqrt()
            rstd_m = (x.mean((2, 3)).var(1, keepdim=True) + 1e-5).rsqrt()
            terms = (rstd * gamma).abs().max() + (rstd_m * gamma * alpha).abs().max()
            allowed = allowed + 2e-6 * terms * dy.abs().max()
        assert (got - want).abs().max() <= allowed, name
    return ours


@pytest.fixture
def poisoned():
    """Memory from torch.empty holds NaN: what a kernel leaves unwritten shows."""
    before = torch.are_deterministic_algorithms_enabled(), deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    deterministic.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before[0])
    deterministic.fill_uninitialized_memory = before[1]


@pytest.mark.parametrize("impl", BOTH)
@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("activation", ["none", "elu"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value_and_gradients_equal_the_formula(
    shape, layout, activation, conditional, impl, poisoned
):
    generator = torch.Generator().manual_seed(sum(shape))
    x = images(shape, layout, generator)
    dy = images(shape, "contiguous", generator)
    arguments = [x, *parameters(shape, conditional, generator)]
    check(instance_norm_plus, arguments, dy, activation=activation, impl=impl)


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(2, 9), st.integers(1, 9), st.integers(1, 9)),
    layout=st.sampled_from(LAYOUTS),
    dy_layout=st.sampled_from(LAYOUTS),
    conditional=st.booleans(),
    activation=st.sampled_from(["none", "elu"]),
    seed=st.integers(0, 2**32 - 1),
)
@example((1, 2, 1, 6), "contiguous", "contiguous", False, "none", 999257919)  # means nearly equal
@settings(max_examples=60, deadline=None)
def test_the_torch_path_equals_the_formula_for_any_shape(
    shape, layout, dy_layout, conditional, activation, seed
):
    generator = torch.Generator().manual_seed(seed)
    arguments = [images(shape, layout, generator), *parameters(shape, conditional, generator)]
    dy = images(shape, dy_layout, generator)
    check(instance_norm_plus, arguments, dy, activation=activation, impl="torch")


@pytest.mark.parametrize("impl", BOTH)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_result_has_the_dtype_and_memory_format_of_x(layout, dtype, impl):
    generator = torch.Generator().manual_seed(1)
    x = images((2, 6, 3, 5), layout, generator, dtype).requires_grad_()
    wanted = torch.channels_last if "channels_last" in layout else torch.contiguous_format
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients):
            y = instance_norm_plus(x, *parameters(x.shape, False, generator), impl=impl)
        assert y.dtype == dtype
        assert y.is_contiguous(memory_format=wanted)
    dy = images(x.shape, "contiguous", generator, dtype)
    (dx,) = torch.autograd.grad(y, x, dy)
    assert dx.dtype == dtype
    assert dx.is_contiguous(memory_format=wanted) or "sliced" in layout


@pytest.mark.parametrize("impl", BOTH)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(2, 3, 1, 7), (1, 4, 40, 33)])
def test_a_mean_of_a_thousand_deviations_leaves_the_deviation_exact(shape, layout, impl):
    generator = torch.Generator().manual_seed(2)
    # Multiples of 2**-12 around 1000 are exact in float32, so all error is the statistics'.
    x = (images(shape, layout, generator) * 2**10).round() * 2.0**-12
    x = x + 1000 * torch.tensor([1.0, -2.0, 3.0, 0.5], device=DEVICE)[: shape[1], None, None]
    # A first pixel far off: sums of squares around it would lose all digits of the deviation.
    x[:, 0, 0, 0] += 500
    ones, zeros = torch.ones(shape[1], device=DEVICE), torch.zeros(shape[1], device=DEVICE)
    y = instance_norm_plus(x, ones, zeros, zeros, impl=impl)
    exact = instance_norm_plus_reference(*(t.double() for t in (x, ones, zeros, zeros)))
    # The mean is a float32 around 1000: half a unit in its last place, in deviations.
    deviation = x.double().std((2, 3), correction=0)
    allowed = 4 * 2.0**-24 * (x.abs().amax((2, 3)) / deviation) + 1e-5 * exact.abs().amax((2, 3))
    assert ((y - exact).abs().amax((2, 3)) <= allowed).all()


@pytest.mark.parametrize("impl", BOTH)
@pytest.mark.parametrize("activation", ["none", "elu"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_once(dtype, activation, impl):
    generator = torch.Generator().manual_seed(3)
    shape = (2, 5, 6, 8)
    # In bfloat16 itself, a mean of 30 deviations would leave two digits of nothing.
    x = (images(shape, "contiguous", generator) / 4 + 15).to(dtype)
    rows = parameters(shape, True, generator)
    dy = images(shape, "contiguous", generator, dtype)
    arguments = [x, *rows]
    exact = value_and_grads(
        instance_norm_plus_reference, arguments, dy, torch.float64, activation=activation
    )
    leaves = [argument.detach().requires_grad_() for argument in arguments]
    y = instance_norm_plus(*leaves, activation=activation, impl=impl)
    ours = [y, *torch.autograd.grad(y, leaves, dy)]
    assert [t.dtype for t in ours] == [dtype, dtype] + [torch.float32] * 3
    half_unit = torch.finfo(dtype).eps / 2
    if INTERPRETED and impl == "triton" and dtype == torch.bfloat16:
        half_unit *= 2  # Triton's interpreter rounds to bfloat16 towards zero.
    for got, want in zip(ours, exact, strict=True):
        rounding = half_unit * want.abs() if got.dtype == dtype else 0
        assert ((got.double() - want).abs() <= rounding + 2e-5 * (1 + want.abs().max())).all()


@pytest.mark.parametrize("impl", BOTH)
def test_gradients_keep_the_dtype_of_the_parameters(impl):
    generator = torch.Generator().manual_seed(4)
    x = images((2, 3, 2, 2), "contiguous", generator, torch.bfloat16)
    rows = [p.bfloat16().requires_grad_() for p in parameters(x.shape, False, generator)]
    grads = torch.autograd.grad(instance_norm_plus(x, *rows, impl=impl).sum(), rows)
    assert all(grad.dtype == torch.bfloat16 and grad.shape == (3,) for grad in grads)


@pytest.mark.parametrize("impl", BOTH)
def test_rows_may_be_views_of_one_embedding(impl):
    generator = torch.Generator().manual_seed(5)
    x = images((3, 4, 2, 5), "channels_last", generator)
    table = torch.randn(3, 12, generator=generator).to(DEVICE)
    views = table.chunk(3, dim=-1)
    packed = instance_norm_plus(x, *(view.contiguous() for view in views), impl=impl)
    assert torch.equal(instance_norm_plus(x, *views, impl=impl), packed)
    strided = [table[:, i::3] for i in range(3)]
    packed = instance_norm_plus(x, *(view.contiguous() for view in strided), impl=impl)
    assert torch.equal(instance_norm_plus(x, *strided, impl=impl), packed)


@pytest.mark.parametrize("impl", BOTH)
@pytest.mark.parametrize("activation", ["none", "elu"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_shows(value, activation, impl):
    x = images((2, 3, 4, 4), "contiguous", torch.Generator().manual_seed(6))
    x[1, 1, 2, 3] = value
    one, zero = torch.ones(3, device=DEVICE), torch.zeros(3, device=DEVICE)
    y = instance_norm_plus(x, one, one, zero, activation=activation, impl=impl)
    assert y[0].isfinite().all()
    # Channels share the variance of their means.
    assert y[1].isnan().all()


@pytest.mark.parametrize("impl", BOTH)
def test_samples_do_not_depend_on_their_batch(impl):
    generator = torch.Generator().manual_seed(7)
    x = images((4, 5, 6, 6), "contiguous", generator)
    rows = parameters(x.shape, False, generator)
    together = instance_norm_plus(x, *rows, activation="elu", impl=impl)
    for i in range(4):
        alone = instance_norm_plus(x[i : i + 1], *rows, activation="elu", impl=impl)
        assert torch.allclose(alone[0], together[i], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("activation", ["none", "elu"])
@pytest.mark.parametrize("function", [instance_norm_plus, instance_norm_plus_reference])
def test_gradcheck(function, activation, conditional):
    generator = torch.Generator().manual_seed(8)
    shape = (2, 3, 2, 3)
    arguments = [images(shape, "contiguous", generator), *parameters(shape, conditional, generator)]
    arguments = [argument.double().cpu().requires_grad_() for argument in arguments]
    assert torch.autograd.gradcheck(lambda *a: function(*a, activation=activation), arguments)


@pytest.mark.parametrize("impl", BOTH)
def test_a_second_derivative_is_refused(impl):
    x = images((1, 2, 2, 2), "contiguous", torch.Generator().manual_seed(9)).requires_grad_()
    one = torch.ones(2, device=DEVICE)
    y = instance_norm_plus(x, one, one, one, activation="elu", impl=impl)
    # Raised by the first derivative: the second would be wrong, unsaid, in what x does not lead to.
    with pytest.raises(RuntimeError, match=r"cannot be differentiated; run .*plain_operations"):
        torch.autograd.grad(y.square().sum(), x, create_graph=True)


@pytest.mark.parametrize("activation", ["none", "elu"])
@pytest.mark.parametrize("conditional", [False, True])
def test_plain_operations_can_be_differentiated_in_every_mode(activation, conditional):
    generator = torch.Generator().manual_seed(8)
    shape = (2, 3, 2, 2)
    x = images(shape, "contiguous", generator, torch.float64)
    arguments = [x, *(p.double() for p in parameters(shape, conditional, generator))]
    arguments = [argument.requires_grad_() for argument in arguments]

    def function(*given):
        return instance_norm_plus(*given, activation=activation)

    with plain_operations():
        assert torch.autograd.gradcheck(function, arguments, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(function, arguments, check_fwd_over_rev=True)


def test_without_gradients_the_argument_is_left_alone():
    x = images((2, 3, 4, 4), "contiguous", torch.Generator().manual_seed(10))
    before = x.clone()
    rows = [torch.ones(3, device=DEVICE)] * 3
    with torch.inference_mode():
        inferred = instance_norm_plus(x, *rows, activation="elu", impl="torch")
    assert torch.equal(x, before)
    trained = instance_norm_plus(x.requires_grad_(), *rows, activation="elu", impl="torch")
    assert torch.equal(inferred, trained)


def test_elu_is_torchs():
    x = torch.linspace(-30, 30, 10001, device=DEVICE)
    assert torch.allclose(elu(x), torch.nn.functional.elu(x), rtol=0, atol=2e-7)


@pytest.mark.skipif(DEVICE == "cuda", reason="the reasons of a machine without a GPU")
def test_auto_takes_plain_torch_on_the_cpu():
    x = torch.randn(1, 2, 3, 3)
    instance_norm_plus(x, *[torch.ones(2)] * 3)
    assert "instance_norm_plus" in fallback_reasons()


@needs_kernel
@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_operators_are_registered_soundly(layout, conditional):
    generator = torch.Generator().manual_seed(11)
    x = images((2, 3, 2, 4), layout, generator).requires_grad_()
    rows = [p.requires_grad_() for p in parameters(x.shape, conditional, generator)]
    torch.library.opcheck(torch.ops.scorekit.instance_norm_plus, (x, *rows, True, 1e-5))
    _, mean, rstd = torch.ops.scorekit.instance_norm_plus(x, *rows, True, 1e-5)
    saved = [t.detach() for t in (torch.ones_like(x), x, mean, rstd, *rows)]
    backward = torch.ops.scorekit.instance_norm_plus_backward
    torch.library.opcheck(backward, (*saved, True, 1e-5))


@pytest.mark.parametrize("impl", BOTH)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
def test_compiled_training_equals_eager_training(layout, impl):
    generator = torch.Generator().manual_seed(12)
    shape = (2, 3, 4, 5)
    arguments = [images(shape, layout, generator), *parameters(shape, True, generator)]
    dy = images(shape, "contiguous", generator)

    def block(*arguments):
        return 2 * instance_norm_plus(*arguments, activation="elu", impl=impl)

    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    eager = value_and_grads(block, arguments, dy, torch.float32)
    for ours, want in zip(
        value_and_grads(compiled, arguments, dy, torch.float32), eager, strict=True
    ):
        assert ours.stride() == want.stride() or "sliced" in layout
        assert torch.allclose(ours, want, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_inductor_fuses_the_torch_path_without_breaks():
    generator = torch.Generator().manual_seed(13)
    shape = (2, 16, 8, 8)
    arguments = [images(shape, "channels_last", generator), *parameters(shape, True, generator)]
    dy = images(shape, "channels_last", generator)

    def block(*arguments):
        return instance_norm_plus(*arguments, activation="elu", impl="torch")

    check(
        lambda *a, activation: torch.compile(block, fullgraph=True)(*a),
        arguments,
        dy,
        activation="elu",
    )


@given(
    channels=st.integers(2, 4096),
    space=st.integers(1, 2**20),
    channels_last=st.booleans(),
    over_space=st.booleans(),
)
def test_blocks_are_powers_of_two_within_the_tile(channels, space, channels_last, over_space):
    blocks = _blocks(channels, space, channels_last, over_space=over_space)
    assert all(block & (block - 1) == 0 and block >= 1 for block in blocks)
    assert blocks[0] * blocks[1] <= 2048
    assert blocks[0] < 2 * channels
    assert blocks[1] < 2 * space


GOOD = {"x": (2, 3, 4, 4), "gamma": (3,), "alpha": (3,), "beta": (3,)}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": (2, 1, 4, 4)}, r"x has shape \(2, 1, 4, 4\); .* C >= 2"),
        ({"x": (2, 3, 4)}, r"x has shape \(2, 3, 4\)"),
        ({"x": (2, 3, 0, 4)}, r"x has shape \(2, 3, 0, 4\); .* H >= 1"),
        ({"gamma": (4,)}, r"gamma has shape \(4,\); \(3,\), or \(2, 3\)"),
        ({"alpha": (2, 3)}, r"alpha has shape \(2, 3\); .* for all three"),
        ({"beta": (2,)}, r"beta has shape \(2,\)"),
    ],
)
def test_other_shapes_are_refused(changed, message):
    tensors = {name: torch.ones(shape) for name, shape in (GOOD | changed).items()}
    with pytest.raises(ValueError, match=message):
        instance_norm_plus(**tensors)


def test_other_arguments_are_refused():
    tensors = {name: torch.ones(shape) for name, shape in GOOD.items()}
    with pytest.raises(ValueError, match="activation = 'relu' is unknown; known: none, elu"):
        instance_norm_plus(**tensors, activation="relu")
    with pytest.raises(ValueError, match=r"x is torch\.int64; a floating dtype"):
        instance_norm_plus(**(tensors | {"x": torch.ones(2, 3, 4, 4, dtype=torch.int64)}))


@needs_kernel
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": torch.ones(2, 3, 4, 4).double()}, "float64 is not supported"),
        ({"beta": torch.ones(3).bfloat16()}, "gamma, alpha and beta differ in dtype"),
        (
            {"x": torch.ones(1, 5000, 1, 1)}
            | dict.fromkeys(("gamma", "alpha", "beta"), torch.ones(5000)),
            "C = 5000 exceeds 4096",
        ),
        ({"x": torch.ones(1, 3, 1, 1).expand(2, 3, 2**15, 2**15)}, "3221225472 elements"),
    ],
)
def test_what_the_kernels_cannot_take_is_named(changed, message):
    tensors = {name: torch.ones(shape) for name, shape in GOOD.items()} | changed
    tensors = {name: tensor.to(DEVICE) for name, tensor in tensors.items()}
    with pytest.raises(ValueError, match=message):
        instance_norm_plus(**tensors, impl="triton")
