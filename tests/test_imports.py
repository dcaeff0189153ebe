"""Who may import whom, and what a package needs to be imported at all."""

import ast
import os
import subprocess
import sys
from collections.abc import Sequence, Set
from graphlib import CycleError, TopologicalSorter
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

Layers = Sequence[Set[str]]
#: The rooms of a package, those that import nothing of the others first: who may import whom.
LAYERS: dict[str, Layers] = {
    "scorekit": (
        {"files", "runtime", "techniques", "derivatives"},
        {"data", "models", "objectives", "sampling", "checkpoints"},
        {"training", "metrics"},
    ),
    "ablations": (
        {"engine", "reporting"},
        {"executors", "pipeline", "hype"},
        {"studies"},
        {"command_line"},
        {"launch", "report", "clean", "doctor"},
        {"reproduce"},
        {"__main__"},
    ),
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
        if (bad := imported(path.read_text()) & (OURS | {"(relative)"}) - ALLOWED[package])
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


def sources(package: str) -> dict[str, str]:
    """Return the source of each module of a package by its dotted name.

    That of a room which brings its names lazily is its stub, where those names are listed.
    """
    found = {}
    for path in modules(package):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        stub = path.with_suffix(".pyi")
        found[name] = path.read_text() + (stub.read_text() if stub.exists() else "")
    return found


def arrows(texts: dict[str, str]) -> dict[str, set[str]]:
    """Return which of these modules each imports, in functions and for types alone, too."""
    found: dict[str, set[str]] = {}
    for importer, text in texts.items():
        names: set[str] = set()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                # A dot is the package itself: only its stub may write one.
                module = ".".join(filter(None, (importer if node.level else "", node.module)))
                for alias in node.names:
                    inner = f"{module}.{alias.name}"
                    names.add(inner if inner in texts else module)
        found[importer] = names & texts.keys() - {importer}
    return found


def is_command(module: str) -> bool:
    """Return whether a module is a room's command: nothing imports it, and so it may use any."""
    return module.count(".") > 1 and module.endswith(".__main__")


def between_rooms(found: dict[str, set[str]]) -> dict[str, set[str]]:
    """Return which rooms' modules each room's import; the package's own `__init__` is no room."""
    rooms: dict[str, set[str]] = {}
    for importer, names in found.items():
        if "." in importer and not is_command(importer):
            room = importer.split(".")[1]
            others = {name.split(".")[1] for name in names if "." in name}
            rooms.setdefault(room, set()).update(others - {room})
    return rooms


def upwards(layers: Layers, found: dict[str, set[str]]) -> list[str]:
    """Return the imports, as text, that lead from a room to one of a later layer."""
    level = {room: number for number, rooms in enumerate(layers) for room in rooms}
    return [
        f"{importer} imports {name}"
        for importer, names in found.items()
        for name in sorted(names)
        if "." in importer and "." in name and not is_command(importer)
        if level[name.split(".")[1]] > level[importer.split(".")[1]]
    ]


def circle(found: dict[str, set[str]]) -> list[str]:
    """Return modules or rooms that import one another in a circle, or none."""
    try:
        TopologicalSorter(found).prepare()
    except CycleError as error:
        return error.args[1]
    return []


@pytest.mark.parametrize("package", LAYERS)
def test_rooms_import_only_what_lies_below_them_or_beside(package):
    found = arrows(sources(package))
    rooms = between_rooms(found)
    assert rooms.keys() == set().union(*LAYERS[package]), "a room without a layer, or none of it"
    assert sum(map(len, rooms.values())) > len(rooms)
    assert upwards(LAYERS[package], found) == []
    assert circle(rooms) == []
    assert not [name for names in found.values() for name in names if is_command(name)]


@pytest.mark.parametrize("package", [*LAYERS, "kernels", "bench"])
def test_no_module_imports_itself_by_others(package):
    assert circle(arrows(sources(package))) == []


def test_an_arrow_upwards_or_in_a_circle_is_seen():
    texts = {
        "p": "",
        "p.low": "from .a import f as f",
        "p.low.a": "import os, p.low.b\nfrom q.low.a import g",
        "p.low.b": "def f():\n    if TYPE_CHECKING:\n        from p.high import c",
        "p.high": "",
        "p.high.c": "from p.low.a import f",
        "p.high.d": "from p.low import f, a",
    }
    found = arrows(texts)
    assert found == {
        "p": set(),
        "p.low": {"p.low.a"},
        "p.low.a": {"p.low.b"},
        "p.low.b": {"p.high.c"},
        "p.high": set(),
        "p.high.c": {"p.low.a"},
        "p.high.d": {"p.low", "p.low.a"},
    }
    layers = ({"low"}, {"high"})
    assert upwards(layers, found) == ["p.low.b imports p.high.c"]
    assert upwards(({"low", "high"},), found) == []
    assert set(circle(found)) == {"p.low.a", "p.low.b", "p.high.c"}
    assert set(circle(between_rooms(found))) == {"low", "high"}
    found["p.low.__main__"] = {"p.high.c"}
    found["p.low.b"] = set()
    assert upwards(layers, found) == circle(found) == circle(between_rooms(found)) == []
    assert circle(arrows(texts | {"p.low.b": "from p.low import f"}))  # through the room's names


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
