"""The report of a grid: all tables and figures as files, and one HTML page that holds them all."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ablations.engine.study import Study
from ablations.engine.surroundings import use_any_terminal
from ablations.studies import study_in
from scorekit.files import CorruptFile


def main(argv: Sequence[str] | None = None) -> int:
    """Build the report of output folders; print its path and its main table.

    Returns 0, or 2 after one line on stderr where a folder holds no readable grid.
    """
    parser = argparse.ArgumentParser(
        prog="python -m ablations.report", description="Tables, figures and a page from a grid."
    )
    parser.add_argument(
        "folders",
        type=Path,
        nargs="+",
        metavar="OUT",
        help="output folder of a grid, finished or running; of several, one report (--out)",
    )
    parser.add_argument("--out", type=Path, help="where the report of several folders goes")
    args = parser.parse_args(argv)
    try:
        study = _study_of_all(args.folders)
        page = _build(study, args.folders, args.out)
        print(page)
        if study.headline is not None:
            table = page.parent / "tables" / f"{study.headline}.md"
            print("\n" + table.read_text(encoding="utf-8"), end="")
    except (ValueError, CorruptFile) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _study_of_all(folders: Sequence[Path]) -> Study:
    studies = {}
    for folder in folders:
        study = study_in(folder)
        if study is None:
            raise ValueError(f"{folder} holds no grid; give the --out of a launch")
        studies[study.name] = study
    if len(studies) > 1:
        raise ValueError(f"the folders hold different studies: {', '.join(studies)}")
    return next(iter(studies.values()))


def _build(study: Study, folders: Sequence[Path], out: Path | None) -> Path:
    if len(folders) == 1 and out is None:
        return study.report(folders[0])
    if study.joined_report is None:
        raise ValueError(f"reports of several folders are not made of the study {study.name}")
    if out is None:
        raise ValueError("--out must say where the report of several folders goes")
    return study.joined_report(folders, out)


if __name__ == "__main__":
    use_any_terminal()
    sys.exit(main())
