"""How variants, numbers and conditions are written, ordered and coloured, everywhere alike."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import pandas as pd

from ablations.results import Results
from scorekit.files import atomic_write
from scorekit.presets import TABLE_4
from scorekit.techniques import CONSISTENT_FACTOR

# The path of the paper's Section 6, with the other subsets of its three groups beside it.
_VARIANTS = {
    "NCSN": ("#7d838c", "o"),
    "NCSN_5": ("#e08e0b", "s"),
    "NCSN_3": ("#b65f94", "v"),
    "NCSN_3,5": ("#7a1f4f", "<"),
    "NCSN_1,2,4": ("#4ba3d9", "P"),
    "NCSN_1,2,4,5": ("#12906b", "^"),
    "NCSN_1,2,3,4": ("#c8501e", "X"),
    "NCSNv2": ("#23449b", "D"),
}
_PAPERS_DATA = {row.dataset for row in TABLE_4}
_OTHER_COLOURS = ("#6a4c93", "#8a6d3b", "#2a7f86", "#a33b3b", "#4d6b1f", "#5b5b8c")
_FOLDERS = re.compile(r"(?<![\w.…/:])/(?:[^\s/:'\",;]+/)+(?=[^\s/])")
_SUBSCRIPT = re.compile(r"NCSN_(\d+(?:,\d+)*)\b")


def variant_order(variants: Iterable[str]) -> list[str]:
    """The variants, each once, in the paper's order, with ones it does not name before NCSNv2.

    Rows that differ in their sampling ("NCSNv2, 25×1") follow the variant's own.
    """
    order = list(_VARIANTS)

    def key(variant: str) -> tuple[float, bool, list[tuple[int, str]]]:
        base = base_variant(variant)
        place = float(order.index(base)) if base in _VARIANTS else len(order) - 1.5
        # Numbers in the row's name as numbers: 25×1 comes before 100×1.
        parts = re.findall(r"\d+|\D+", variant)
        return place, base != variant, [(int(p), "") if p.isdigit() else (-1, p) for p in parts]

    return sorted(set(variants), key=key)


def base_variant(label: str) -> str:
    """The variant of a row that is sampled or trained in its own way: NCSNv2 of "NCSNv2, 25×1"."""
    return label.partition(", ")[0]


def variant_colour(variant: str) -> str:
    """The hex colour of a variant, the same in every figure and every run."""
    if variant in _VARIANTS:
        return _VARIANTS[variant][0]
    return _OTHER_COLOURS[zlib.crc32(variant.encode()) % len(_OTHER_COLOURS)]


def variant_marker(variant: str) -> str:
    """The matplotlib marker of a variant: curves stay apart without colour too."""
    return _VARIANTS[variant][1] if variant in _VARIANTS else "h"


def without_ema(variant: str) -> str | None:
    """The variant that lacks only technique 5, e.g. NCSNv2 -> NCSN_1,2,3,4; None if 5 is absent."""
    if variant == "NCSNv2":
        return "NCSN_1,2,3,4"
    match = _SUBSCRIPT.fullmatch(variant)
    techniques = match.group(1).split(",") if match else []
    if "5" not in techniques:
        return None
    rest = [technique for technique in techniques if technique != "5"]
    return "NCSN_" + ",".join(rest) if rest else "NCSN"


def for_figure(text: str) -> str:
    """Text for matplotlib: technique numbers as subscripts, and no other mathematics."""
    plain = str(text).replace("$", r"\$")
    # {,} is a comma without mathematics' space after it.
    return _SUBSCRIPT.sub(lambda match: f"NCSN$_{{{match.group(1).replace(',', '{,}')}}}$", plain)


def dataset_order(results: Results) -> list[str]:
    """Datasets as the run names them, then any other that has cells, distances or losses."""
    found = list(results.run["datasets"])
    for frame in (results.cells, results.distances, results.references, results.losses):
        found += list(frame["dataset"].dropna())
    return list(dict.fromkeys(found))


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


def conditions(results: Results) -> str:
    """The sentence that ends every caption: budget, grid, seeds, and how much is done."""
    run = results.run
    own = "the paper's" if is_papers(run) else "not the paper's"
    done = f"{run['n_done']} of {run['n_cells']} cells done"
    grid = f"Budget “{run['budget']}” ({own}); grid “{run['grid']}”"
    return f"{grid}; {seeds_text(results)}; {done}."


def is_papers(run: Mapping[str, Any]) -> bool:
    """Whether data and settings are the paper's: those of Table 4, and nothing changed."""
    names = {str(name).partition(":")[0] for name in run["datasets"]}
    settings = {"paper", *(f"paper, changed: preset={name}" for name in names)}
    return len(names) > 0 and names <= _PAPERS_DATA and run["budget"] in settings


def seeds_text(results: Results) -> str:
    """How many seeds the rows have: "3 seeds", or "seeds per row: 1 to 3" where they differ."""
    counts = results.cells.groupby(["dataset", "variant"])["seed"].nunique()
    if counts.empty:
        return "0 seeds"
    few, many = int(counts.min()), int(counts.max())
    if few < many:
        return f"seeds per row: {few} to {many}"
    return f"{few} seed" + ("s" if few != 1 else "")


def run_note(results: Results) -> str:
    """What travels with a picture that is cut out of its report: budget and grid."""
    budget = shorten(str(results.run["budget"]), 60)
    return f"budget “{budget}”, grid “{results.run['grid']}”"


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
    if safe == text or text in ("NCSN", "NCSNv2") or _SUBSCRIPT.fullmatch(text):
        return safe
    return f"{safe[:60]}-{zlib.crc32(text.encode()):08x}".strip("-")


def write_file(path: Path, data: bytes | str) -> Path:
    """Write a file whole or not at all, making its directory; text as UTF-8. Returns `path`."""
    content = data.encode("utf-8") if isinstance(data, str) else data
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, lambda file: _write(file, content))
    return path


def _write(file: BinaryIO, content: bytes) -> None:
    file.write(content)
