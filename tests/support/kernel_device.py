"""Where the tests of kernels run: on a GPU, else on the CPU in Triton's interpreter."""

import pytest
import torch

from kernels.dispatch import unavailable_reason

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NO_KERNEL = unavailable_reason(DEVICE)
needs_kernel = pytest.mark.skipif(NO_KERNEL is not None, reason=str(NO_KERNEL))
BOTH = ["torch", pytest.param("triton", id="triton", marks=needs_kernel)]
