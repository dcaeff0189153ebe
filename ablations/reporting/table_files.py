"""A table as files: CSV with the raw numbers, Markdown and LaTeX with the readable ones."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import pandas as pd

from ablations.reporting.table import Table
from scorekit.files import write_file

_LATEX = {
    "\\": r"\textbackslash{}",
    **{character: "\\" + character for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    # Behind \\, a row that begins with one of these would be read as the command's argument.
    **{character: f"{{{character}}}" for character in "[]*"},
    "±": r"$\pm$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "·": r"$\cdot$",
    "−": "$-$",
    "≈": r"$\approx$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "∞": r"$\infty$",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
    "→": r"$\rightarrow$",
    "—": "---",
    "–": "--",
    "“": "``",
    "”": "''",
    "‘": "`",
    "’": "'",
    "…": r"\ldots{}",
    "°": r"$^{\circ}$",
    "µ": r"$\mu$",
    "ß": r"\ss{}",
    "ø": r"\o{}",
    "Ø": r"\O{}",
    "æ": r"\ae{}",
    "Æ": r"\AE{}",
    "ł": r"\l{}",
    "Ł": r"\L{}",
    "ı": r"\i{}",
}
# All Greek letters that do not look like Latin ones.
_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau "
    "upsilon phi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega"
)
for _name in _GREEK.split():
    _case = "SMALL" if _name.islower() else "CAPITAL"
    _letter = _name.upper().replace("LAMBDA", "LAMDA")
    _LATEX[unicodedata.lookup(f"GREEK {_case} LETTER {_letter}")] = f"$\\{_name}$"
# Unicode's combining accents, and LaTeX's.
_ACCENTS = {
    "\u0300": "`",
    "\u0301": "'",
    "\u0302": "^",
    "\u0303": "~",
    "\u0304": "=",
    "\u0306": "u",
    "\u0307": ".",
    "\u0308": '"',
    "\u030a": "r",
    "\u030b": "H",
    "\u030c": "v",
    "\u0327": "c",
}
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_MARKDOWN = re.compile(r"([\\`*|<>\[\]$&~]|(?<!\w)_|_(?!\w))")
_LATEX_VARIANT = re.compile(r"NCSN\\_(\d+(?:,\d+)*)")


def save_table(table: Table, directory: Path) -> list[Path]:
    """Write `<name>.csv`, `.md` and `.tex` (booktabs) into `directory`; the three paths."""
    files = {
        "csv": csv_text(table.raw),
        "md": markdown(table),
        "tex": latex(table),
    }
    return [write_file(directory / f"{table.name}.{kind}", files[kind]) for kind in files]


def csv_text(frame: pd.DataFrame) -> str:
    """A frame as CSV, in which a spreadsheet takes no text for a formula.

    Texts that begin with =, +, -, @, a tab or a return stand behind an apostrophe; numbers do not.
    """
    safe = frame.map(lambda v: f"'{v}" if isinstance(v, str) and v.startswith(_FORMULA) else v)
    return safe.to_csv(index=False, lineterminator="\n")


def markdown(table: Table) -> str:
    """The readable table in GitHub's Markdown, title above and caption below, text escaped."""
    rules = ["--:" if column.number else ":--" for column in table.columns]
    rows = [[markdown_text(text) for text in row] for row in table.rows]
    headings = [markdown_text(column.heading) for column in table.columns]
    lines = [" | ".join(cells) for cells in [headings, rules, *rows]]
    body = "\n".join(f"| {line} |" for line in lines)
    return f"## {markdown_text(table.title)}\n\n{body}\n\n{markdown_text(table.caption)}\n"


def markdown_text(value: object) -> str:
    """Text on one line with all that GitHub's Markdown would read as markup escaped."""
    return _MARKDOWN.sub(r"\\\1", " ".join(str(value).split()))


def latex(table: Table) -> str:
    """The readable table as a LaTeX float with booktabs rules and the caption; text escaped."""
    alignment = "".join("r" if column.number else "l" for column in table.columns)
    headings = " & ".join(latex_text(column.heading) for column in table.columns)
    rows = [" & ".join(map(latex_text, row)) + r" \\" for row in table.rows]
    empty = rf"\multicolumn{{{len(table.columns)}}}{{l}}{{no rows yet}} \\"
    lines = [
        r"% needs \usepackage{booktabs} and, for the width, \usepackage{graphicx}",
        r"\begin{table*}[t]",
        r"\centering",
        rf"\caption{{{latex_text(table.title)}. {latex_text(table.caption)}}}",
        rf"\label{{tab:{table.name}}}",
        # Made narrower where it is too wide, never wider.
        r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{{alignment}}}",
        r"\toprule",
        headings + r" \\",
        r"\midrule",
        *_with_rules(rows or [empty], table.columns[0].texts),
        r"\bottomrule",
        r"\end{tabular}}",
        r"\end{table*}",
    ]
    return "\n".join(lines) + "\n"


def _with_rules(rows: list[str], groups: tuple[str, ...]) -> list[str]:
    """Set groups apart by a thin rule, in a table that has several."""
    lines = []
    for index, row in enumerate(rows):
        if 0 < index < len(groups) and groups[index] != groups[index - 1]:
            lines.append(r"\midrule")
        lines.append(row)
    return lines


def latex_text(value: object) -> str:
    """Text for pdfLaTeX: its special characters escaped, technique numbers as subscripts.

    Accents, Greek, subscripts and superscripts become commands, so that no package need know them;
    any other character that LaTeX might lack is given by its code: U+4E2D.
    """
    composed = unicodedata.normalize("NFC", " ".join(str(value).split()))
    return _LATEX_VARIANT.sub(r"NCSN\\textsubscript{\1}", "".join(map(_latex, composed)))


def _latex(character: str) -> str:
    if character in _LATEX:
        return _LATEX[character]
    if character.isascii() and character.isprintable():
        return character
    # "<super> 0032" for ², "0065 0301" for é.
    kind, *codes = unicodedata.decomposition(character).split() or [""]
    if kind in ("<super>", "<sub>"):
        inner = "".join(chr(int(code, 16)) for code in codes).replace("−", "-")
        if inner.isascii():
            return f"$_{{{inner}}}$" if kind == "<sub>" else f"$^{{{inner}}}$"
    if len(codes) == 1 and (accent := _ACCENTS.get(chr(int(codes[0], 16)))):
        base = chr(int(kind, 16))
        if base.isascii():
            return f"\\{accent}{{{base}}}"
    return rf"\texttt{{U+{ord(character):04X}}}"
