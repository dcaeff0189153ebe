"""How variants, numbers and conditions are written, ordered and coloured, everywhere alike."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from scorekit.techniques.step_size import CONSISTENT_FACTOR
from scorekit.techniques.table_4 import TABLE_4

_PAPERS_DATA = {row.dataset for row in TABLE_4}
_FOLDERS = re.compile(r"(?<![\w.…/:])/(?:[^\s/:'\",;]+/)+(?=[^\s/])")
SUBSCRIPT = re.compile(r"NCSN_(\d+(?:,\d+)*)\b")


def for_figure(text: str) -> str:
    """Text for matplotlib: technique numbers as subscripts, and no other mathematics."""
    plain = str(text).replace("$", r"\$")
    # {,} is a comma without mathematics' space after it.
    return SUBSCRIPT.sub(lambda match: f"NCSN$_{{{match.group(1).replace(',', '{,}')}}}$", plain)


def text_or_empty(value: object) -> str:
    """The value as text; nothing for None, NaN and NA."""
    return "" if value is None or pd.isna(value) else str(value)


def number(value: object, digits: int = 3) -> str:
    """A count or real number for reading: 50,000; 12.34; 6.2e-6; a dash when it is not there."""
    if value is None or pd.isna(value):
        return "—"
    real = float(value)  # type: ignore[arg-type]
    if real == int(real) and abs(real) < 1e15:
        return f"{int(real):,}"
    if abs(real) < 1e-3:
        mantissa, exponent = f"{real:.{digits - 1}e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{real:,.{digits}g}" if abs(real) < 100 else f"{real:,.1f}"


def distance_text(mean: float, std: float | None = None) -> str:
    """A distance, with its standard deviation over seeds to the same decimals if it has one."""
    decimals = 1 if abs(mean) >= 100 else 2 if abs(mean) >= 1 else 4
    spread = "" if std is None or pd.isna(std) else f" ± {std:,.{decimals}f}"
    return f"{mean:,.{decimals}f}{spread}"


def duration(seconds: object) -> str:
    """Seconds for reading: 0.8 s, 42.5 s, 3 min 20 s, 22 h; a dash when not there."""
    if seconds is None or pd.isna(seconds):
        return "—"
    value = float(seconds)  # type: ignore[arg-type]
    if value < 10:
        return f"{value:.2g} s"
    if value < 120 and value % 60:
        return f"{value:.3g} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min" + (f" {rest} s" if rest else "")
    hours, rest = divmod(round(value / 60), 60)
    return f"{hours} h" + (f" {rest} min" if rest else "")


def memory(n_bytes: object) -> str:
    """Bytes for reading, in KiB, MiB or GiB; a dash when not there."""
    if n_bytes is None or pd.isna(n_bytes):
        return "—"
    mebibytes = float(n_bytes) / 2**20  # type: ignore[arg-type]
    if mebibytes >= 1024:
        return f"{mebibytes / 1024:.1f} GiB"
    return f"{mebibytes:.0f} MiB" if mebibytes >= 1 else f"{1024 * mebibytes:.0f} KiB"


def shorten(text: str, length: int) -> str:
    """The text, or its beginning and an ellipsis where it is longer than `length`."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def yes_no(value: object) -> str:
    """True and False for reading; a dash when not there."""
    return "—" if pd.isna(value) else "yes" if value else "no"


def joined(values: Iterable[object], separator: str = ", ") -> str:
    """Distinct values for reading, in order of first sight; numbers as `number` writes them."""
    parts = (value if isinstance(value, str) else number(value) for value in values)
    return separator.join(dict.fromkeys(part for part in parts if part))


def is_papers(run: Mapping[str, Any]) -> bool:
    """Whether data and settings are the paper's: those of Table 4, and nothing changed."""
    names = {str(name).partition(":")[0] for name in run["datasets"]}
    settings = {"paper", *(f"paper, changed: preset={name}" for name in names)}
    return len(names) > 0 and names <= _PAPERS_DATA and run["budget"] in settings


def without_folders(text: str, known: Iterable[Path] = ()) -> str:
    """Text in which absolute paths lack their folders: a page is passed on, its machine is not.

    `known` folders are found whatever is in their names, others up to the next space.
    """
    for folder in sorted((str(path) for path in known), key=len, reverse=True):
        if folder != "/":
            text = text.replace(f"{folder}/", "…/").replace(folder, "…")
    return _FOLDERS.sub("…/", text)


_STEP_RULES = {
    "Table 4": "as published",
    "Technique 4": "Eq. (4) as near to 1 as can be",
    "steady state": "the variance that the whole ladder leads to is as near to the right one as "
    "can be (not the paper's; for T = 1, where Technique 4's ε leads to twice the right one)",
    "consistent": f"{CONSISTENT_FACTOR} (1 − 1/γ) σ_L², γ the ratio of noise scales one step apart "
    "(not the paper's; the factor is read off published curves of other networks)",
    "snr": "2 (r |z| / |s|)² at each step and of each sample, of noise z and score s (not the "
    "paper's; Song et al. 2021)",
    "none": "the sampler has no ε",
    "given": "set by the user",
}


def step_rules(rules: Iterable[object]) -> str:
    """The sentence, with a space behind it, that says what each rule of ε in a table is."""
    seen = {text_or_empty(rule) for rule in rules}
    said = [f"{rule}: {what}" for rule, what in _STEP_RULES.items() if rule in seen]
    return f"Rule of ε — {'; '.join(said)}. " if said else ""


def file_slug(text: str) -> str:
    """A file name made of safe characters only, still different for different texts."""
    safe = re.sub(r"[^a-z0-9-]+", "-", text.lower()).strip("-")
    if safe == text or text in ("NCSN", "NCSNv2") or SUBSCRIPT.fullmatch(text):
        return safe
    return f"{safe[:60]}-{zlib.crc32(text.encode()):08x}".strip("-")
