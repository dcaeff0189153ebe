"""The launcher's programs in terminals, notebooks and scripts as people have them."""

import os
import subprocess
import sys

import pytest
from places import ROOT

PRINTS = "from ablations.engine.surroundings import use_any_terminal as use; use(); print('σ — 1')"


def run(
    program: str, shell: str = '"$@"', **environment: str
) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-c", program]
    return subprocess.run(
        ["sh", "-c", shell, "sh", *command],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("ascii", b"? ? 1"), ("latin-1", b"? ? 1"), ("utf-8", "σ — 1".encode())],
)
def test_what_a_terminal_has_no_character_for_is_no_reason_to_fail(encoding, shown):
    done = run(PRINTS, PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stdout.strip()) == (0, shown), done.stderr


@pytest.mark.parametrize("closed", ["1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_a_closed_stream_is_not_printed_into_a_file(tmp_path, closed):
    program = f"""
import os, sys
from ablations.engine.surroundings import use_any_terminal
use_any_terminal()
print("a", flush=True)
print("b", file=sys.stderr, flush=True)
assert sys.stderr.isatty() is False
file = open({str(tmp_path / "results")!r}, "w")
os.write(1, b"from a library")
os.write(2, b"from a library")
"""
    done = run(program, f'"$@" {closed}')
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "results").read_bytes() == b""


@pytest.mark.parametrize(
    ("backend", "left"),
    [("module://not_there.backend_inline", None), ("module://json.tool", 1), ("agg", 1)],
)
def test_a_backend_that_is_not_there_is_forgotten(backend, left):
    program = "import os, ablations; print(os.environ.get('MPLBACKEND'))"
    done = run(program, MPLBACKEND=backend)
    assert done.stdout.decode().strip() == (backend if left else "None"), done.stderr


def test_every_program_is_fit_for_any_terminal():
    programs = [
        path
        for path in (ROOT / "ablations").rglob("*.py")
        if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
    ]
    assert len(programs) >= 5
    for path in programs:
        assert "    use_any_terminal()\n" in path.read_text(encoding="utf-8"), path.name
