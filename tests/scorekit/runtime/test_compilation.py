"""torch.compile where it works, eager mode where it does not, and the precision of both."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from places import ROOT

from scorekit.runtime import compilation
from scorekit.runtime.compilation import (
    PRECISIONS,
    autocast,
    compile_seconds,
    compile_unavailable_reason,
    compiled,
    precision_context,
)

TRAIN = """
    import logging, sys
    from pathlib import Path
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    from scorekit.runtime.compilation import compiled
    from scorekit.data.registry import prepare
    from scorekit.training.trainer import Trainer, TrainSettings
    settings = TrainSettings(
        architecture="32-64", width=2, conditional=False, sigma_begin=5, sigma_end=0.05,
        n_levels=4, iterations=2, batch_size=4, learning_rate=1e-3,
    )
    dataset = prepare("digits", "data")
    for name in ("first", "second"):
        trainer = Trainer(settings, dataset, Path(name))
        trainer.run()
        assert trainer.iteration == 2
    assert compiled(len, enable=True, device="cpu") is len
"""


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["absent", "broken"])
def test_without_a_cpp_compiler_training_runs_in_eager_mode_and_says_so_once(tmp_path, compiler):
    program = tmp_path / "c++-of-this-test"
    if compiler == "broken":
        program.write_text("#!/bin/sh\necho no headers here >&2\nexit 1\n")
        program.chmod(0o755)
    environment = {
        **os.environ,
        "CXX": str(program),
        "PYTHONPATH": str(ROOT),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),  # nothing compiled before is found
    }
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(TRAIN)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("everything runs in eager mode") == 1
    if compiler == "absent":
        assert f"no C++ compiler ({program}) on PATH" in done.stderr
    assert (tmp_path / "second" / "snapshot-0000002.pt").exists()


def test_switched_off_compilation_gives_the_function_itself():
    def function(x):
        return x

    assert compiled(function, enable=False, device="cpu") is function
    assert compiled(function, enable=False, device="cuda") is function


works = pytest.mark.skipif(
    compile_unavailable_reason() is not None, reason="torch.compile does not work"
)


@works
@pytest.mark.slow
def test_many_functions_of_one_code_are_compiled_each_for_itself():
    """torch.compile's limit on recompilations counts by code; networks of a grid share theirs."""

    class Scale:
        def __init__(self, factor: int) -> None:
            self.factor = factor

        def times(self, x):
            return x * self.factor

    torch._dynamo.reset()
    x = torch.ones(3)
    with torch._dynamo.config.patch(recompile_limit=1):
        for factor in range(3):
            function = compiled(Scale(factor).times, enable=True, device="cpu")
            assert function(x).tolist() == [factor] * 3


@works
def test_compiling_is_timed_and_happens_once_for_one_shape():
    torch._dynamo.reset()
    function = compiled(lambda x: torch.sin(x) + 1, enable=True, device="cpu")
    before = compile_seconds()
    function(torch.ones(5))
    first = compile_seconds()
    assert first > before
    function(torch.zeros(5))
    assert compile_seconds() == first
    function(torch.zeros(6))
    assert compile_seconds() > first


COMPILE = """
    import torch
    from scorekit.runtime.compilation import compiled
    counters = torch._dynamo.utils.counters
    compiled(lambda x: torch.sin(x) * 5 + 1, enable=True, device="cpu")(torch.ones(100))
    print(counters["inductor"]["fxgraph_cache_hit"], counters["inductor"]["fxgraph_cache_miss"])
"""


@works
@pytest.mark.slow
def test_compiled_code_is_kept_between_processes(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path)}
    environment.pop("TORCHINDUCTOR_CACHE_DIR", None)

    def hits_and_misses() -> list[int]:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(COMPILE)],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return [int(n) for n in done.stdout.split()]

    first_hits, first_misses = hits_and_misses()
    assert first_misses > 0
    hits, misses = hits_and_misses()
    assert hits == first_hits + first_misses
    assert misses == 0
    assert (tmp_path / "scorekit" / "torchinductor").is_dir()


@pytest.fixture
def backends():
    """The settings of torch.backends, put back after the test."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield torch.backends
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_precision_is_set_inside_and_restored_outside(precision, before, backends):
    backends.cuda.matmul.allow_tf32 = before
    backends.cudnn.allow_tf32 = not before
    a = torch.rand(3, 3)
    with precision_context(precision), autocast(precision, "cpu"):
        wanted = "tf32" if precision == "tf32" else "ieee"
        assert torch.backends.cuda.matmul.fp32_precision == wanted
        assert torch.backends.cudnn.conv.fp32_precision == wanted
        assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
        assert (a @ a).dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)
    assert torch.backends.cuda.matmul.allow_tf32 == before
    assert torch.backends.cudnn.allow_tf32 == (not before)
    assert (a @ a).dtype == torch.float32


@pytest.mark.parametrize("precision", PRECISIONS)
def test_precision_is_restored_after_an_error(precision, backends):
    backends.cudnn.allow_tf32 = precision != "tf32"

    def fail():
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"), precision_context(precision):
        fail()
    assert torch.backends.cudnn.allow_tf32 == (precision != "tf32")
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize(
    "matmul",
    ["highest", "high", "medium"],
)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_matmul_precision_of_the_user_is_restored(precision, matmul, backends):
    torch.set_float32_matmul_precision(matmul)
    with precision_context(precision):
        pass
    assert torch.get_float32_matmul_precision() == matmul


@pytest.mark.parametrize("precision", ["fp16", "", "FP32", None])
def test_unknown_precisions_are_refused_with_the_known_ones(precision):
    before = torch.backends.cudnn.allow_tf32
    message = r"precision = .* is unknown; known: fp32, tf32, bf16"
    with pytest.raises(ValueError, match=message), precision_context(precision):
        pass
    assert torch.backends.cudnn.allow_tf32 == before


@pytest.mark.parametrize("home", [None, "/proc/nohome"])
@pytest.mark.parametrize("named", [True, False])
def test_without_a_home_compiled_code_is_kept_where_nobody_else_writes(
    tmp_path, monkeypatch, home, named
):
    def none(*_):
        raise KeyError("getpwuid(): uid not found: 12345")

    for name in ("HOME", "XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    if home is not None:
        monkeypatch.setenv("HOME", home)
    monkeypatch.setattr("pwd.getpwuid", none)
    if not named:
        monkeypatch.setattr("getpass.getuser", none)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    compilation._keep_cache_between_processes()
    kept = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert kept.parent == tmp_path
    assert kept.stat().st_mode & 0o777 == 0o700
    assert Path(os.environ["TRITON_CACHE_DIR"]).parent == kept
    compilation._keep_cache_between_processes()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(kept)
    kept.chmod(0o777)  # as another user might have made it
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    compilation._keep_cache_between_processes()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] != str(kept)
