"""Names on the command line: lists of them separated by commas, which names may hold too."""

import fnmatch
import os
from collections.abc import Callable, Sequence

from ablations.pipeline.cell import Cell
from scorekit.data.registry import KNOWN


def split_datasets(text: str) -> list[str]:
    """Return the data sets of a list like ``digits,imagefolder:Photos, 2019``.

    A comma separates where the name of a data set follows it, and is part of a path elsewhere;
    there it is also where the folder is called so: ``imagefolder:a,digits``.
    """
    parts = [part for part in text.split(",") if part.strip()]

    def follows(joined: str, part: str) -> bool:
        path = joined.partition(":")[2].strip()
        if not path or part.partition(":")[0].strip() not in KNOWN:
            return bool(path)
        longer = os.path.expanduser(f"{path},{part}".strip())
        return os.path.exists(longer) and not os.path.exists(os.path.expanduser(path))

    found: list[str] = []
    for part in parts:
        if found and follows(found[-1], part):
            found[-1] += f",{part}"
        else:
            found.append(part)
    return [name.strip() for name in found]


def select_cells(cells: Sequence[Cell], text: str) -> list[Cell]:
    """Return the cells that a list of names or globs chooses, in their own order.

    A cell goes by its name, its row's label or slug, its variant's, its data's, and as jobs call
    it, in either case; names are taken as they are printed, commas and brackets included. Raises
    ValueError for a part that matches nothing.
    """
    names = {cell: _names(cell) for cell in cells}
    parts = [part for part in text.split(",") if part.strip()]
    chosen: set[str] = set()
    while parts:
        n_taken, found = _first_match(names, parts)
        if not found:
            there = ", ".join(sorted(cell.name for cell in cells))
            raise ValueError(f"--only {parts[0].strip()} matches no cell; there are: {there}")
        chosen |= {cell.name for cell in found}
        del parts[:n_taken]
    if not chosen:
        raise ValueError(f"--only {text!r} names no cell; leave it out to run all")
    return [cell for cell in cells if cell.name in chosen]


def _first_match(names: dict[Cell, set[str]], parts: list[str]) -> tuple[int, list[Cell]]:
    """Return how many of the first parts are one name or glob, and whom it matches."""

    def matching(n: int, matches: Callable[[set[str], str], bool]) -> list[Cell]:
        pattern = ",".join(parts[:n]).strip().lower()
        return [cell for cell, called in names.items() if matches(called, pattern)]

    def is_glob(called: set[str], pattern: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for name in called)

    longest_first = range(len(parts), 0, -1)
    # A glob spans commas only where it means nothing up to the first.
    tries = [(n, set.__contains__) for n in longest_first] + [(1, is_glob)]
    tries += [(n, is_glob) for n in longest_first]
    return next(((n, found) for n, how in tries if (found := matching(n, how))), (0, []))


def _names(cell: Cell) -> set[str]:
    job = f"{cell.data.name} {cell.label} seed {cell.seed}"
    variant = (cell.variant.slug, cell.variant.name)
    return {
        name.lower() for name in (cell.name, cell.slug, cell.label, *variant, cell.data.name, job)
    }
