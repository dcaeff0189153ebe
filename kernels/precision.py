"""Float32 precision of matrix products and convolutions, for a block of code."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

from kernels.dispatch import traced_as_constant

# torch's newer interface only: once it was used, the older one (allow_tf32,
# set_float32_matmul_precision) refuses to be read where the two disagree.
# Typed as Any: torch puts these attributes there at run time.
_backends: Any = torch.backends
_CUDA = (_backends.cuda.matmul, _backends.cudnn.conv, _backends.cudnn.rnn)
_CPU = (_backends.mkldnn.matmul, _backends.mkldnn.conv)


@contextmanager
def float32_precision(cuda: Literal["ieee", "tf32"] = "ieee") -> Iterator[None]:
    """Run a block with true float32 on the CPU and, by default, on CUDA; restores what was set."""
    before = [(backend, backend.fp32_precision) for backend in (*_CUDA, *_CPU)]
    try:
        for backend in _CUDA:
            backend.fp32_precision = cuda
        for backend in _CPU:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, value in before:
            backend.fp32_precision = value


# Read once by torch.compile, when a graph is traced: it cannot trace the settings.
@traced_as_constant
def reduced_precision(device_type: str) -> str | None:
    """Return which float32 products are rounded to fewer bits on such a device, or None."""
    names = ("matmul", "conv", "rnn") if device_type == "cuda" else ("matmul", "conv")
    backends = _CUDA if device_type == "cuda" else _CPU
    for name, backend in zip(names, backends, strict=True):
        if backend.fp32_precision not in ("ieee", "none"):
            return f"float32 {name} runs in {backend.fp32_precision}"
    return None
