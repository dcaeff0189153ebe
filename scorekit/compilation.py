"""Where and how torch.compile is used: decided here, once."""

import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from typing import Any, Literal

import torch

from kernels.precision import float32_precision

_log = logging.getLogger("scorekit")

Precision = Literal["fp32", "tf32", "bf16"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "tf32", "bf16")


@lru_cache(maxsize=1)
def compile_unavailable_reason() -> str | None:
    """Return why torch.compile cannot be used on this machine's CPU, or None where it can.

    Inductor builds C++ for the CPU, so it needs a working compiler; a one-line function is really
    compiled, which also finds a compiler without headers. Logged once per process.
    """
    reason = None
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        reason = f"no C++ compiler ({compiler}) on PATH"
    else:
        try:
            torch.compile(lambda x: x * 2 + 1)(torch.ones(8))
        except Exception as error:  # whatever the tool chain raises, eager mode works without it
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if reason is not None:
        _log.warning("torch.compile is not used, everything runs in eager mode: %s", reason)
    return reason


def compiled(function: Callable[..., Any], *, enable: bool, device: str) -> Callable[..., Any]:
    """Return ``function`` compiled for fixed shapes without graph breaks, or as it is.

    Eager where ``enable`` is False, and on a CPU where compilation is unavailable.
    """
    if not enable or (device == "cpu" and compile_unavailable_reason() is not None):
        return function
    return torch.compile(function, dynamic=False, fullgraph=True)


@contextmanager
def precision_context(precision: Precision) -> Iterator[None]:
    """Run forward and backward passes with float32 or, for "tf32" on CUDA, TF32 products.

    For "bf16" the forward pass is to run within :func:`autocast` as well. Raises ValueError for an
    unknown precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision = {precision!r} is unknown; known: {', '.join(PRECISIONS)}")
    with float32_precision("tf32" if precision == "tf32" else "ieee"):
        yield


def autocast(precision: Precision, device: str) -> AbstractContextManager[Any]:
    """Return the autocast context of a forward pass: bfloat16 for "bf16", else none."""
    if precision == "bf16":
        return torch.autocast(torch.device(device).type, torch.bfloat16)
    return nullcontext()
