"""Where and how torch.compile and CUDA graphs are used: decided here, once.

One policy: functions of fixed shapes, without graph breaks, whose step-dependent scalars are
tensors, so that each is compiled once per shape; compiled code is kept between processes. Precision
is a setting beside it: float32, TF32 or bfloat16 autocast.
"""

import logging
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from types import FunctionType, MethodType
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


def compiled(
    function: Callable[..., Any], *, enable: bool, device: str, cuda_graphs: bool = False
) -> Callable[..., Any]:
    """Return ``function`` compiled for fixed shapes without graph breaks, or as it is.

    Eager where ``enable`` is False, and on a CPU where compilation is unavailable. ``cuda_graphs``
    replays the compiled kernels as CUDA graphs, on CUDA devices; a result then lives until the next
    call only. The function's globals are taken to be constant: changes to them after the first call
    are not seen.
    """
    if not enable:
        return function
    _keep_cache_between_processes()
    if device == "cpu" and compile_unavailable_reason() is not None:
        return function
    _clock.attach()
    options: dict[str, Any] = {
        # Their checks at each call cost as much as a small kernel.
        "guard_filter_fn": torch.compiler.skip_guard_on_globals_unsafe,
        # Fused multiply-adds, as on a GPU.
        "cpp.enable_floating_point_contract_flag": "fast",
        "triton.cudagraphs": cuda_graphs and torch.device(device).type == "cuda",
    }
    return torch.compile(_own_code(function), dynamic=False, fullgraph=True, options=options)


def _own_code(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with a code object of its own.

    torch.compile counts graphs per code object and stops at a limit: without this, the ninth
    network of a process would count as the ninth recompilation of the first.
    """
    if isinstance(function, MethodType):
        return MethodType(_own_code(function.__func__), function.__self__)
    if not isinstance(function, FunctionType):
        return function
    own = FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    own.__kwdefaults__ = function.__kwdefaults__
    return own


def _keep_cache_between_processes() -> None:
    """Put torch's cache, by default among the temporary files, where it survives a restart.

    Where that cannot be written, or there is no home, into a folder of this user's among them:
    torch by itself asks the system for a user's name, which a container may not have.
    """
    # torch itself writes its default into the variable, where the user has a name.
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR") not in (None, _torchs_default()):
        return
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        cache = home / "scorekit" / "torchinductor"
        cache.mkdir(parents=True, exist_ok=True)
        if not os.access(cache, os.W_OK | os.X_OK):
            raise PermissionError
    except (OSError, RuntimeError):  # the latter: no home at all
        cache = _temporary_cache()
        # Triton's own is in the home as well.
        os.environ.setdefault("TRITON_CACHE_DIR", str(cache / "triton"))
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache)


def _torchs_default() -> str | None:
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    try:
        return os.path.abspath(default_cache_dir())
    except (KeyError, OSError):  # a user without a name
        return None


def _temporary_cache() -> Path:
    """Return a folder for compiled code among the temporary files that nobody else can write."""
    folder = Path(tempfile.gettempdir()) / f"scorekit-torchinductor-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        ours = found.st_uid == os.getuid() and stat.S_ISDIR(found.st_mode)
        if ours and not found.st_mode & 0o022 and os.access(folder, os.W_OK | os.X_OK):
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix=f"{folder.name}-"))


class _Clock:
    """Time this process has spent compiling, backward passes included."""

    def __init__(self) -> None:
        self.total_s = 0.0
        self._began = 0.0

    def attach(self) -> None:
        """Follow torch's compilations from now on; torch._dynamo.reset forgets who follows them."""
        handler = torch._dynamo.callback.callback_handler
        if self._start not in handler.start_callbacks:
            handler.register_start_callback(self._start)
            handler.register_end_callback(self._stop)

    def _start(self, _: Any) -> None:
        self._began = time.monotonic()

    def _stop(self, _: Any) -> None:
        self.total_s += time.monotonic() - self._began


_clock = _Clock()


def compile_seconds() -> float:
    """Return the seconds this process has spent compiling since it first called ``compiled``."""
    return _clock.total_s


def cuda_graph(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Return ``step`` as one CUDA graph: all its launches replayed as one.

    ``step`` works in place on tensors that stay where they are, and does not wait for the device.
    It runs a few times here, first to compile and then to be captured.
    """
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


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
