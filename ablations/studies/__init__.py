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


def study_of(grid: str | None, out: Path | None = None) -> Study:
    """Return the study that has the grids, or else the one that an output folder was begun with.

    Files of grids are of the default study. ValueError for grids that are unknown or of several
    studies, and where the folder holds another study's.
    """
    begun, default = None if out is None else study_in(out), all_studies()[0]
    if grid is None:
        return begun or default
    owners = {name: study for study in all_studies() for name in study.grids}
    asked: dict[str, Study] = {}
    for name in [grid] if Path(grid).is_file() else map(str.strip, grid.split(",")):
        if name not in owners and Path(name).suffix != ".toml":
            known = ", ".join(owners)
            raise ValueError(
                f"grid {name!r} is unknown{nearest(name, owners)}; known: {known}, or a .toml file"
            )
        study = owners.get(name, default)
        asked[study.name] = study
    if len(asked) > 1:
        raise ValueError(
            f"--grid {grid}: they are of the studies {' and '.join(asked)}, which have folders of "
            "their own; give a command for each"
        )
    (study,) = asked.values()
    if begun is not None and begun.name != study.name:
        raise ValueError(
            f"--out {out} holds the study {begun.name}, and --grid {grid} is of {study.name}; "
            "choose another --out"
        )
    return study
