"""What every figure of the report shares: its caption, its files, its panels and its dress."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from ablations.reporting.wording import for_figure, number
from scorekit.files import write_file

INK, FAINT, GRID = "#24292f", "#6b7280", "#e6e8eb"
DPI = 160


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure with the words that go with it; `alt` says in one line what it shows."""

    name: str
    title: str
    caption: str
    alt: str
    figure: Figure


@contextmanager
def own_style() -> Iterator[None]:
    """Draw meanwhile with matplotlib's defaults, whatever the user's matplotlibrc says.

    A fixed salt (and no date): the same results give the same files.
    """
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams["svg.hashsalt"] = "ablations"
        yield


def save_picture(picture: Picture, directory: Path) -> tuple[Path, Path]:
    """Write `<name>.png` and `<name>.svg` into `directory`; the two paths."""
    paths = []
    with own_style():
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
            buffer = io.BytesIO()
            picture.figure.savefig(buffer, format=kind, dpi=DPI, metadata=metadata)
            # The first drawing has laid the figure out; a second layout would only take time.
            picture.figure.set_layout_engine("none")
            paths.append(write_file(directory / f"{picture.name}.{kind}", buffer.getvalue()))
    return paths[0], paths[1]


def spans_decades(values: pd.Series) -> bool:
    """Whether the bulk of the values spans so much (a factor of 8) that a log scale reads better.

    Decided once per figure, so that its panels can be compared; single outliers do not decide.
    """
    positive = values.astype(float)
    positive = positive[np.isfinite(positive) & (positive > 0)]
    if len(positive) < 2 or len(positive) < len(values):
        return False
    low, high = np.quantile(positive, [0.02, 0.98])
    return bool(high > 8 * low)


def dress(axes: Axes, quantity: str, *, logarithmic: bool, empty: bool) -> None:
    """Give axes their labels, grid and scale; say so where there is nothing to draw."""
    if logarithmic and not empty:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    scale = ", log scale" if logarithmic else ""
    dress_frame(axes, "training iteration", for_figure(quantity) + scale)
    if empty:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "no values yet", transform=axes.transAxes, ha="center", color=FAINT)


def dress_frame(axes: Axes, across: str, up: str) -> None:
    """Give axes their labels, grid, ticks and spines, whatever their scales are."""
    axes.set_xlabel(across, color=FAINT, fontsize=9.5)
    axes.set_ylabel(up, color=FAINT, fontsize=9.5)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=FAINT, labelsize=9, length=0, which="both")
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color("#c9ced6")


def shared_legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """One legend below the panels, with every label once."""
    handles: dict[str, Artist] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if handles:
        figure.legend(
            list(handles.values()),
            list(handles),
            loc="outside lower center",
            ncols=min(4, len(handles)),
            frameon=False,
            fontsize=9.5,
            labelcolor=INK,
        )
