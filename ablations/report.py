"""The report of a grid: all tables and figures as files, and one HTML page that holds them all."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ablations.engine.manifest import PLAN_FILE
from ablations.engine.surroundings import use_any_terminal
from ablations.reporting.table_files import markdown
from ablations.studies.finite_difference.report import build_finite_difference_report
from ablations.studies.ncsnv2.report import build_report
from ablations.studies.ncsnv2.sections.ablation import ablation_table


def main(argv: Sequence[str] | None = None) -> int:
    """Build the report of a grid's output folder; print its path and, if any, the ablation table.

    Returns 0, or 2 after one line on stderr where the folder holds no readable grid.
    """
    parser = argparse.ArgumentParser(
        prog="python -m ablations.report", description="Tables, figures and a page from a grid."
    )
    parser.add_argument("out", type=Path, help="output folder of a grid, finished or running")
    out = parser.parse_args(argv).out
    from ablations.pipeline.collect import (
        collect,  # what builds a report need not know how files lie
    )

    try:
        if (out / PLAN_FILE).exists():
            print(build_finite_difference_report(out))
            return 0
        results = collect(out)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    page = build_report(results, out / "report")
    print(page)
    print()
    print(markdown(ablation_table(results)))
    return 0


if __name__ == "__main__":
    use_any_terminal()
    sys.exit(main())
