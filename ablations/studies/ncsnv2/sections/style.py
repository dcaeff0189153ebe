"""Order, colour and marker of each variant, and the conditions under every caption."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ablations.reporting.pictures import FAINT
from ablations.reporting.table import Column
from ablations.reporting.wording import SUBSCRIPT, for_figure, is_papers, shorten, text_or_empty
from ablations.studies.ncsnv2.results import Results

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
_OTHER_COLOURS = ("#6a4c93", "#8a6d3b", "#2a7f86", "#a33b3b", "#4d6b1f", "#5b5b8c")


def variant_order(results: Results, variants: Iterable[str]) -> list[str]:
    """The rows' names, each once: by variant in the paper's order, others before NCSNv2.

    Rows that a setting sets apart ("NCSNv2, 25×1") follow their variant's own.
    """
    order = list(_VARIANTS)
    bases = dict(zip(results.cells["variant"], results.cells["base"], strict=True))

    def key(variant: str) -> tuple[float, bool, list[tuple[int, str]]]:
        base = bases.get(variant, variant)
        place = float(order.index(base)) if base in _VARIANTS else len(order) - 1.5
        # Numbers in the row's name as numbers: 25×1 comes before 100×1.
        parts = re.findall(r"\d+|\D+", variant)
        return place, base != variant, [(int(p), "") if p.isdigit() else (-1, p) for p in parts]

    return sorted(set(variants), key=key)


def variant_colour(variant: str) -> str:
    """The hex colour of a variant, the same in every figure and every run."""
    if variant in _VARIANTS:
        return _VARIANTS[variant][0]
    return _OTHER_COLOURS[zlib.crc32(variant.encode()) % len(_OTHER_COLOURS)]


def variant_marker(variant: str) -> str:
    """The matplotlib marker of a variant: curves stay apart without colour too."""
    return _VARIANTS[variant][1] if variant in _VARIANTS else "h"


#: A sampler's name in words, its colour where it is not the variant's, and its marker.
_SAMPLERS = {
    "annealed": ("annealed Langevin", "", "D"),
    "consistent": ("consistent", "", "s"),
    "reverse_diffusion": ("reverse diffusion", "#8a6d3b", "v"),
    "predictor_corrector": ("predictor-corrector", "#a33b3b", "^"),
    "ancestral": ("ancestral", "#4d6b1f", "o"),
    "heun": ("Heun", "#6a4c93", "P"),
}


def sampler_style(sampler: str) -> tuple[str, str, str]:
    """A sampler's name in words, its colour (empty: that of the variant) and its marker."""
    other = _OTHER_COLOURS[zlib.crc32(sampler.encode()) % len(_OTHER_COLOURS)]
    return _SAMPLERS.get(sampler, (sampler.replace("_", " "), other, "h"))


def without_ema(variant: str) -> str | None:
    """The variant that lacks only technique 5, e.g. NCSNv2 -> NCSN_1,2,3,4; None if 5 is absent."""
    if variant == "NCSNv2":
        return "NCSN_1,2,3,4"
    match = SUBSCRIPT.fullmatch(variant)
    techniques = match.group(1).split(",") if match else []
    if "5" not in techniques:
        return None
    rest = [technique for technique in techniques if technique != "5"]
    return "NCSN_" + ",".join(rest) if rest else "NCSN"


def apart_columns(results: Results, raw: pd.DataFrame) -> tuple[pd.DataFrame, list[Column]]:
    """`raw`, rows of which have a `dataset` and a `variant`, with the settings that rows differ in.

    And a column to show for each; a dash where a row is of no cell.
    """
    columns = []
    for setting, rows in results.apart.groupby("setting", sort=False):
        if not rows["given"].any() or rows["value"].nunique() < 2:
            continue
        of = dict(
            zip(zip(rows["dataset"], rows["variant"], strict=True), rows["value"], strict=True)
        )
        values = [of.get(key) for key in zip(raw["dataset"], raw["variant"], strict=True)]
        if setting not in raw.columns:
            raw = raw.assign(**{str(setting): values})
        words = str(setting).replace("_", " ")
        columns.append(
            Column(words[0].upper() + words[1:], [text_or_empty(v) or "—" for v in values])
        )
    return raw, columns


def dataset_order(results: Results) -> list[str]:
    """Datasets as the run names them, then any other that has cells, distances or losses."""
    found = list(results.run["datasets"])
    for frame in (results.cells, results.distances, results.references, results.losses):
        found += list(frame["dataset"].dropna())
    return list(dict.fromkeys(found))


def conditions(results: Results) -> str:
    """The sentence that ends every caption: budget, grid, seeds, and how much is done."""
    run = results.run
    own = "the paper's" if is_papers(run) else "not the paper's"
    done = f"{run['n_done']} of {run['n_cells']} cells done"
    grid = f"Budget “{run['budget']}” ({own}); grid “{run['grid']}”"
    return f"{grid}; {seeds_text(results)}; {done}."


def new_panels(results: Results, names: Sequence[str], what: str) -> tuple[Figure, list[Axes]]:
    """A figure of one panel per name, two to a row, with the budget in its corner."""
    n_columns = min(2, max(1, len(names)))
    n_rows = max(1, -(-len(names) // n_columns))
    width = 7.2 if n_columns == 1 else 10.0
    figure = Figure(figsize=(width, 3.5 * n_rows + 0.6), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(wspace=0.04, hspace=0.06)  # type: ignore[union-attr,call-arg]
    panels = list(figure.subplots(n_rows, n_columns, squeeze=False).flat)
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    if not names:
        panels[0].text(0.5, 0.5, f"No {what} to show yet.", ha="center", color=FAINT)
    # The note travels with the picture when it is cut out of the report.
    note = run_note(results)
    figure.suptitle(for_figure(note), x=0.995, ha="right", fontsize=8, color=FAINT)
    return figure, panels


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
