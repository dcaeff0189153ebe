"""Who may import whom, and what a package needs to be imported at all."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

OURS = {"kernels", "scorekit", "ablations", "bench", "tests"}
ALLOWED = {
    "kernels": {"kernels"},
    "scorekit": {"kernels", "scorekit"},
    "ablations": {"kernels", "scorekit", "ablations"},
    "bench": {"kernels", "scorekit", "ablations", "bench"},
}


def imported(source: str) -> set[str]:
    """Return the top-level packages that a module imports, wherever in the module it does so."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                found.add("(relative)")
            elif node.module:
                found.add(node.module.split(".")[0])
    return found


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_packages_import_only_what_lies_below_them(package):
    assert modules(package), f"{package} has no modules"
    wrong = {
        str(path.relative_to(ROOT)): bad
        for path in modules(package)
        if (bad := imported(path.read_text()) & OURS - ALLOWED[package])
    }
    assert wrong == {}


def test_kernels_know_torch_and_triton_only():
    known = {"kernels", "torch", "triton", *sys.stdlib_module_names}
    wrong = {
        path.name: bad for path in modules("kernels") if (bad := imported(path.read_text()) - known)
    }
    assert wrong == {}


def test_imports_inside_functions_are_seen():
    assert imported("def f():\n    from ablations.pipeline.cell import Cell\n    import a.b") == {
        "ablations",
        "a",
    }


def run(program: str, cwd: Path, *path: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_kernels_work_without_triton(tmp_path):
    names = [f"kernels.{path.stem}" for path in modules("kernels") if path.stem != "__init__"]
    program = f"""
import importlib, sys
sys.modules["triton"] = None
for name in {names!r}:
    importlib.import_module(name)
import torch
from kernels.langevin_step import langevin_step
from kernels.max_pairwise_distance import max_pairwise_distance
from kernels.philox import philox_key
x = torch.zeros(2, 5)
moved = langevin_step(
    x, x, torch.tensor(0.5), philox_key(0), torch.arange(2), torch.tensor(0)
)
assert moved.isfinite().all() and moved.std() > 0
assert max_pairwise_distance(torch.tensor([[0.0], [3.0]])) == (3.0, (0, 1))
print("done", len(sys.argv))
"""
    done = run(program, tmp_path, ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("done")


def test_a_foreign_package_named_kernels_is_told_apart(tmp_path):
    foreign = tmp_path / "site" / "kernels"
    foreign.mkdir(parents=True)
    (foreign / "__init__.py").write_text("__version__ = '0.11'\n")
    done = run("import scorekit", tmp_path, foreign.parent, ROOT)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: 'kernels' was imported from ")
    assert str(foreign) in last
    assert "not scorekit's" in last
    # Uninstalling alone would take scorekit's own files of that folder along.
    assert last.index("pip uninstall kernels") < last.index("pip install --force-reinstall")


def test_what_an_uninstalled_foreign_package_leaves_is_told_apart(tmp_path):
    """A folder without __init__.py, which was of both and which pip took along."""
    left = tmp_path / "site" / "kernels"
    left.mkdir(parents=True)
    (left / "philox.py").write_text("")
    (tmp_path / "site" / "scorekit").symlink_to(ROOT / "scorekit")
    done = run("import scorekit", tmp_path, tmp_path / "site")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert str(left) in last
    assert "pip install --force-reinstall --no-deps" in last


def test_our_own_package_named_kernels_is_accepted(tmp_path):
    done = run("import scorekit; print(scorekit.__version__)", tmp_path, ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
