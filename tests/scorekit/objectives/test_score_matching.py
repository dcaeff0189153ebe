"""Score matching objectives: every way against full Jacobians, and what is refused."""

import math
from functools import lru_cache
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.func import grad, hessian, jacrev, vmap

from kernels.philox import philox_key
from scorekit.derivatives.displacement import default_epsilon
from scorekit.models.score_network import ScoreNetwork
from scorekit.objectives.directions import PROJECTION_KINDS, projections
from scorekit.objectives.dsm import dsm_loss
from scorekit.objectives.score_matching import (
    OBJECTIVES,
    WAYS,
    Conditioned,
    annealed_score_matching_loss,
    needs_projection,
    score_matching_loss,
)
from scorekit.runtime.compilation import compile_unavailable_reason, compiled, precision_context

B, SHAPE, DIM = 3, (1, 2, 3), 6
EPSILON = 1e-3


class Energy(nn.Module):
    """Residual and convolutional, every operation smooth."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 3, 3, padding=1)
        self.block = nn.Sequential(nn.Softplus(), nn.Conv2d(3, 3, 3, padding=1), nn.SiLU())
        self.last = nn.Linear(3 * DIM, 1)

    def forward(self, x):
        h = self.first(x)
        h = h + 0.5 * self.block(h)
        return self.last(torch.tanh(h).flatten(1)).squeeze(1) - x.square().mean(dim=(1, 2, 3))


class Score(nn.Module):
    """Not the gradient of anything, with an asymmetric Jacobian."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1), nn.Softplus(), nn.Conv2d(3, 1, 3, padding=1)
        )

    def forward(self, x):
        return self.net(x) - x


def model_of(kind, dtype=torch.float64):
    torch.manual_seed(0)
    model = Energy() if kind == "energy" else Score()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 2
    return model.to(dtype)


@lru_cache(maxsize=1)
def batch():
    torch.manual_seed(1)
    x, v, noise = (torch.randn(B, *SHAPE, dtype=torch.float64) for _ in range(3))
    return x, v, noise, 0.5 + torch.rand(B, dtype=torch.float64)


def arguments(objective, kind, way):
    """Return what score_matching_loss takes for one entry of WAYS, noise always among it."""
    _, v, noise, sigma = batch()
    given = {"objective": objective, "energy": kind == "energy", "way": way}
    given |= {"noise": noise, "sigma": sigma}
    if needs_projection(objective):
        given["projection"] = v
    if objective.startswith("fd_"):
        given["epsilon"] = EPSILON
    return given


def formula(model, objective, kind):
    """Return the objective of each sample from its whole Jacobian."""
    x, v, noise, sigma = batch()
    x = x + sigma.reshape(-1, 1, 1, 1) * noise

    def one(y):
        return model(y[None])[0]

    if kind == "energy":
        s, jacobian = vmap(grad(one))(x).flatten(1), vmap(hessian(one))(x)
    else:
        s, jacobian = model(x).flatten(1), vmap(jacrev(one))(x)
    jacobian = jacobian.reshape(B, DIM, DIM)
    v, noise = v.flatten(1), noise.flatten(1)
    curvature = torch.einsum("bi,bij,bj->b", v, jacobian, v)
    residual = s + noise / sigma[:, None]
    match objective.removeprefix("fd_") if objective != "fd_dsm" else objective:
        case "exact_sm":
            return 0.5 * s.square().sum(1) + torch.einsum("bii->b", jacobian)
        case "ssm":
            return curvature + 0.5 * (v * s).sum(1).square()
        case "ssm_vr":
            return curvature + 0.5 * s.square().sum(1)
        case "dsm":
            return 0.5 * residual.square().sum(1)
        case "fd_dsm":
            return 0.5 * (v * residual).sum(1).square()
    raise AssertionError(objective)


def gradient(loss, model):
    parameters = list(model.parameters())
    found = torch.autograd.grad(loss, parameters, materialize_grads=True)
    return torch.cat([g.flatten() for g in found])


ENTRIES = [(objective, kind, way) for (objective, kind), there in WAYS.items() for way in there]
#: A finite difference of EPSILON in float64; everything else is exact.
TOLERANCE = {True: 1e-5, False: 1e-10}


def check(loss, model, objective, kind):
    expected = formula(model, objective, kind)
    rtol = TOLERANCE[objective.startswith("fd_")]
    torch.testing.assert_close(loss, expected, rtol=rtol, atol=rtol)
    # Samples are told apart: a sum would hide terms that belong to another one.
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=loss.dtype)
    found = gradient((weights * loss).sum(), model)
    right = gradient((weights * expected).sum(), model)
    assert (found - right).norm() <= rtol * right.norm()


@pytest.mark.parametrize(("objective", "kind", "way"), ENTRIES)
def test_loss_and_gradient_are_those_of_the_whole_jacobian(objective, kind, way):
    model = model_of(kind)
    loss = score_matching_loss(model, batch()[0], **arguments(objective, kind, way))
    assert loss.shape == (B,) and loss.dtype == torch.float64
    check(loss, model, objective, kind)


compiles = pytest.mark.skipif(
    compile_unavailable_reason() is not None, reason="torch.compile does not work"
)
#: One of each sort is compiled to machine code as training does, the others are traced and
#: differentiated. Exact SM is SSM over a whole basis, one direction after another: traced once.
TRACED = [
    (objective, kind, way)
    for objective, kind, way in ENTRIES
    if objective != "exact_sm" or (kind, way) == ("score", "forward_mode")
]
TO_MACHINE_CODE = (
    ("ssm_vr", "score", "double_backward"),
    ("fd_ssm", "energy", "finite_difference"),
)


@compiles
@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "kind", "way", "backend"),
    [(*entry, "aot_eager") for entry in TRACED]
    + [(*entry, "inductor") for entry in TO_MACHINE_CODE],
)
def test_the_loss_compiled_as_a_whole_has_that_gradient_too(objective, kind, way, backend):
    torch._dynamo.reset()
    model = model_of(kind)
    given = arguments(objective, kind, way)

    def loss_of(x):
        return score_matching_loss(model, x, **given)

    if backend == "inductor":
        fast = compiled(loss_of, enable=True, device="cpu")
    else:
        fast = torch.compile(loss_of, fullgraph=True, backend=backend)
    check(fast(batch()[0]), model, objective, kind)


@pytest.mark.parametrize(("objective", "kind", "way"), ENTRIES)
def test_without_gradients_the_loss_is_the_same_and_holds_no_graph(objective, kind, way):
    model, x = model_of(kind), batch()[0]
    given = arguments(objective, kind, way)
    with torch.no_grad():
        loss = score_matching_loss(model, x, **given)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, score_matching_loss(model, x, **given).detach())


@pytest.mark.parametrize(
    ("objective", "kind"), [key for key in WAYS if key[0].startswith("fd_")], ids="-".join
)
def test_finite_differences_approach_their_exact_counterparts_as_epsilon_squared(objective, kind):
    model, x = model_of(kind), batch()[0]
    given = arguments(objective, kind, "finite_difference")
    exact = formula(model, objective, kind)
    errors = []
    for epsilon in (0.2, 0.1, 0.05):
        given["epsilon"] = epsilon
        errors.append((score_matching_loss(model, x, **given) - exact).abs())
    for coarse, fine in pairwise(errors):
        order = torch.log2(coarse / fine)
        assert order.min() > 1.9 and order.max() < 2.1


def test_the_leading_biases_are_those_of_the_taylor_series():
    """FD-SSM: d eps^2 (D4/12 + D1 D3/6); FD-DSM: d eps^2 (D1 + c) D3/6, along a unit vector."""

    def energy(x):
        return torch.sin(x).sum(1) + 0.1 * x.pow(4).sum(1)

    torch.manual_seed(0)
    d, epsilon = 4, 0.01
    x, noise, v = (torch.randn(2, d, dtype=torch.float64) for _ in range(3))
    u = v / v.norm(dim=1, keepdim=True)
    d1 = (u * (x.cos() + 0.4 * x**3)).sum(1)
    d3 = (u**3 * (-x.cos() + 2.4 * x)).sum(1)
    d4 = (u**4 * (x.sin() + 2.4)).sum(1)
    given = {"projection": math.sqrt(d) * u, "energy": True}
    fd = score_matching_loss(energy, x, objective="fd_ssm", epsilon=epsilon, **given)
    exact = score_matching_loss(energy, x, objective="ssm", **given)
    bias = d * epsilon**2 * (d4 / 12 + d1 * d3 / 6)
    torch.testing.assert_close(fd - exact, bias, rtol=1e-3, atol=0)
    sigma = 0.7
    clean, c = x - sigma * noise, (u * noise).sum(1) / sigma
    fd = score_matching_loss(
        energy, clean, objective="fd_dsm", epsilon=epsilon, noise=noise, sigma=sigma, **given
    )
    exact = 0.5 * d * (d1 + c).square()
    torch.testing.assert_close(fd - exact, d * epsilon**2 * (d1 + c) * d3 / 6, rtol=1e-3, atol=0)


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 30.0])
def test_on_a_gaussian_finite_differences_are_exact_at_every_epsilon(epsilon):
    torch.manual_seed(0)
    x, v = (torch.randn(4, 5, dtype=torch.float64) for _ in range(2))
    root = torch.randn(5, 5, dtype=torch.float64)

    def energy(x):
        return -0.5 * (x @ root).square().sum(1)

    def score(x):
        return -x @ root @ root.T

    pairs = (("fd_ssm", "ssm", energy), ("fd_ssm", "ssm", score), ("fd_ssm_vr", "ssm_vr", score))
    for fd, exact, model in pairs:
        given = {"projection": v, "energy": model is energy}
        torch.testing.assert_close(
            score_matching_loss(model, x, objective=fd, epsilon=epsilon, **given),
            score_matching_loss(model, x, objective=exact, **given),
            rtol=1e-10,
            atol=1e-10,
        )


@pytest.mark.parametrize("kind", PROJECTION_KINDS)
@pytest.mark.parametrize(("objective", "model"), [("ssm", "energy"), ("ssm_vr", "score")])
def test_over_projections_sliced_is_exact_score_matching(kind, objective, model):
    n = 20_000
    network, x = model_of(model), batch()[0][:1]
    key, step = philox_key(0), torch.tensor(0)
    v = projections(kind, key, torch.arange(n), step, SHAPE).double()
    energy = model == "energy"
    with torch.no_grad():
        exact = score_matching_loss(network, x, objective="exact_sm", energy=energy)
        many = x.expand(n, *SHAPE)
        loss = score_matching_loss(
            *(network, many), objective=objective, energy=energy, projection=v, way="forward_mode"
        )
    assert abs(loss.mean() - exact) < 5 * loss.std() / math.sqrt(n)
    assert loss.std() > 0


def test_variance_reduction_needs_and_uses_the_isotropy_of_the_projections():
    """ssm_vr differs from ssm by 1/2 ((v.s)^2 - ||s||^2), whose mean is 0 iff E[v v^T] = I here."""
    n = 4000
    score = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    x = torch.zeros(n, 3, dtype=torch.float64)
    v = projections("rademacher", philox_key(0), torch.arange(n), torch.tensor(0), (3,)).double()

    def gap(v):
        given = {"projection": v, "energy": False}
        return score_matching_loss(
            lambda x: score.expand_as(x) + 0 * x, x, objective="ssm", **given
        ) - score_matching_loss(
            lambda x: score.expand_as(x) + 0 * x, x, objective="ssm_vr", **given
        )

    assert abs(gap(v).mean()) < 5 * gap(v).std() / math.sqrt(n)
    stretched = v * torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64)
    assert gap(stretched).mean() > 1  # 3/2 s_1^2


def noise_ladder():
    torch.manual_seed(2)
    sigmas = torch.tensor([1.0, 0.3, 0.1])
    x, noise, v = (torch.randn(2, 1, 8, 8) for _ in range(3))
    return sigmas, torch.tensor([2, 0]), x, noise, v


def network_of(conditional, dtype):
    torch.manual_seed(3)
    sigmas = noise_ladder()[0]
    network = ScoreNetwork("32-64", sigmas, conditional=conditional, channels=1, width=2)
    return network.to(dtype)


ANNEALED = [(o, way) for o, kind, way in ENTRIES if kind == "score" and o != "exact_sm"]


@pytest.mark.parametrize("conditional", [True, False], ids=["ncsn", "ncsnv2"])
@pytest.mark.parametrize(("objective", "way"), ANNEALED)
def test_score_networks_of_a_noise_ladder_can_be_trained_with_each(objective, way, conditional):
    """Float32, with the network's own fast paths, against float64 by the first exact way."""

    def run(dtype, objective, way, epsilon=None):
        network = network_of(conditional, dtype)
        sigmas, level, x, noise, v = noise_ladder()
        loss = annealed_score_matching_loss(
            network,
            x.to(dtype),
            sigmas=sigmas.to(dtype),
            noise_index=level,
            noise=noise.to(dtype),
            objective=objective,
            way=way,
            projection=v.to(dtype) if needs_projection(objective) else None,
            epsilon=epsilon,
        )
        return loss, gradient(loss.mean(), network)

    fd = objective.startswith("fd_")
    loss, found = run(torch.float32, objective, way, 0.02 if fd else None)
    exact, right = run(torch.float64, objective.removeprefix("fd_"), None)
    assert loss.dtype == torch.float32
    tolerance = 3e-2 if fd else 1e-4
    torch.testing.assert_close(loss.double(), exact, rtol=tolerance, atol=0)
    assert (found.double() - right).norm() < tolerance * right.norm()


def test_annealed_dsm_is_the_dsm_of_ncsn():
    sigmas, level, x, noise, _ = (
        t if t.dtype == torch.int64 else t.double() for t in noise_ladder()
    )
    network = network_of(True, torch.float64)
    loss = annealed_score_matching_loss(
        network, x, sigmas=sigmas, noise_index=level, noise=noise, objective="dsm"
    )
    torch.testing.assert_close(loss, dsm_loss(network, x, sigmas, level, noise))


def test_the_default_epsilon_follows_each_samples_noise():
    x, v, noise, _ = batch()
    sigma = torch.tensor([0.01, 0.05, 5.0], dtype=torch.float64)
    given = {"objective": "fd_ssm", "energy": True, "projection": v, "noise": noise}
    model = model_of("energy")
    loss = score_matching_loss(model, x, sigma=sigma, **given)
    same = score_matching_loss(model, x, sigma=sigma, epsilon=default_epsilon(DIM, sigma), **given)
    assert torch.equal(loss, same)
    for i, value in enumerate(sigma.tolist()):
        epsilon = default_epsilon(DIM, value)
        alone = score_matching_loss(model, x, sigma=sigma, epsilon=epsilon, **given)
        torch.testing.assert_close(alone[i], loss[i])


@pytest.mark.parametrize(("objective", "kind", "way"), ENTRIES)
def test_the_loss_has_the_dtype_of_the_samples(objective, kind, way):
    given = arguments(objective, kind, way)
    given |= {"sigma": torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)}
    if "epsilon" in given:
        given["epsilon"] = torch.full((B,), 0.1, dtype=torch.float64)
    given["noise"] = given["noise"].float()
    loss = score_matching_loss(model_of(kind, torch.float32), batch()[0].float(), **given)
    assert loss.dtype == torch.float32 and loss.isfinite().all()


def test_conditions_are_repeated_for_every_copy():
    level = torch.tensor([2, 0])
    seen = []
    model = Conditioned(lambda x, index: seen.append(index) or x, level)
    for copies in (1, 2, 3):
        model(torch.zeros(2 * copies, 4))
    assert [index.tolist() for index in seen] == [[2, 0], [2, 0, 2, 0], [2, 0, 2, 0, 2, 0]]
    with pytest.raises(ValueError, match="3 samples are no whole number of copies of 2"):
        model(torch.zeros(3, 4))


def test_a_flat_direction_or_model_has_a_loss_and_a_gradient():
    """No NaN for v = 0, and zero curvature where log p is linear or does not depend on x."""
    x, v, _, _ = batch()
    model = model_of("energy")
    loss = score_matching_loss(model, x, objective="fd_ssm", energy=True, projection=0 * v)
    assert torch.equal(loss, torch.zeros(B, dtype=torch.float64))
    assert gradient(loss.sum(), model).isfinite().all()
    plane = nn.Linear(DIM, 1).double()
    for way in WAYS["ssm", "energy"]:
        loss = score_matching_loss(
            *(lambda x: plane(x.flatten(1)).squeeze(1), x),
            **{"objective": "ssm", "energy": True, "way": way, "projection": v},
        )
        torch.testing.assert_close(loss, 0.5 * (v.flatten(1) @ plane.weight[0]).square())


def call(model=None, x=None, **changed):
    x0, v, _, _ = batch()
    given = {"objective": "fd_ssm", "energy": True, "projection": v} | changed
    return score_matching_loss(model or model_of("energy"), x0 if x is None else x, **given)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"objective": "sm"}, "objective = 'sm' is unknown; known: dsm, fd_dsm, exact_sm"),
        ({"objective": "fd_ssm_vr"}, "'fd_ssm_vr' is not defined for an energy model; there: dsm,"),
        ({"objective": "fd_dsm", "energy": False}, "not defined for a score network; there: dsm"),
        ({"way": "taylor"}, "not defined .* there: finite_difference, finite_difference_seq"),
        ({"objective": "ssm_vr", "way": "taylor"}, "there: double_backward, forward_mode"),
        ({"projection": None}, "objective = 'fd_ssm' needs a projection"),
        ({"objective": "exact_sm"}, "objective = 'exact_sm' takes no projection"),
        ({"objective": "fd_dsm"}, "objective = 'fd_dsm' needs noise and sigma"),
        ({"sigma": 1.0}, "noise and sigma come together"),
        ({"objective": "ssm", "epsilon": 0.1}, "objective = 'ssm' has no epsilon"),
        ({"epsilon": 0.0}, "epsilon = 0.0 must be a positive number"),
        ({"epsilon": float("nan")}, "epsilon = nan must be a positive number"),
        ({"epsilon": torch.ones(2)}, r"epsilon has shape \(2,\); a number or \(3,\)"),
        ({"projection": torch.ones(3, 6)}, r"projection has shape \(3, 6\); \(3, 1, 2, 3\) is"),
        ({"noise": torch.ones(3, 6), "sigma": 1.0}, r"noise has shape \(3, 6\)"),
        ({"noise": batch()[2], "sigma": -1.0}, "sigma = -1.0 must be a positive number"),
        ({"x": torch.ones(3)}, r"x has shape \(3,\); samples \(B, ...\) are needed"),
        ({"x": torch.ones(3, 1, 2, 3, dtype=torch.int64)}, "x is torch.int64; a floating"),
        ({"model": lambda x: x}, r"energy model returned shape .*; log densities \(9,\) are"),
        ({"model": lambda x: x.sum(), "energy": False}, "score network returned shape"),
    ],
)
def test_bad_arguments_are_refused_with_what_would_be_right(changed, message):
    with pytest.raises(ValueError, match=message):
        call(**changed)


@pytest.mark.parametrize(("objective", "kind", "way"), ENTRIES)
def test_batchnorm_in_training_mode_is_refused_where_samples_must_be_apart(objective, kind, way):
    model = model_of(kind)
    model.norm = nn.BatchNorm2d(3)
    given = arguments(objective, kind, way)
    if way == "direct":
        score_matching_loss(model, batch()[0], **given)
    else:
        with pytest.raises(ValueError, match=r"BatchNorm2d in training mode mixes them"):
            score_matching_loss(model, batch()[0], **given)
    score_matching_loss(model.eval(), batch()[0], **given)


@pytest.mark.parametrize(("objective", "kind", "way"), ENTRIES)
def test_dropout_in_training_mode_is_refused_for_finite_differences(objective, kind, way):
    model = model_of(kind)
    model.dropout = nn.Dropout2d(0.5)
    given = arguments(objective, kind, way)
    if objective.startswith("fd_"):
        with pytest.raises(ValueError, match=r"Dropout2d in training mode draws another mask"):
            score_matching_loss(model, batch()[0], **given)
    else:
        score_matching_loss(model, batch()[0], **given)
    score_matching_loss(model.eval(), batch()[0], **given)


def test_checks_look_through_wrappers_and_bound_methods():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(2)

        def features(self, x, level):
            return x

    network = Wrapped()
    for model in (network.features, network):
        with pytest.raises(ValueError, match="BatchNorm1d in training mode"):
            annealed_score_matching_loss(
                *(model, torch.ones(2, 2)),
                sigmas=torch.ones(1),
                noise_index=torch.zeros(2, dtype=torch.int64),
                noise=torch.ones(2, 2),
                objective="fd_ssm_vr",
                projection=torch.ones(2, 2),
            )


def test_reduced_precision_is_refused_under_finite_differences_unless_allowed():
    x, v, _, _ = batch()
    x, v, model = x.float(), v.float(), model_of("energy", torch.float32)
    given = {"projection": v, "energy": True}
    asked = {"objective": "fd_ssm", "allow_reduced_precision": True, **given}
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(ValueError, match=r"autocast to torch.bfloat16 is on: run the forward"):
            score_matching_loss(model, x, objective="fd_ssm", **given)
        score_matching_loss(model, x, epsilon=1.0, **asked)
    half = model_of("energy", torch.bfloat16)
    low = {"projection": v.bfloat16(), "energy": True}
    with pytest.raises(ValueError, match=r"the samples are torch.bfloat16"):
        score_matching_loss(half, x.bfloat16(), objective="fd_ssm", **low)
    before = torch.backends.mkldnn.matmul.fp32_precision
    try:
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
        with pytest.raises(ValueError, match=r"float32 matmul runs in bf16"):
            score_matching_loss(model, x, objective="fd_ssm", **given)
        score_matching_loss(model, x, **asked)
        with precision_context("fp32"):
            score_matching_loss(model, x, objective="fd_ssm", **given)
        score_matching_loss(model, x, objective="ssm", **given)
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before


@compiles
@pytest.mark.parametrize("kind", ["energy", "score"])
@pytest.mark.parametrize("hidden", ["module", "in place", "function", "method", "closure"])
def test_a_compiled_model_is_refused_where_its_derivatives_are_differentiated(kind, hidden):
    """Its trace term would have a gradient of zero; a finite difference is right with it."""
    torch._dynamo.reset()
    model = model_of(kind)
    if hidden == "in place":
        model.compile(backend="aot_eager")
        given = model
    elif hidden == "method":
        given = torch.compile(model.forward, backend="aot_eager")
    elif hidden == "function":
        given = torch.compile(lambda x: model(x), backend="aot_eager")
    else:
        given = torch.compile(model, backend="aot_eager")
    handed = (lambda x: given(x)) if hidden == "closure" else given
    x, v, _, _ = batch()
    energy = kind == "energy"
    with pytest.raises(ValueError, match=r"wrong for a compiled one: hand in the model as it was"):
        score_matching_loss(handed, x, objective="ssm_vr", energy=energy, projection=v)
    fd = score_matching_loss(handed, x, objective="fd_ssm", energy=energy, projection=v)
    plain = model_of(kind)
    same = score_matching_loss(plain, x, objective="fd_ssm", energy=energy, projection=v)
    torch.testing.assert_close(fd, same)
    torch.testing.assert_close(gradient(fd.sum(), model), gradient(same.sum(), plain))


def test_the_table_names_known_objectives_only():
    assert {objective for objective, _ in WAYS} == set(OBJECTIVES)
