"""What finite differences and per-sample derivatives ask of a model and of its precision."""

from collections.abc import Callable, Iterator
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from kernels.precision import reduced_precision


def modules_of(model: Any) -> Iterator[nn.Module]:
    """Yield the modules of a module, of its bound method or of a wrapper with one as ``model``."""
    while not isinstance(model, nn.Module):
        inside = model.__self__ if isinstance(model, MethodType) else getattr(model, "model", None)
        if inside is None:
            return
        model = inside
    yield from model.modules()


def refuse_batch_statistics(model: Callable[..., Tensor], what: str) -> None:
    """Raise ValueError for a model with BatchNorm in training mode: its samples are not apart."""
    for module in modules_of(model):
        if isinstance(module, _BatchNorm) and module.training:
            raise ValueError(
                f"{what} needs samples that do not depend on each other, and "
                f"{type(module).__name__} in training mode mixes them (and the copies of a finite "
                "difference): call eval() or use another normalisation"
            )


def refuse_dropout(model: Callable[..., Tensor], what: str) -> None:
    """Raise ValueError for a model with dropout in training mode: its copies would differ."""
    for module in modules_of(model):
        if isinstance(module, _DropoutNd) and module.training and module.p > 0:
            raise ValueError(
                f"{what} takes differences of the model at nearby points, and "
                f"{type(module).__name__} in training mode draws another mask at each: call "
                "eval() or remove it"
            )


def refuse_reduced_precision(x: Tensor, what: str) -> None:
    """Raise ValueError where products of these samples would be rounded to less than float32."""
    device = x.device.type
    reason = reduced_precision(device)
    if x.dtype in (torch.bfloat16, torch.float16):
        reason = f"the samples are {x.dtype}"
    elif torch.is_autocast_enabled(device):
        reason = f"autocast to {torch.get_autocast_dtype(device)} is on"
    elif x.dtype == torch.float64:
        return
    if reason is not None:
        raise ValueError(
            f"{what} divides rounding errors by powers of epsilon, and {reason}: run "
            'the forward and the backward pass within precision_context("fp32"), or pass '
            "allow_reduced_precision=True and a large epsilon"
        )


def refuse_compiled(model: Any, way: str) -> None:
    """Raise ValueError where the model, or a part of it, is compiled by itself.

    A compiled graph can be differentiated once. Differentiated again it raises or, a score network
    under sliced score matching, gives a right loss whose trace term has a gradient of zero. An
    objective with derivatives of the model is compiled as a whole, around the plain model.
    """
    inside = model
    while inside is not None and not _is_compiled(inside):
        if isinstance(inside, torch.nn.Module):
            inside = next((m for m in inside.modules() if _is_compiled(m)), None)
        elif isinstance(inside, MethodType):
            inside = inside.__self__
        else:
            inside = getattr(inside, "model", None)
    if inside is not None:
        raise ValueError(f"{_WITHIN_COMPILED.format(way)}, and {type(inside).__name__} is compiled")


def refuse_compiled_graph(output: Tensor, way: str) -> None:
    """Raise ValueError where a tensor was computed, within any function, by a compiled graph."""
    seen, pending = set(), [output.grad_fn]
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name().startswith("CompiledFunction"):
            raise ValueError(f"{_WITHIN_COMPILED.format(way)}, and a part of it is compiled")
        pending += [following for following, _ in node.next_functions]


_WITHIN_COMPILED = (
    "way = {!r} differentiates derivatives of the model, which are wrong for a compiled one: hand "
    "in the model as it was and compile the whole loss"
)


def _is_compiled(model: Any) -> bool:
    return (
        isinstance(model, torch._dynamo.OptimizedModule)
        or getattr(model, "_compiled_call_impl", None) is not None
        or (isinstance(model, FunctionType) and hasattr(model, "_torchdynamo_orig_callable"))
    )
