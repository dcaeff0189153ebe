"""Score matching objectives of energy models and score networks: one family, one signature.

Hyvärinen 2005 (exact), Vincent 2011 (denoising, DSM), Song et al. 2019 (sliced, SSM, and its
variance-reduced form) and their finite-difference forms, Pang et al. 2020 (FD-). With L = log p, s
the score, H its Jacobian, v a direction with E[v v^T] = I, u = v / ||v||, a+ and a- for
a(x + epsilon u) and a(x - epsilon u):

    exact_sm   1/2 ||s||^2 + tr H
    ssm        v.Hv + 1/2 (v.s)^2
    ssm_vr     v.Hv + 1/2 ||s||^2
    dsm        1/2 ||s(x~) + n / sigma||^2 at x~ = x + sigma n
    fd_ssm     as ssm, with v.s and v.Hv by central differences: of log p, three evaluations,
               (||v||/epsilon)^2 [L+ + L- - 2L + (L+ - L-)^2 / 8]; of the score, two
    fd_ssm_vr  1/8 ||s+ + s-||^2 + ||v|| / (2 epsilon) v.(s+ - s-)
    fd_dsm     1/2 [||v|| (L+ - L-) / (2 epsilon) + v.n / sigma]^2 at x~

For ||v||^2 = d, as every direction but a Gaussian one has, these are the papers' (d / epsilon^2)
forms; written with ||v|| they approximate their exact counterparts on the same v, whatever it is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from scorekit.derivatives.autodiff import (
    ExactWay,
    Model,
    log_density,
    score_network,
    score_of,
    second_derivatives,
)
from scorekit.derivatives.displacement import (
    basis,
    check_epsilon,
    default_epsilon,
    displacement,
    inner,
    per_sample,
)
from scorekit.derivatives.model_checks import (
    refuse_batch_statistics,
    refuse_dropout,
    refuse_reduced_precision,
)

Objective = Literal["dsm", "fd_dsm", "exact_sm", "ssm", "ssm_vr", "fd_ssm", "fd_ssm_vr"]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
FiniteDifference = Literal["finite_difference", "finite_difference_sequential"]
Way = Literal["direct"] | ExactWay | FiniteDifference
ModelKind = Literal["energy", "score"]
KIND_NAMES = {"energy": "an energy model", "score": "a score network"}

_FD: tuple[FiniteDifference, ...] = ("finite_difference", "finite_difference_sequential")
#: The ways in which each objective can be differentiated for each kind of model, default first.
#: "direct" needs no derivative; sequential runs the evaluations of a finite difference one by one.
WAYS: dict[tuple[Objective, ModelKind], tuple[Way, ...]] = {
    ("dsm", "energy"): ("double_backward",),
    ("dsm", "score"): ("direct",),
    ("fd_dsm", "energy"): _FD,
    ("exact_sm", "energy"): ("double_backward", "forward_mode", "taylor"),
    ("exact_sm", "score"): ("double_backward", "forward_mode"),
    ("ssm", "energy"): ("double_backward", "forward_mode", "taylor"),
    ("ssm", "score"): ("double_backward", "forward_mode"),
    ("ssm_vr", "energy"): ("double_backward", "forward_mode"),
    ("ssm_vr", "score"): ("double_backward", "forward_mode"),
    ("fd_ssm", "energy"): _FD,
    ("fd_ssm", "score"): _FD,
    ("fd_ssm_vr", "score"): _FD,
}


def ways(objective: Objective, kind: ModelKind) -> tuple[Way, ...]:
    """Return the ways of ``WAYS``; raises ValueError, which lists what there is, for none."""
    if (objective, kind) not in WAYS:
        if objective not in OBJECTIVES:
            known = ", ".join(OBJECTIVES)
            raise ValueError(f"objective = {objective!r} is unknown; known: {known}")
        known = ", ".join(name for name, of in WAYS if of == kind)
        raise ValueError(
            f"objective = {objective!r} is not defined for {KIND_NAMES[kind]}; there: {known}"
        )
    return WAYS[objective, kind]


def needs_projection(objective: Objective) -> bool:
    """Return whether the objective takes a direction for each sample."""
    return objective not in ("dsm", "exact_sm")


def score_matching_loss(
    model: Model,
    x: Tensor,
    *,
    objective: Objective,
    energy: bool,
    way: Way | None = None,
    projection: Tensor | None = None,
    noise: Tensor | None = None,
    sigma: Tensor | float | None = None,
    epsilon: Tensor | float | None = None,
    allow_reduced_precision: bool = False,
) -> Tensor:
    """Return the objective of each sample, (B,) in the dtype of ``x``; equations above.

    ``model`` maps ``x`` (B, ...) to log densities (B,), with ``energy``, or to scores of x's shape.
    ``projection`` v and ``noise`` n have x's shape; :mod:`scorekit.objectives.directions` makes
    the former. ``noise`` and ``sigma``, a number or (B,), come together: dsm and fd_dsm need them,
    every other objective is taken at x + sigma n if they are given. ``epsilon``, a number or (B,),
    is the length of a finite difference's displacement, by default
    :func:`scorekit.derivatives.displacement.default_epsilon`. ``way`` is one of ``WAYS``, whose
    first is the default. "finite_difference" hands the model its copies of the batch as one, copy
    after copy: (2 B, ...) as x+, x-, or (3 B, ...) with x last; conditions of the samples are to be
    repeated to fit (:class:`Conditioned`).

    A finite difference divides rounding errors by epsilon^2, in the backward pass as in the
    forward pass; :func:`scorekit.derivatives.displacement.check_epsilon` refuses or warns of an
    epsilon too small for the dtype. It is refused (ValueError) under autocast, in half precision
    and where float32 products are rounded to TF32 or bfloat16, unless ``allow_reduced_precision``:
    run both passes within ``precision_context("fp32")``. Also refused: objectives and ways that are
    not there, other shapes, dropout in training mode under finite differences, BatchNorm in
    training mode under all but dsm of a score network, and a compiled model where its derivatives
    are differentiated. Everything may be compiled as a whole.
    """
    kind: ModelKind = "energy" if energy else "score"
    there = ways(objective, kind)
    way = there[0] if way is None else way
    if way not in there:
        raise ValueError(
            f"way = {way!r} is not defined for objective = {objective!r} and "
            f"{KIND_NAMES[kind]}; there: {', '.join(there)}"
        )
    _check_arguments(x, objective, projection, noise, sigma, epsilon)
    what = f"objective = {objective!r}"
    if way != "direct":
        refuse_batch_statistics(model, what)
    if noise is not None and sigma is not None:
        scale = per_sample(sigma, x)
        x, noise = x + scale * noise, noise / scale

    if way == "direct" or objective == "dsm":
        assert noise is not None
        score = score_of(model, x) if energy else score_network(model, x)
        return 0.5 * _squared_norm(score.to(x.dtype) + noise)
    v = None if projection is None else projection.to(x.dtype)
    if way == "finite_difference" or way == "finite_difference_sequential":
        assert v is not None
        refuse_dropout(model, what)
        if not allow_reduced_precision:
            refuse_reduced_precision(x, what)
        if epsilon is None:
            epsilon = default_epsilon(x[0].numel(), sigma)
        check_epsilon(epsilon, x, order=2 if energy and objective == "fd_ssm" else 1)
        together = way == "finite_difference"
        return _finite_difference(model, x, v, objective, energy, noise, epsilon, together)
    directions = basis(x) if v is None else v[None]
    return _exact(model, x, directions, objective, energy, way)


def _exact(
    model: Model, x: Tensor, directions: Tensor, objective: Objective, energy: bool, way: ExactWay
) -> Tensor:
    slope, curvature, score = second_derivatives(
        model, x, directions, energy=energy, way=way, with_score=objective == "ssm_vr"
    )
    if objective == "ssm_vr":
        assert score is not None
        return curvature[0] + 0.5 * _squared_norm(score)
    # Over a basis SSM adds up to exact SM: sum_i e_i.H e_i = tr H, sum_i (e_i.s)^2 = ||s||^2.
    return (curvature + 0.5 * slope.square()).sum(dim=0)


def _finite_difference(
    model: Model,
    x: Tensor,
    v: Tensor,
    objective: Objective,
    energy: bool,
    noise: Tensor | None,
    epsilon: Tensor | float,
    together: bool,
) -> Tensor:
    h, rate = displacement(v, epsilon)
    points = [x + h, x - h]
    if energy and objective == "fd_ssm":
        points.append(x)
    evaluate = log_density if energy else score_network
    if together:
        values = evaluate(model, torch.cat(points)).chunk(len(points))
    else:
        values = tuple(evaluate(model, point) for point in points)
    plus, minus = values[:2]
    if energy:
        slope = 0.5 * rate * (plus - minus)
        if objective == "fd_dsm":
            assert noise is not None
            return 0.5 * (slope + inner(v, noise)).square()
        # Neighbouring numbers are subtracted exactly; a sum L+ + L- would be rounded first.
        curvature = rate.square() * ((plus - values[2]) - (values[2] - minus))
        return curvature + 0.5 * slope.square()
    curvature = 0.5 * rate * inner(v, plus - minus)
    if objective == "fd_ssm_vr":
        return curvature + 0.125 * _squared_norm(plus + minus)
    return curvature + 0.125 * inner(v, plus + minus).square()


def _squared_norm(x: Tensor) -> Tensor:
    return x.flatten(1).square().sum(dim=1)


def _check_arguments(
    x: Tensor,
    objective: Objective,
    projection: Tensor | None,
    noise: Tensor | None,
    sigma: Tensor | float | None,
    epsilon: Tensor | float | None,
) -> None:
    if x.ndim < 2 or x.shape[0] < 1 or x[0].numel() < 1:
        raise ValueError(f"x has shape {tuple(x.shape)}; samples (B, ...) are needed")
    if not x.is_floating_point():
        raise ValueError(f"x is {x.dtype}; a floating dtype is needed")
    if needs_projection(objective) != (projection is not None):
        needed = "needs a projection" if projection is None else "takes no projection"
        raise ValueError(f"objective = {objective!r} {needed}")
    if (noise is None) != (sigma is None):
        raise ValueError("noise and sigma come together: the noise is sigma times a standard one")
    if objective in ("dsm", "fd_dsm") and noise is None:
        raise ValueError(f"objective = {objective!r} needs noise and sigma")
    if epsilon is not None and not objective.startswith("fd_"):
        raise ValueError(f"objective = {objective!r} has no epsilon: it is no finite difference")
    for name, tensor in (("projection", projection), ("noise", noise)):
        if tensor is not None and tensor.shape != x.shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; {tuple(x.shape)} is needed")
    for name, value in (("sigma", sigma), ("epsilon", epsilon)):
        if isinstance(value, Tensor):
            if value.ndim and value.shape != x.shape[:1]:
                shape = tuple(value.shape)
                raise ValueError(f"{name} has shape {shape}; a number or ({x.shape[0]},) is needed")
        elif value is not None and not 0 < value < float("inf"):
            raise ValueError(f"{name} = {value} must be a positive number")


@dataclass(frozen=True, eq=False)
class Conditioned:
    """A model of (samples, noise indices) as a model of samples alone, or of copies of them.

    ``noise_index`` (B,) is repeated for batches of 2 B, 3 B, ... samples, copy after copy.
    """

    model: Callable[[Tensor, Tensor], Tensor]
    noise_index: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        copies, rest = divmod(x.shape[0], self.noise_index.shape[0])
        if rest:
            raise ValueError(
                f"{x.shape[0]} samples are no whole number of copies of "
                f"{self.noise_index.shape[0]} noise indices"
            )
        return self.model(x, self.noise_index.repeat(copies))


def annealed_score_matching_loss(
    model: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    *,
    sigmas: Tensor,
    noise_index: Tensor,
    noise: Tensor,
    objective: Objective,
    energy: bool = False,
    way: Way | None = None,
    projection: Tensor | None = None,
    epsilon: Tensor | float | None = None,
    allow_reduced_precision: bool = False,
) -> Tensor:
    """Return sigma_i^2 times the objective at (x + sigma_i n, i) for each sample, (B,).

    The objective of NCSN over its noise ladder (Song & Ermon 2019, Eq. 6, with any objective in
    place of dsm, for which this is :func:`scorekit.objectives.dsm.dsm_loss`). ``model`` takes
    samples and noise indices as :class:`scorekit.models.score_network.ScoreNetwork` does,
    ``sigmas`` is the ladder (L,) and ``noise_index`` int64 (B,); other arguments and errors as in
    :func:`score_matching_loss`.
    """
    sigma = sigmas[noise_index]
    loss = score_matching_loss(
        Conditioned(model, noise_index),
        x,
        objective=objective,
        energy=energy,
        way=way,
        projection=projection,
        noise=noise,
        sigma=sigma,
        epsilon=epsilon,
        allow_reduced_precision=allow_reduced_precision,
    )
    return sigma.square() * loss
