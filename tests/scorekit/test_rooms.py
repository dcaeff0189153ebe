"""The rooms of the library: their public names, brought when asked for, and what they cost."""

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
import tomllib

import pytest
from places import ROOT

import scorekit

ROOMS = sorted(module.name for module in pkgutil.iter_modules(scorekit.__path__) if module.ispkg)
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SLOW_TO_IMPORT = {"torch._dynamo", "pandas", "matplotlib", "torch_fidelity", "scipy.optimize"}


def exported(room: str) -> dict[str, str]:
    """Return the names in a room's stub and the module that each is of ("": is one)."""
    stub = ast.parse((ROOT / "scorekit" / room / "__init__.pyi").read_text())
    return {
        alias.asname or "(hidden from type checkers)": node.module or ""
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def test_the_library_brings_its_rooms_and_its_contents_page_names_them():
    assert sorted([*ROOMS, "files"]) == scorekit.__all__
    contents = re.findall(r"^- (\w+): ", scorekit.__doc__ or "", re.MULTILINE)
    assert sorted(contents) == scorekit.__all__


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_exports_what_its_modules_have(room):
    names = exported(room)
    package = importlib.import_module(f"scorekit.{room}")
    assert sorted(names) == package.__all__ == dir(package)
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    for name, module in names.items():
        # A name that is also a module would be one or the other, by what was imported before.
        assert (name in modules) == (module == ""), name
        owner = importlib.import_module(f"scorekit.{room}.{module or name}")
        assert getattr(package, name) is (getattr(owner, name) if module else owner)
    contents = re.findall(r"[-;,] (\w+)(?=[,:])", package.__doc__ or "")
    assert modules - {"__main__"} <= set(contents), "a module without a line"


def names_in_documents() -> set[str]:
    """Return every scorekit.… that the documents write, and what their code imports from there."""
    found = set()
    for path in DOCUMENTS:
        if not path.exists():
            continue
        text = path.read_text()
        found |= set(re.findall(r"\bscorekit\.[\w.]*\w", text))
        for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("scorekit"):
                    found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_names_in_documents_exist_and_rooms_export_them():
    found = names_in_documents()
    assert len(found) > 10
    for dotted in sorted(found):
        package, rest = scorekit, dotted.split(".")[1:]
        while rest:
            name = rest.pop(0)
            public = getattr(package, "__all__", None)
            submodule = importlib.util.find_spec(f"{package.__name__}.{name}")
            assert submodule or public is None or name in public, f"{dotted}: {name}"
            package = (
                importlib.import_module(submodule.name) if submodule else getattr(package, name)
            )
            if not hasattr(package, "__path__"):
                for attribute in rest:
                    package = getattr(package, attribute)
                break


def imported_by(statement: str) -> set[str]:
    program = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_a_library_that_is_only_imported_imports_next_to_nothing():
    rooms = "; ".join(f"scorekit.{room}" for room in scorekit.__all__ if room != "files")
    loaded = imported_by(f"import scorekit; {rooms}; dir(scorekit.metrics)")
    assert {f"scorekit.{room}" for room in ROOMS} <= loaded
    assert not loaded & {"torch", "numpy", "scipy", *SLOW_TO_IMPORT}


@pytest.mark.slow
@pytest.mark.parametrize("room", ROOMS)
def test_one_name_of_a_room_does_not_bring_what_only_others_need(room):
    """Torch-fidelity's networks are for a few names of metrics alone."""
    heavy = {"features", "extractors", "sample_quality", "train_extractor"}
    names = [name for name, module in exported(room).items() if module not in heavy]
    loaded = imported_by(f"from scorekit.{room} import {', '.join(names)}")
    assert not loaded & SLOW_TO_IMPORT


def test_types_are_shipped():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    data = project["tool"]["setuptools"]["package-data"]
    assert "py.typed" in data["scorekit"] and "*.pyi" in data["*"]
    assert (ROOT / "scorekit" / "py.typed").exists()
