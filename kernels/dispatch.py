"""Which implementation of an operation runs: its Triton kernel or plain torch.

Triton kernels need a GPU, or Triton's interpreter (``TRITON_INTERPRET=1``, set before this module
is imported) for tensors on the CPU. Elsewhere the same operation runs in plain torch, which
``torch.compile`` fuses.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Literal, TypeVar, get_args

from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # no wheels for this platform
    triton = None
    # Kernel signatures are annotated with it when their modules are imported.
    tl = SimpleNamespace(constexpr=Any)

Impl = Literal["auto", "triton", "torch"]
_IMPLS = get_args(Impl)
_F = TypeVar("_F", bound=Callable[..., Any])

#: Replaces ``impl="auto"`` in every call: auto, triton or torch.
IMPL_VARIABLE = "SCOREKIT_IMPL"
#: Whether kernels run in Triton's interpreter; fixed when they are defined, hence on import.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

_reasons: dict[str, str] = {}
_plain = False  # within plain_operations()


@contextmanager
def plain_operations() -> Iterator[None]:
    """Within, operations are compositions of torch's own, differentiable in every mode and order.

    Kernels and hand-written backward passes can be differentiated once, in reverse.
    """
    global _plain
    before, _plain = _plain, True
    try:
        yield
    finally:
        _plain = before


def plain_operations_asked_for() -> bool:
    """Return whether this is run within :func:`plain_operations`."""
    return _plain


def traced_as_constant(function: _F) -> _F:
    """Let torch.compile call a function once, while it traces, and keep what it returned.

    What ``torch.compiler.assume_constant_result`` does, which takes seconds to import.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def jit(function: Callable[..., Any]) -> Any:
    """Return ``triton.jit(function)``, or the function as it is where triton is not installed."""
    return function if triton is None else triton.jit(function)


def constexpr(value: Any) -> Any:
    """Return a constant as kernels can read it from their module: ``tl.constexpr(value)``."""
    return value if triton is None else tl.constexpr(value)


def fallback_reasons() -> dict[str, str]:
    """Return, by operation, why its last call with ``impl="auto"`` ran in plain torch."""
    return dict(_reasons)


def unavailable_reason(device_type: str) -> str | None:
    """Return why no Triton kernel can run on tensors of this device type, or None if one can."""
    if triton is None:
        return "triton is not installed"
    if device_type == "cpu" and not INTERPRETED:
        return "its tensors are on the CPU"
    if device_type not in ("cpu", "cuda"):
        return f"there are no kernels for {device_type!r} devices"
    return None


# Graphs are specialised on device and dtype anyway.
@traced_as_constant
def _use_triton(
    operation: str, impl: str, device_type: str, unsupported: str | None, plain: bool = False
) -> bool:
    if impl == "auto":
        impl = os.environ.get(IMPL_VARIABLE, "auto")
        source = IMPL_VARIABLE
    else:
        source = "impl"
    if impl not in _IMPLS:
        raise ValueError(f"{source} = {impl!r} is unknown; known: {', '.join(_IMPLS)}")
    if impl == "torch":
        _reasons[operation] = f"{source} = 'torch'"
        return False
    reason = unavailable_reason(device_type) or unsupported
    if plain:
        reason = reason or "its derivatives are to be differentiated"
    if impl == "triton":
        if reason is not None:
            raise ValueError(f"{source} = 'triton' is not possible for {operation}: {reason}")
        return True
    if reason is None and device_type == "cpu":
        reason = "the interpreter runs only when asked for"
    if reason is not None:
        _reasons[operation] = reason
        return False
    _reasons.pop(operation, None)
    return True


def use_triton(
    operation: str,
    impl: Impl,
    first: Tensor,
    *others: Tensor | None,
    unsupported: str | None = None,
) -> bool:
    """Return whether ``operation`` on these tensors is to run as its Triton kernel.

    ``impl`` "auto" takes the kernel on a GPU and plain torch elsewhere, with the reason kept for
    :func:`fallback_reasons`; the environment variable ``SCOREKIT_IMPL`` replaces it.
    ``unsupported`` says why the kernel cannot take these arguments, if it cannot. Raises ValueError
    for an unknown ``impl``, for tensors on different devices and where "triton" is asked for but
    not possible.
    """
    device = first.device
    for tensor in others:
        if tensor is not None and tensor.device != device:
            names = f"{device} and {tensor.device}"
            raise ValueError(f"{operation} needs its tensors on one device; they are on {names}")
    return _use_triton(operation, impl, device.type, unsupported, _plain)
