"""Which implementation runs, and why."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernels import dispatch
from kernels.dispatch import (
    IMPL_VARIABLE,
    fallback_reasons,
    plain_operations,
    unavailable_reason,
    use_triton,
)

CPU = torch.zeros(1)
META = torch.zeros(1, device="meta")
ROOT = Path(dispatch.__file__).parent.parent


@pytest.fixture(autouse=True)
def no_override(monkeypatch):
    monkeypatch.delenv(IMPL_VARIABLE, raising=False)


@pytest.fixture
def with_triton(monkeypatch):
    """Triton installed and interpreted, whatever this machine has."""
    monkeypatch.setattr(dispatch, "triton", object())
    monkeypatch.setattr(dispatch, "INTERPRETED", True)


def test_the_cpu_takes_plain_torch_unless_the_interpreter_is_asked_for(with_triton):
    assert not use_triton("op", "auto", CPU)
    assert fallback_reasons()["op"] == "the interpreter runs only when asked for"
    assert use_triton("op", "triton", CPU)
    assert not use_triton("op", "torch", CPU)
    assert fallback_reasons()["op"] == "impl = 'torch'"


def test_the_variable_replaces_auto_and_nothing_else(with_triton, monkeypatch):
    monkeypatch.setenv(IMPL_VARIABLE, "triton")
    assert use_triton("op", "auto", CPU)
    assert not use_triton("op", "torch", CPU)
    monkeypatch.setenv(IMPL_VARIABLE, "torch")
    assert not use_triton("op", "auto", CPU)
    assert fallback_reasons()["op"] == f"{IMPL_VARIABLE} = 'torch'"
    assert use_triton("op", "triton", CPU)


@pytest.mark.parametrize("value", ["cuda", "", "Triton"])
def test_unknown_implementations_are_refused(value, monkeypatch):
    with pytest.raises(
        ValueError, match=f"impl = '{value}' is unknown; known: auto, triton, torch"
    ):
        use_triton("op", value, CPU)
    monkeypatch.setenv(IMPL_VARIABLE, value)
    with pytest.raises(ValueError, match=f"{IMPL_VARIABLE} = '{value}' is unknown"):
        use_triton("op", "auto", CPU)


def test_arguments_a_kernel_cannot_take_go_to_torch_unless_it_was_insisted_on(with_triton):
    assert not use_triton("op", "auto", CPU, unsupported="x is complex")
    with pytest.raises(ValueError, match="impl = 'triton' is not possible for op: x is complex"):
        use_triton("op", "triton", CPU, unsupported="x is complex")


@pytest.mark.parametrize(
    ("installed", "interpreted", "device", "reason"),
    [
        (False, True, "cpu", "triton is not installed"),
        (False, False, "cuda", "triton is not installed"),
        (True, False, "cpu", "its tensors are on the CPU"),
        (True, False, "meta", "there are no kernels for 'meta' devices"),
        (True, False, "cuda", None),
        (True, True, "cpu", None),
    ],
)
def test_reasons(installed, interpreted, device, reason, monkeypatch):
    monkeypatch.setattr(dispatch, "triton", object() if installed else None)
    monkeypatch.setattr(dispatch, "INTERPRETED", interpreted)
    assert unavailable_reason(device) == reason


def test_a_gpu_takes_the_kernel_and_forgets_an_earlier_reason(with_triton, monkeypatch):
    monkeypatch.setattr(dispatch, "INTERPRETED", False)
    assert not dispatch._use_triton("op", "auto", "cuda", "x is complex")
    assert fallback_reasons()["op"] == "x is complex"
    assert dispatch._use_triton("op", "auto", "cuda", None)
    assert "op" not in fallback_reasons()


def test_plain_operations_take_no_kernel_and_say_why(with_triton, monkeypatch):
    monkeypatch.setattr(dispatch, "unavailable_reason", lambda device_type: None)
    with plain_operations():
        assert not use_triton("op", "auto", META)
        assert fallback_reasons()["op"] == "its derivatives are to be differentiated"
        with pytest.raises(ValueError, match="'triton' is not possible for op: its derivatives"):
            use_triton("op", "triton", META)
        with pytest.raises(RuntimeError, match="inside"), plain_operations():
            raise RuntimeError("inside")
        assert not use_triton("op", "auto", META)
    assert use_triton("op", "auto", META)


def test_tensors_on_several_devices_are_refused():
    with pytest.raises(ValueError, match="tensors on one device; they are on cpu and meta"):
        use_triton("op", "auto", CPU, None, META)


def test_absent_tensors_do_not_count(with_triton):
    assert use_triton("op", "triton", CPU, None)


def test_the_choice_is_made_while_tracing(with_triton):
    def f(x):
        return x + 1 if use_triton("traced", "triton", x) else x - 1

    compiled = torch.compile(f, fullgraph=True, backend="eager")
    assert compiled(CPU).item() == 1


def test_reasons_are_a_copy():
    fallback_reasons()["made up"] = "reason"
    assert "made up" not in fallback_reasons()


WITHOUT_TRITON = """
import importlib, pkgutil, sys
sys.modules["triton"] = None
import torch, kernels
for module in pkgutil.iter_modules(kernels.__path__, "kernels."):
    importlib.import_module(module.name)
from kernels import dispatch
from kernels.langevin_step import langevin_step
from kernels.philox import philox_key
assert dispatch.triton is None
step = langevin_step(torch.zeros(2, 5), torch.zeros(2, 5), torch.tensor(0.5), philox_key(0),
                     torch.arange(2), torch.tensor(0))
assert step.abs().sum() > 0
assert dispatch.fallback_reasons()["langevin_step"] == "triton is not installed"
"""


def test_everything_imports_and_runs_without_triton():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TRITON], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
