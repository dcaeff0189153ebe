"""Kernels compile for GPUs that are not here, and the inspection finds what is wrong with one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import kernels
from kernels import offline
from kernels.dispatch import triton

PACKAGE = Path(kernels.__file__).parent
needs_triton = pytest.mark.skipif(triton is None, reason="triton is not installed")

BAD_KERNELS = """
from kernels.dispatch import jit, tl


@jit
def _spilling_kernel(out_ptr, x_ptr, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    x, y = tl.load(x_ptr + at), tl.load(x_ptr + SIZE + at)
    # Both are needed again after a sum over all threads.
    tl.store(out_ptr + at, x / tl.sum(x * y, axis=0) + y)


@jit
def _strided_kernel(out_ptr, x_ptr, SIZE: tl.constexpr):
    at = 3 * tl.arange(0, SIZE)
    tl.store(out_ptr + at, tl.load(x_ptr + at))


@jit
def _good_kernel(out_ptr, x_ptr, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(out_ptr + at, tl.load(x_ptr + at))


@jit
def _broken_kernel(out_ptr, x_ptr, SIZE: tl.constexpr):
    tl.store(out_ptr, undefined_name)


def kernel_cases():
    from kernels.offline import KernelCase

    def case(name, kernel, size, warps, *targets):
        return KernelCase(
            name=name,
            kernel=kernel,
            signature={"out_ptr": "*fp32", "x_ptr": "*fp32", "SIZE": "constexpr"},
            constants={"SIZE": size},
            divisible_by_16=("out_ptr", "x_ptr"),
            memory_bound=True,
            num_warps=warps,
            targets=targets or ("sm_80", "sm_90", "gfx942"),
        )

    return [
        # Twice 128 numbers per thread, and twice 256 of the 512 that gfx942 has room for.
        case("spilling", _spilling_kernel, 4096, 1, "sm_80", "sm_90"),
        case("spilling on AMD", _spilling_kernel, 16384, 1, "gfx942"),
        case("strided", _strided_kernel, 1024, 4),
        case("good", _good_kernel, 1024, 4),
        case("broken", _broken_kernel, 1024, 4),
    ]
"""


def run(*arguments: str, root: Path = PACKAGE.parent) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "kernels.offline", *arguments],
        env={**environment, "PYTHONPATH": str(root), "PYTHONWARNINGS": "ignore"},
        cwd=root,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture
def other_package(tmp_path):
    """A package of kernels with nothing in it but the inspection."""
    (tmp_path / "kernels").mkdir()
    for name in ("__init__.py", "dispatch.py", "offline.py"):
        shutil.copy(PACKAGE / name, tmp_path / "kernels" / name)
    return tmp_path


@needs_triton
def test_spills_narrow_accesses_and_errors_are_found_and_good_kernels_pass(other_package):
    (other_package / "kernels" / "bad.py").write_text(BAD_KERNELS)
    result = run("--jobs", "1", root=other_package)
    assert result.returncode == 1, result.stderr
    failures = [line for line in result.stderr.splitlines() if line.startswith("FAILED")]
    for target in offline.TARGETS:
        own = [line for line in failures if f"on {target} " in line]
        assert any("spilling" in line and "bytes of registers" in line for line in own)
        assert any("strided" in line and "no 16-byte load" in line for line in own)
        assert any("strided" in line and "no 16-byte store" in line for line in own)
        assert any("broken" in line and "does not compile" in line for line in own)
    assert not any("good" in line for line in failures)
    table = [line for line in result.stdout.splitlines() if line.startswith("good")]
    assert len(table) == len(offline.TARGETS)


@needs_triton
def test_a_kernel_without_a_case_is_an_error(other_package):
    text = BAD_KERNELS.replace('        case("good", _good_kernel, 1024, 4),\n', "")
    (other_package / "kernels" / "forgetful.py").write_text(text)
    result = run(root=other_package)
    assert result.returncode != 0
    assert "kernels.forgetful.kernel_cases() has no case of _good_kernel" in result.stderr
    (other_package / "kernels" / "forgetful.py").write_text(text.split("def kernel_cases")[0])
    result = run(root=other_package)
    assert result.returncode != 0
    assert "_broken_kernel, _good_kernel, _spilling_kernel, _strided_kernel" in result.stderr


@needs_triton
def test_one_kernel_of_this_package_compiles_for_every_target():
    result = run("--match", "langevin_step[fp32]", "--jobs", "1")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "3 compiled, 0 problems" in result.stdout


@needs_triton
@pytest.mark.slow
def test_all_kernels_compile_without_spills_and_move_16_bytes():
    result = run()
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 problems" in result.stdout


def test_every_kernel_has_cases_of_one_name_each():
    names = [case.name for case in offline.cases()]
    assert len(set(names)) == len(names)
    for operation in ("philox_normal", "philox_uniform", "langevin_step", "perturb"):
        assert any(name.startswith(f"{operation}[") for name in names)


def case(**changes):
    (given,) = (c for c in offline.cases() if c.name == "langevin_step[fp32]")
    return offline.KernelCase(**{**vars(given), **changes})


@pytest.mark.parametrize(
    ("memory_bound", "reduces", "spilled", "loads", "stores", "expected"),
    [
        (True, False, 0, 1, 1, []),
        (True, False, 8, 1, 1, ["spills 8 bytes of registers"]),
        (True, False, 0, 0, 0, ["has no 16-byte load", "has no 16-byte store"]),
        (True, True, 0, 1, 0, []),
        (True, True, 0, 0, 0, ["has no 16-byte load"]),
        (False, False, 0, 0, 0, []),
    ],
)
def test_problems(memory_bound, reduces, spilled, loads, stores, expected):
    compiled = offline.Compiled(
        n_regs=32, spill_bytes=spilled, vector_loads=loads, vector_stores=stores
    )
    assert offline.problems(case(memory_bound=memory_bound, reduces=reduces), compiled) == expected


@pytest.mark.parametrize(
    ("instruction", "wide"),
    [
        ("ld.global.v4.b32", True),
        ("ld.global.L1::evict_last.v4.f32", True),
        ("ld.global.v2.b64", True),
        ("ld.global.v2.b32", False),
        ("ld.global.v4.b16", False),
        ("ld.global.b32", False),
        ("ld.shared.v4.b32", False),
    ],
)
def test_which_ptx_instructions_move_16_bytes(instruction, wide):
    log = "16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads\nUsed 40 registers"
    compiled = offline._inspect_ptx(f"\t@%p1 {instruction} {{ %r1 }}, [ %rd1 + 0 ];", log)
    assert compiled == offline.Compiled(
        n_regs=40, spill_bytes=12, vector_loads=int(wide), vector_stores=0
    )


def test_a_silent_assembler_is_an_error():
    with pytest.raises(RuntimeError, match="neither spills nor registers"):
        offline._inspect_ptx("ld.global.v4.b32", "")


def test_interpreted_kernels_are_not_compiled(monkeypatch):
    monkeypatch.setattr(offline, "INTERPRETED", True)
    with pytest.raises(RuntimeError, match=r"TRITON_INTERPRET=1 is set|triton is not installed"):
        offline.compile_case(case(), "sm_80")


@needs_triton
@pytest.mark.parametrize(
    ("attribute", "argument"), [("signature", "size"), ("constants", "BLOCK"), (None, None)]
)
def test_bad_requests_are_refused(attribute, argument, monkeypatch):
    monkeypatch.setattr(offline, "INTERPRETED", False)
    if attribute is None:
        with pytest.raises(ValueError, match="target = 'sm_11' is unknown; known: sm_80"):
            offline.compile_case(case(), "sm_11")
        return
    fewer = {k: v for k, v in getattr(case(), attribute).items() if k != argument}
    given = case(**{attribute: fewer})
    with pytest.raises(ValueError, match=f"does not describe the argument '{argument}'"):
        offline.compile_case(given, "sm_80")
