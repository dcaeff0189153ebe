"""Grids of images placed pixel for pixel, for pictures that are made of nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ablations.reporting.pictures import DPI, FAINT, INK
from ablations.reporting.wording import for_figure, shorten

GAP_PX = 4
_MARGIN_PX, _NOTE_PX = 20, 34
_HEADING_PX, _LINE_PX = 34, 22
_PX_PER_LETTER = 13  # of a heading


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A grid of images as RGB pixels, uint8 (H, W, 3), below its heading and a smaller note.

    Without an image it shows the words that say why, at `size_px` (width, height).
    """

    heading: str
    note: str = ""
    image: np.ndarray | None = None
    absent: str = ""
    size_px: tuple[int, int] = (300, 120)

    @property
    def width_px(self) -> int:
        """Width on the page."""
        return self.size_px[0] if self.image is None else self.image.shape[1]

    @property
    def height_px(self) -> int:
        """Height on the page, without the words above."""
        return self.size_px[1] if self.image is None else self.image.shape[0]

    @property
    def words_px(self) -> int:
        """Height of the words above."""
        return (_HEADING_PX if self.heading else 0) + (_LINE_PX if self.note else 0)


def enlargement(size: int, wanted_px: int) -> int:
    """The whole factor (at least 1) that brings `size` pixels closest to `wanted_px`."""
    return max(1, round(wanted_px / size))


def tile(images: np.ndarray, columns: int, *, factor: int = 1, gap: int = GAP_PX) -> np.ndarray:
    """Lay images, uint8 (N, 1 or 3, H, W), out row by row: uint8 RGB, each pixel `factor` wide."""
    count, channels, height, width = images.shape
    rgb = np.repeat(images, 3, axis=1) if channels == 1 else images[:, :3]
    large = rgb.transpose(0, 2, 3, 1).repeat(factor, axis=1).repeat(factor, axis=2)
    rows = -(-count // columns)
    step_y, step_x = height * factor + gap, width * factor + gap
    grid = np.full((rows * step_y - gap, columns * step_x - gap, 3), 255, np.uint8)
    for index, image in enumerate(large):
        y, x = divmod(index, columns)
        grid[y * step_y :, x * step_x :][: height * factor, : width * factor] = image
    return grid


def draw_panels(
    rows: Sequence[Sequence[Panel]], note: str, *, what: str = "images", aligned: bool = False
) -> Figure:
    """Place every grid so that one of its pixels is one pixel of the PNG; `note` in the corner.

    With `aligned`, all panels take the width of the widest, so that columns stand below another.
    """
    figure, _ = place_panels(rows, note, what=what, aligned=aligned)
    return figure


def place_panels(
    rows: Sequence[Sequence[Panel]], note: str, *, what: str = "images", aligned: bool = False
) -> tuple[Figure, list[list[Axes]]]:
    """Return the figure of `draw_panels` and the axes of its panels, in units of their pixels."""
    widest = max((p.width_px for row in rows for p in row), default=0)
    widths = [sum((widest if aligned else p.width_px) + _MARGIN_PX for p in row) for row in rows]
    width = max([*widths, 420]) + _MARGIN_PX
    heights = [max(p.height_px + p.words_px for p in row) + _MARGIN_PX for row in rows]
    height = sum(heights) + _NOTE_PX + (0 if rows else 60)
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    if not rows:
        figure.text(0.5, 0.3, f"No {what} to show yet.", ha="center", color=FAINT, fontsize=8)
    placed, top = [], height - _NOTE_PX
    for row, row_height in zip(rows, heights, strict=True):
        words, left, axes = max(p.words_px for p in row), _MARGIN_PX, []
        for panel in row:
            axes.append(_place(figure, panel, left, top, words, (width, height)))
            left += (widest if aligned else panel.width_px) + _MARGIN_PX
        placed.append(axes)
        top -= row_height
    x, y = 1 - _MARGIN_PX / width, 1 - 0.6 * _NOTE_PX / height
    figure.text(x, y, for_figure(note), ha="right", va="center", fontsize=7, color=FAINT)
    return figure, placed


def _place(
    figure: Figure, panel: Panel, left: int, top: int, words_px: int, page: tuple[int, int]
) -> Axes:
    width, height = page
    x = left / width
    bottom = top - words_px - panel.height_px
    box = (x, bottom / height, panel.width_px / width, panel.height_px / height)
    axes = figure.add_axes(box)
    axes.set_axis_off()
    if panel.heading:
        heading = shorten(panel.heading, max(24, panel.width_px // _PX_PER_LETTER))
        y = (top - _HEADING_PX + 10) / height
        figure.text(x, y, for_figure(heading), fontsize=8.5, color=INK)
    if panel.note:
        y = (top - words_px + 8) / height
        figure.text(x, y, for_figure(panel.note), fontsize=6.5, color=FAINT)
    axes.set(xlim=(0, panel.width_px), ylim=(panel.height_px, 0))
    if panel.image is None:
        axes.axhspan(0, panel.height_px, color="#f4f4f4")
        middle = (panel.width_px / 2, panel.height_px / 2)
        words = for_figure(panel.absent)
        axes.text(*middle, words, ha="center", va="center", fontsize=7.5, color=FAINT, wrap=True)
    else:
        extent = (0, panel.width_px, panel.height_px, 0)
        axes.imshow(panel.image, interpolation="antialiased", aspect="auto", extent=extent)
    return axes
