"""A table as files: CSV with the raw numbers, Markdown and LaTeX with the readable ones."""

from __future__ import annotations

import re
from pathlib import Path

from ablations.presentation import write_file
from ablations.tables import Table

_LATEX = {
    "\\": r"\textbackslash{}",
    **{character: "\\" + character for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
    "₁": r"$_1$",
    "\N{GREEK SMALL LETTER SIGMA}": r"$\sigma$",
    "ε": r"$\epsilon$",
    "—": "---",
    "“": "``",
    "”": "''",
}
_MARKDOWN = re.compile(r"([\\`*|<>\[\]]|(?<!\w)_|_(?!\w))")
_LATEX_VARIANT = re.compile(r"NCSN\\_(\d+(?:,\d+)*)")


def save_table(table: Table, directory: Path) -> list[Path]:
    """Write `<name>.csv`, `.md` and `.tex` (booktabs) into `directory`; the three paths."""
    files = {
        "csv": table.raw.to_csv(index=False, lineterminator="\n"),
        "md": markdown(table),
        "tex": latex(table),
    }
    return [write_file(directory / f"{table.name}.{kind}", files[kind]) for kind in files]


def markdown(table: Table) -> str:
    """The readable table in GitHub's Markdown, title above and caption below, text escaped."""
    columns = [str(column) for column in table.display.columns]
    rules = ["--:" if column in table.numeric else ":--" for column in columns]
    rows = [[_markdown_cell(value) for value in row] for row in table.display.to_numpy()]
    lines = [" | ".join(cells) for cells in [columns, rules, *rows]]
    body = "\n".join(f"| {line} |" for line in lines)
    return f"## {table.title}\n\n{body}\n\n{_markdown_cell(table.caption)}\n"


def _markdown_cell(value: object) -> str:
    return _MARKDOWN.sub(r"\\\1", " ".join(str(value).split()))


def latex(table: Table) -> str:
    """The readable table as a LaTeX float with booktabs rules and the caption; text escaped."""
    columns = [str(column) for column in table.display.columns]
    alignment = "".join("r" if column in table.numeric else "l" for column in columns)
    rows = [" & ".join(map(latex_text, row)) + r" \\" for row in table.display.to_numpy()]
    empty = rf"\multicolumn{{{len(columns)}}}{{l}}{{no rows yet}} \\"
    lines = [
        r"% needs \usepackage{booktabs} and, for the width, \usepackage{graphicx}",
        r"\begin{table*}[t]",
        r"\centering",
        rf"\caption{{{latex_text(table.title)}. {latex_text(table.caption)}}}",
        rf"\label{{tab:{table.name}}}",
        r"\resizebox{\textwidth}{!}{%",
        rf"\begin{{tabular}}{{{alignment}}}",
        r"\toprule",
        " & ".join(map(latex_text, columns)) + r" \\",
        r"\midrule",
        *_with_rules(rows or [empty], list(table.display.get("Dataset", []))),
        r"\bottomrule",
        r"\end{tabular}}",
        r"\end{table*}",
    ]
    return "\n".join(lines) + "\n"


def _with_rules(rows: list[str], groups: list[str]) -> list[str]:
    """Set data sets apart by a thin rule, in a table that has several."""
    lines = []
    for index, row in enumerate(rows):
        if 0 < index < len(groups) and groups[index] != groups[index - 1]:
            lines.append(r"\midrule")
        lines.append(row)
    return lines


def latex_text(value: object) -> str:
    """Text with LaTeX's special characters escaped and technique numbers as subscripts."""
    escaped = "".join(_LATEX.get(character, character) for character in str(value))
    return _LATEX_VARIANT.sub(r"NCSN\\textsubscript{\1}", " ".join(escaped.split()))
