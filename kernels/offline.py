"""Compile every Triton kernel for GPUs that need not be here, and inspect what came out.

``python -m kernels.offline`` exits 1 if a kernel does not compile, spills registers, or is bound by
memory and yet moves fewer than 16 bytes per load or store.
"""

import argparse
import contextlib
import functools
import importlib
import inspect
import io
import multiprocessing
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from kernels.dispatch import INTERPRETED, triton

#: Backend, architecture and threads per warp of each target, by name.
TARGETS: dict[str, tuple[str, int | str, int]] = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "gfx942": ("hip", "gfx942", 64),
}

_PTX_ACCESS = r"\b{}\.global\S*\.(?:v4\.[bfsu]32|v2\.[bfsu]64|v8\.[bfsu]32|v4\.[bfsu]64)\b"
_AMD_ACCESS = r"\b(?:global|buffer|flat)_{}_(?:dword|b)(?:x4|128)\b"


@dataclass(frozen=True, kw_only=True)
class KernelCase:
    """One specialisation of a kernel, as a launch would ask for it."""

    name: str  # such as "langevin_step[fp32]"
    kernel: Any  # the @jit function
    signature: dict[str, str]  # argument -> "*fp32", "i32", ...; compile-time ones -> "constexpr"
    constants: dict[str, Any]  # values of the compile-time arguments
    divisible_by_16: tuple[str, ...]  # pointers and sizes that are multiples of 16
    memory_bound: bool  # 16-byte loads and stores are required
    reduces: bool = False  # stores a few numbers only, whose width does not matter
    num_warps: int = 4
    targets: tuple[str, ...] = tuple(TARGETS)  # those for which it is ever launched


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """What a compiled kernel uses per thread, and its accesses of 16 bytes or more."""

    n_regs: int
    spill_bytes: int
    vector_loads: int
    vector_stores: int


def cases_of(module: ModuleType) -> list[KernelCase]:
    """Return the cases of one module; ValueError if one of its ``_..._kernel`` has none."""
    own = {
        name: value
        for name, value in vars(module).items()
        if re.fullmatch(r"_\w+_kernel", name)
        and getattr(value, "__module__", None) == module.__name__
    }
    cases = module.kernel_cases() if hasattr(module, "kernel_cases") else []
    covered = [case.kernel for case in cases]
    if missing := sorted(name for name, kernel in own.items() if kernel not in covered):
        raise ValueError(f"{module.__name__}.kernel_cases() has no case of {', '.join(missing)}")
    return cases


def cases() -> list[KernelCase]:
    """Return the cases of every module beside this one; ValueError for two of one name."""
    found: list[KernelCase] = []
    for info in pkgutil.iter_modules([str(Path(__file__).parent)], "kernels."):
        found += cases_of(importlib.import_module(info.name))
    names = [case.name for case in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"kernel_cases() names {twice[0]!r} twice")
    return found


def compile_case(case: KernelCase, target: str) -> Compiled:
    """Compile a case for one of :data:`TARGETS`; no GPU is needed.

    Raises ValueError for an unknown target and for arguments that are not the kernel's, and
    RuntimeError in a process whose kernels are interpreted.
    """
    if INTERPRETED or triton is None:
        reason = "triton is not installed" if triton is None else "TRITON_INTERPRET=1 is set"
        raise RuntimeError(f"kernels cannot be compiled: {reason}")
    if target not in TARGETS:
        raise ValueError(f"target = {target!r} is unknown; known: {', '.join(TARGETS)}")
    from triton.backends.compiler import GPUTarget
    from triton.compiler.compiler import ASTSource

    arguments = list(inspect.signature(case.kernel.fn).parameters)
    constant = {name for name, kind in case.signature.items() if kind == "constexpr"}
    if set(arguments) != set(case.signature) or constant != set(case.constants):
        odd = set(arguments) ^ set(case.signature) or constant ^ set(case.constants)
        raise ValueError(f"{case.name} does not describe the argument {sorted(odd)[0]!r}")
    source = ASTSource(
        fn=case.kernel,
        signature={name: case.signature[name] for name in arguments},
        constexprs=case.constants,
        attrs={(arguments.index(n),): [["tt.divisibility", 16]] for n in case.divisible_by_16},
    )
    log = io.StringIO()
    # Triton's own call of ptxas, whose flags decide what is spilled; a cache hit would skip it.
    with (
        triton.knobs.nvidia.scope(),
        triton.knobs.compilation.scope(),
        contextlib.redirect_stdout(log),
    ):
        triton.knobs.nvidia.dump_ptxas_log = True
        triton.knobs.compilation.always_compile = True
        binary = triton.compile(
            source, target=GPUTarget(*TARGETS[target]), options={"num_warps": case.num_warps}
        )
    if TARGETS[target][0] == "cuda":
        return _inspect_ptx(binary.asm["ptx"], log.getvalue())
    return _inspect_amd(binary.asm["amdgcn"])


def _inspect_ptx(ptx: str, log: str) -> Compiled:
    # One line per function: more than one where the kernel calls a subroutine.
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    registers = re.findall(r"Used (\d+) registers", log)
    if not spills or not registers:
        raise RuntimeError(f"ptxas reported neither spills nor registers: {log!r}")
    return Compiled(
        n_regs=max(map(int, registers)),
        spill_bytes=sum(int(stored) + int(loaded) for stored, loaded in spills),
        vector_loads=len(re.findall(_PTX_ACCESS.format("ld"), ptx)),
        vector_stores=len(re.findall(_PTX_ACCESS.format("st"), ptx)),
    )


def _inspect_amd(assembly: str) -> Compiled:
    def field(name: str) -> int:
        return int(re.findall(rf"^\s*\.{name}:\s*(\d+)", assembly, re.MULTILINE)[0])

    in_registers = 4 * (field("vgpr_spill_count") + field("sgpr_spill_count"))
    return Compiled(
        n_regs=field("vgpr_count"),
        spill_bytes=max(in_registers, field("private_segment_fixed_size")),
        vector_loads=len(re.findall(_AMD_ACCESS.format("load"), assembly)),
        vector_stores=len(re.findall(_AMD_ACCESS.format("store"), assembly)),
    )


def problems(case: KernelCase, compiled: Compiled) -> list[str]:
    """Return what is wrong with a compiled case, in words; empty if nothing is."""
    found = []
    if compiled.spill_bytes:
        found.append(f"spills {compiled.spill_bytes} bytes of registers")
    if case.memory_bound and not compiled.vector_loads:
        found.append("has no 16-byte load")
    if case.memory_bound and not case.reduces and not compiled.vector_stores:
        found.append("has no 16-byte store")
    return found


def _compile_named(name: str, target: str) -> Compiled:
    # Kernels do not pickle; a worker finds the case again.
    return compile_case(next(case for case in cases() if case.name == name), target)


def main(argv: Sequence[str] | None = None) -> int:
    """Compile the cases asked for, print one line for each, and return 1 if any has a problem."""
    parser = argparse.ArgumentParser(prog="python -m kernels.offline", description=__doc__)
    parser.add_argument("--target", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--match", default="", help="only cases whose name contains this")
    parser.add_argument("--jobs", type=int, default=min(os.cpu_count() or 1, 8))
    arguments = parser.parse_args(argv)
    if INTERPRETED or triton is None:
        parser.error("triton is needed, without TRITON_INTERPRET")
    chosen = [case for case in cases() if arguments.match in case.name]
    if not chosen:
        parser.error(f"--match {arguments.match!r}: no case has this in its name")

    width = max(len(case.name) for case in chosen)
    print(f"{'case':<{width}}  target  registers  spilled  loads  stores")
    failures = []
    tasks = [(case, target) for case in chosen for target in arguments.target]
    tasks = [(case, target) for case, target in tasks if target in case.targets]
    results: list[Callable[[], Compiled]]
    with contextlib.ExitStack() as stack:
        if arguments.jobs == 1:
            results = [functools.partial(compile_case, *task) for task in tasks]
        else:
            context = multiprocessing.get_context("spawn")
            pool = stack.enter_context(ProcessPoolExecutor(arguments.jobs, mp_context=context))
            results = [pool.submit(_compile_named, c.name, target).result for c, target in tasks]
        for (case, target), result in zip(tasks, results, strict=True):
            try:
                compiled = result()
            except Exception as error:  # one kernel's failure, of whatever kind, is its line's
                found = [f"does not compile: {type(error).__name__}: {error}"]
                numbers = ""
            else:
                found = problems(case, compiled)
                numbers = (
                    f"{compiled.n_regs:>9}  {compiled.spill_bytes:>7}  "
                    f"{compiled.vector_loads:>5}  {compiled.vector_stores:>6}"
                )
            print(f"{case.name:<{width}}  {target:<6}  {numbers}", flush=True)
            failures += [f"{case.name} on {target} {problem}" for problem in found]
    for failure in failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    print(f"{len(tasks)} compiled, {len(failures)} problems")
    return 1 if failures else 0


if __name__ == "__main__":
    # Under its real name, which the workers import too.
    sys.exit(importlib.import_module("kernels.offline").main())
