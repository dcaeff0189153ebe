"""Every case, by name, in the order in which they run."""

import bench.kernel_cases
import bench.network_cases
import bench.program_cases  # noqa: F401
from bench.registry import REGISTRY as CASES

__all__ = ["CASES"]
