"""The studies: each a paper's experiments as data for the engine, executors and reports."""

from importlib import import_module
from pathlib import Path

from ablations.engine.settings import nearest
from ablations.engine.study import Study

#: Module by name; the first is the default.
MODULES = {
    "ncsnv2": "ablations.studies.ncsnv2.study",
    "finite-difference": "ablations.studies.finite_difference.study",
}


def all_studies() -> list[Study]:
    """Return every study, the default one first."""
    return [import_module(module).STUDY for module in MODULES.values()]


def study_in(out: Path) -> Study | None:
    """Return the study whose manifest an output folder holds, or None."""
    return next((study for study in all_studies() if (out / study.file.name).exists()), None)


def study_of(grid: str | None, out: Path) -> Study:
    """Return the study that has a grid, or else the one that an output folder was begun with.

    Files of grids are of the default study. ValueError where the folder holds another study's.
    """
    begun, default = study_in(out), all_studies()[0]
    if grid is None:
        return begun or default
    first = grid.split(",")[0].strip()
    known = [name for study in all_studies() for name in study.grids]
    if first not in known and Path(first).suffix != ".toml" and not Path(grid).is_file():
        raise ValueError(
            f"grid {first!r} is unknown{nearest(first, known)}; known: {', '.join(known)}, or a "
            ".toml file"
        )
    asked = next((study for study in all_studies() if first in study.grids), default)
    if begun not in (None, asked):
        assert begun is not None
        raise ValueError(
            f"--out {out} holds the study {begun.name}, and --grid {grid} is of {asked.name}; "
            "choose another --out"
        )
    return asked
