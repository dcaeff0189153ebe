"""The report's page: sections of tables and pictures as one HTML file that stands alone."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from ablations.reporting.pictures import DPI, Picture, save_picture
from ablations.reporting.table import Column, Table
from ablations.reporting.table_files import save_table
from scorekit.files import write_file

QUOTED = "Quoted from the paper"
_VARIANT = re.compile(r"NCSN_(\d+(?:,\d+)*)\b")
_MEASURE = re.compile(r"^(FD\[[^\]]*\]|FID|(?:KID|IS)(?:\[[^\]]*\])?) (?=[\d.-])")
_NUMBER = re.compile(r"\s*(-?(?:\d[\d,]*(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?)")
# A number without a unit: "3 min" and "40 s" do not compare as 3 and 40.
_BARE = re.compile(_NUMBER.pattern + r"(?:\s*[±(].*)?|\D*")
# Longer texts than this are wrapped, in a column that holds no numbers.
_LONG = 24


@dataclass(frozen=True, kw_only=True)
class Collapsed:
    """Tables and pictures behind a line that opens them; on paper they are open."""

    summary: str
    blocks: Iterable[Table | Picture]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page: its anchor, its heading, and what stands in it, from top to bottom.

    A None among the blocks is left out, and so is a section that nothing is left of. Blocks may
    come from a generator, so that one figure at a time is in memory. `only_files` are written
    beside the page and not shown in it.
    """

    id: str
    title: str
    blocks: Iterable[Table | Picture | Collapsed | None]
    only_files: Iterable[Table | Picture] = ()


@dataclass(frozen=True, kw_only=True)
class Words:
    """What the page says around its sections; `facts` are terms and what is said of each.

    `running` is empty where everything is done, and so is `problems`, whose heading is
    `problems_title`.
    """

    title: str
    eyebrow: str
    heading: str
    lead: str
    finding: str = ""  # what the results say, in a sentence
    budget: str
    budget_note: str
    running: str = ""
    running_note: str = ""
    problems_title: str = ""
    problems: Sequence[str] = ()
    warning: str = ""
    facts: Sequence[tuple[str, str]]
    footer: str


def write_page(directory: Path, sections: Iterable[Section], words: Words) -> Path:
    """Write tables/, figures/ and, last, index.html below `directory`; the path of the page.

    The page needs no other file: its images are inside. Raises OSError when the directory cannot be
    written to.
    """
    environment = _environment()
    script = environment.get_template("report.js.j2").render()
    shown = [_section(section, directory) for section in sections]
    page = environment.get_template("report.html.j2").render(
        words=words,
        sections=[section for section in shown if section["blocks"]],
        script=Markup(script),
        # Of all scripts that a text could smuggle in, a browser runs this one only.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
    )
    return write_file(directory / "index.html", page)


def rich(text: object) -> Markup:
    """Text as HTML: escaped first, then technique numbers lowered and feature spaces set apart."""
    escaped = _VARIANT.sub(r"NCSN<sub>\1</sub>", str(escape(str(text))))
    return Markup(_MEASURE.sub(r'<span class="measure">\1</span> ', escaped))


def table_groups(table: Table) -> list[tuple[str, list[tuple[str, list[tuple[str, str | None]]]]]]:
    """Rows by data set, in order: [(data set, [(kind of row, cells without the data set)])].

    A cell is its text and what it sorts by, None for the text. The paper's rows on data sets that
    the run has not got make one group at the end.
    """
    values = zip(*(_sort_values(table, column) for column in table.columns[1:]), strict=True)
    rows = [
        (kind, dataset, list(zip(cells, value, strict=True)))
        for kind, (dataset, *cells), value in zip(table.kinds, table.rows, values, strict=True)
    ]
    ours = {dataset for kind, dataset, _ in rows if kind != "paper"}
    groups: dict[str, list[tuple[str, list[tuple[str, str | None]]]]] = {}
    for kind, dataset, cells in rows:
        if ours and dataset not in ours:
            (first, value), *rest = cells
            group, cells = QUOTED, [(f"{dataset}, {first}", value), *rest]
        else:
            group = dataset
        groups.setdefault(group, []).append((kind, cells))
    return list(groups.items())


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["rich"] = rich
    return environment


def _section(section: Section, directory: Path) -> dict[str, Any]:
    """A section as the template takes it, its files written."""
    blocks = [_block(block, directory) for block in section.blocks if block is not None]
    for block in section.only_files:
        _save(block, directory)
    return {"id": section.id, "title": section.title, "blocks": blocks}


def _block(block: Table | Picture | Collapsed, directory: Path) -> dict[str, Any]:
    if isinstance(block, Collapsed):
        blocks = [_block(inner, directory) for inner in block.blocks]
        return {"kind": "collapsed", "it": block, "blocks": blocks}
    paths = _save(block, directory)
    if isinstance(block, Picture):
        return {"kind": "picture", "it": block} | _embedded(block, *paths)
    columns = [_column(column) for column in block.columns[1:]]
    return {"kind": "table", "it": block, "columns": columns, "groups": table_groups(block)}


def _save(block: Table | Picture, directory: Path) -> Sequence[Path]:
    if isinstance(block, Picture):
        return save_picture(block, directory / "figures")
    return save_table(block, directory / "tables")


def _embedded(picture: Picture, png: Path, svg: Path) -> dict[str, Any]:
    """What an <img> needs: photographs as pixels, curves as lines, which are smaller and sharp."""
    photographs = any(axes.images for axes in picture.figure.axes)
    path, mime = (png, "image/png") if photographs else (svg, "image/svg+xml")
    width, height = picture.figure.get_size_inches()
    return {
        "source": f"data:{mime};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}",
        "wide": width > 8,
        "width": round(DPI * width),
        "height": round(DPI * height),
        "width_px": round(100 * width),
    }


def _column(column: Column) -> dict[str, Any]:
    """A column's heading and how it is set: numbers to the right, long texts on several lines."""
    plain = not column.number and column.by is None
    return {
        "text": column.heading,
        "number": column.number,
        "words": plain and any(len(text) > _LONG for text in column.texts),
    }


def _sort_values(table: Table, column: Column) -> list[str | None]:
    """What the cells of a column sort by: the raw numbers that it names, else those shown.

    "" stands for a number that is not there. None, for a whole column, says that it holds words.
    """
    values: list[str] = []
    if column.by is not None:
        values = [_number(value) for value in table.raw[column.by]]
    elif column.number:
        texts = [_MEASURE.sub("", text) for text in column.texts]
        values = [_number(text) for text in texts] if all(map(_BARE.fullmatch, texts)) else []
    return [*values] if any(values) else [None] * len(column.texts)


def _number(value: object) -> str:
    """The number that a value is or begins with, as a script reads it; "" where there is none."""
    match = _NUMBER.match(str(value))
    return "" if match is None else match.group(1).replace(",", "")
