"""The report of a grid: all tables and figures as files, and one HTML page that holds them all."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ablations.engine.surroundings import use_any_terminal
from ablations.studies import study_in
from scorekit.files import CorruptFile


def main(argv: Sequence[str] | None = None) -> int:
    """Build the report of a grid's output folder; print its path and its main table.

    Returns 0, or 2 after one line on stderr where the folder holds no readable grid.
    """
    parser = argparse.ArgumentParser(
        prog="python -m ablations.report", description="Tables, figures and a page from a grid."
    )
    parser.add_argument("out", type=Path, help="output folder of a grid, finished or running")
    out = parser.parse_args(argv).out
    try:
        study = study_in(out)
        if study is None:
            raise ValueError(f"{out} holds no grid; give the --out of a launch")
        page = study.report(out)
        print(page)
        if study.headline is not None:
            table = page.parent / "tables" / f"{study.headline}.md"
            print("\n" + table.read_text(encoding="utf-8"), end="")
    except (ValueError, CorruptFile) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    use_any_terminal()
    sys.exit(main())
