"""The report of a grid: all tables and figures as files, and one HTML page that holds them all."""

from __future__ import annotations

import argparse
import base64
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from ablations.context_tables import hyperparameter_table, quoted_scores_table, timing_table
from ablations.figures import distance_curves, ema_curves, loss_curves
from ablations.pictures import Picture, save_picture
from ablations.presentation import joined, write_file
from ablations.results import Results
from ablations.sample_figures import grid_keys, sample_grid, sample_overview
from ablations.settings import BUDGETS
from ablations.table_files import markdown, save_table
from ablations.tables import Table, ablation_table

NOT_THE_PAPERS = (
    "These numbers compare the variants under these conditions; they are not the paper's numbers "
    "and do not stand for them."
)
QUOTED = "Quoted from the paper"
_VARIANT = re.compile(r"NCSN_(\d+(?:,\d+)*)\b")
_MEASURE = re.compile(r"^(FD\[[^\]]*\]|FID) (?=[\d.-])")


def build_report(results: Results, directory: Path) -> Path:
    """Write tables/, figures/ and index.html below `directory`; the path of the page.

    The page needs no other file: its images are inside. It is written last, so a page that is
    there is whole. Raises OSError when the directory cannot be written to.
    """
    tables = {
        "ablation": ablation_table(results),
        "paper": quoted_scores_table(results),
        "hyperparameters": hyperparameter_table(results),
        "timings": timing_table(results),
    }
    for table in tables.values():
        if table is not None:
            save_table(table, directory / "tables")
    figures = directory / "figures"
    grids = [
        (_embed(sample_grid(results, dataset, variant, denoise=denoise), figures), denoise)
        for dataset, variant, denoise in grid_keys(results)
    ]
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            run=results.run,
            budget_note=_budget_note(results),
            state=_state(results),
            problems=_problems(results),
            tables=tables,
            overview=[_embed(sample_overview(results, denoise=d), figures) for d in (True, False)],
            # One of the two settings is enough inside the page: they hardly differ to the eye.
            grids=[grid for grid, denoise in grids if denoise],
            distances=[_embed(distance_curves(results, denoise=d), figures) for d in (True, False)],
            ema=[_embed(ema_curves(results, denoise=d), figures) for d in (True, False)],
            loss=_embed(loss_curves(results), figures),
        )
    )
    return write_file(directory / "index.html", page)


def rich(text: object) -> Markup:
    """Text as HTML: escaped first, then technique numbers lowered and feature spaces set apart."""
    escaped = _VARIANT.sub(r"NCSN<sub>\1</sub>", str(escape(str(text))))
    return Markup(_MEASURE.sub(r'<span class="measure">\1</span> ', escaped))


def table_groups(table: Table) -> list[tuple[str, list[tuple[str, list[str]]]]]:
    """Rows by data set, in order: [(data set, [(kind of row, cells without the data set)])].

    The paper's rows on data sets that the run has not got make one group at the end.
    """
    rows = [
        (kind, str(dataset), [str(cell) for cell in cells])
        for kind, (dataset, *cells) in zip(table.kinds, table.display.to_numpy(), strict=True)
    ]
    ours = {dataset for kind, dataset, _ in rows if kind != "paper"}
    groups: dict[str, list[tuple[str, list[str]]]] = {}
    for kind, dataset, cells in rows:
        if ours and dataset not in ours:
            group, cells = QUOTED, [f"{dataset}, {cells[0]}", *cells[1:]]
        else:
            group = dataset
        groups.setdefault(group, []).append((kind, cells))
    return list(groups.items())


def main(argv: Sequence[str] | None = None) -> int:
    """Build the report of a grid's output folder; print its path and the ablation table.

    Returns 0, or 2 after one line on stderr where the folder holds no readable grid.
    """
    parser = argparse.ArgumentParser(
        prog="python -m ablations.report", description="Tables, figures and a page from a grid."
    )
    parser.add_argument("out", type=Path, help="output folder of a grid, finished or running")
    out = parser.parse_args(argv).out
    from ablations.collect import collect  # what builds a report need not know how files lie

    try:
        results = collect(out)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    page = build_report(results, out / "report")
    print(page)
    print()
    print(markdown(ablation_table(results)))
    return 0


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["rich"] = rich
    environment.filters["groups"] = table_groups
    return environment


def _embed(picture: Picture, directory: Path) -> dict[str, Any]:
    png, _ = save_picture(picture, directory)
    data = base64.b64encode(png.read_bytes()).decode("ascii")
    width, height = picture.figure.get_size_inches()
    return {
        "name": picture.name,
        "title": picture.title,
        "caption": picture.caption,
        "alt": picture.alt,
        "source": f"data:image/png;base64,{data}",
        "wide": width > 8,
        "ratio": f"{width:.3f} / {height:.3f}",
        "width_px": round(100 * width),
    }


def _budget_note(results: Results) -> str:
    name = str(results.run["budget"])
    if name not in BUDGETS:
        return NOT_THE_PAPERS
    description = BUDGETS[name].description
    note = f"{description[0].upper()}{description[1:]}."
    return note if name == "paper" else f"{note} {NOT_THE_PAPERS}"


def _state(results: Results) -> dict[str, Any]:
    """What the page says first of how far the grid is."""
    counts = results.cells.drop_duplicates(["dataset", "variant", "seed"])["status"].value_counts()
    order = ("done", "running", "planned", "failed", "diverged")
    return {
        "complete": bool(results.run["complete"]),
        "counts": joined(f"{counts[status]} {status}" for status in order if status in counts),
    }


def _problems(results: Results) -> list[str]:
    cells = results.cells[results.cells["status"].isin(["failed", "diverged"])]
    return [
        f"{cell['dataset']}, {cell['variant']}, seed {cell['seed']}: {cell['status']}"
        + (f" ({cell['message']})" if isinstance(cell["message"], str) else "")
        for cell in cells.to_dict("records")
    ]


if __name__ == "__main__":
    sys.exit(main())
