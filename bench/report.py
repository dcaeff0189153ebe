"""Benchmark results as a table and a plot.

    python -m bench.report [RESULTS.json ...] [--out FOLDER]

Without files, all those in bench/results. Writes report.md and, of measurements, ratios.png and
.svg, of comparisons of precisions (`python -m bench.fidelity`), fidelity.png and .svg.
"""

import argparse
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from tabulate import tabulate

from ablations.reporting.pictures import DPI, FAINT, GRID, INK
from ablations.reporting.wording import number
from bench.comparisons import REFERENCE, Fidelity, fidelity_table, load_fidelity
from bench.machine import Peaks
from bench.measurements import RESULTS, Measurement, Session, load_session
from scorekit.files import write_file

_COLOURS = {
    "kernel": "#23449b",
    "data": "#12906b",
    "network": "#c8501e",
    "training": "#e08e0b",
    "sampler": "#b65f94",
}
_WAY_COLOURS = ("#23449b", "#c8501e", "#12906b", "#e08e0b", "#b65f94", "#4ba3d9")
_HEADERS = (
    *("case", "candidate", "reference", "ratio", "95 % interval", "first call", "images/s"),
    *("bytes", "FLOPs", "GB/s", "GFLOP/s", "share of roofline"),
)


def table_text(session: Session, style: str = "simple") -> str:
    """Return a session's table in one of tabulate's styles."""
    rows = [_row(name, measured, session.peaks) for name, measured in session.cases.items()]
    align = ("left", *("right",) * (len(_HEADERS) - 1))
    return tabulate(rows, _HEADERS, tablefmt=style, colalign=align, disable_numparse=True)


def roofline_share(measured: Measurement, peaks: Peaks) -> float | None:
    """Return the roofline's time over the candidate's: 1 is the machine's measured peak."""
    bound = peaks.bound_s(measured.bytes_moved, measured.flops, measured.precision)
    return None if bound is None else bound / measured.timing.candidate_s


def seconds(value: float | None) -> str:
    """Return a time for reading: 12.3 µs, 4.56 ms, 1.23 s; a dash when not there."""
    if value is None:
        return "—"
    for unit, scale in (("µs", 1e-6), ("ms", 1e-3)):
        if value < 999.5 * scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value:.3g} s"


def _row(name: str, measured: Measurement, peaks: Peaks) -> list[str]:
    timing = measured.timing
    interval = "—"
    if timing.ratio_low is not None and timing.ratio_high is not None:
        interval = f"{timing.ratio_low:.3g} to {timing.ratio_high:.3g}"
    share = roofline_share(measured, peaks)
    return [
        name,
        seconds(timing.candidate_s),
        seconds(timing.reference_s),
        number(timing.ratio),
        interval,
        seconds(timing.first_candidate_s) + (" (cold)" if timing.cold else ""),
        _rate(measured.images, timing.candidate_s, 1.0),
        number(measured.bytes_moved),
        "—" if measured.flops is None else f"{measured.flops:.3g}",
        _rate(measured.bytes_moved, timing.candidate_s, 1e9),
        _rate(measured.flops, timing.candidate_s, 1e9),
        "—" if share is None else f"{100 * share:.0f} %",
    ]


def _rate(amount: float | None, time_s: float, unit: float) -> str:
    return "—" if amount is None else number(float(f"{amount / time_s / unit:.3g}"))


def render(sessions: Sequence[Session], folder: Path, fidelities: Sequence[Fidelity] = ()) -> Path:
    """Write report.md and the figures of what there is into ``folder``; return the report's path.

    ``sessions`` go to ratios.png and .svg, ``fidelities`` to fidelity.png and .svg.
    """
    parts = ["# Benchmarks"]
    if sessions:
        parts += [_EXPLANATION, "![ratios and shares of the roofline](ratios.svg)"]
        _save(plot(sessions), folder, "ratios")
    for session in sessions:
        parts += [f"## {session.device}", _conditions(session), table_text(session, "pipe")]
    if fidelities:
        parts += ["# Precisions and compilation", _FIDELITY]
        parts += ["![training losses and score errors](fidelity.svg)"]
        _save(plot_fidelity(fidelities), folder, "fidelity")
    for fidelity in fidelities:
        facts = f"{_facts(fidelity.conditions)}.\n\n{_fidelity_settings(fidelity)}"
        parts += [f"## {fidelity.device}", facts, fidelity_table(fidelity, "pipe")]
    return write_file(folder / "report.md", "\n\n".join(parts) + "\n")


def _save(figure: Figure, folder: Path, name: str) -> None:
    # A fixed salt and no date: the same results give the same files.
    with matplotlib.rc_context({"svg.hashsalt": "bench"}):
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=DPI, metadata=metadata)
            write_file(folder / f"{name}.{kind}", buffer.getvalue())


_EXPLANATION = """\
Candidate and reference are timed by turns in one process, the order flipped each round. *Ratio* is
the median over rounds of the candidate's time / the reference's: below 1 the candidate is faster.
*First call* includes compilation and warm-up, which no other number does; *(cold)* where the
compiler's cache held nothing. *Bytes* and *FLOPs* are what the job needs at least; *share of
roofline* is the time these take at the machine's measured peaks (a copy of as many bytes, a matrix
product) over the candidate's."""


_FIDELITY = """\
A small NCSNv2 network is trained on the digits and sampled from in each way, from the same seeds as
in float32 in eager mode (*fp32*). *Difference* is between results of the same seed, *spread* what
another seed changes in fp32; *ratio* is the one over the other. *Score*: relative L2 distance, the
spread between networks of different seeds; *value* and *in fp32* are relative errors against
float64. *Training loss*: mean of the last quarter. *Sample RMS*: per image of the same weights and
noise, pixels in [0, 1], the spread between images of different noise. *FD*: Fréchet distance to the
training images, of samples of the same weights or, *after training*, of networks trained in each
way and sampled in fp32. Spreads of losses and FDs are standard deviations."""


def _fidelity_settings(fidelity: Fidelity) -> str:
    settings = fidelity.settings
    return (
        f"{number(settings.iterations)} iterations at width {settings.width}, "
        f"{settings.seeds} seeds, {number(settings.samples)} samples a set."
    )


def _facts(conditions: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key} {value}"
        for key, value in conditions.items()
        if key != "device" and value is not None
    )


def _conditions(session: Session) -> str:
    facts = _facts(session.conditions)
    peaks = session.peaks
    copies = ", ".join(f"{rate / 1e9:.3g} ({_size(size)})" for size, rate in peaks.copy.items())
    return (
        f"{facts}.\n\nMeasured peaks: copy {copies} GB/s; matrix product "
        f"{peaks.fp32 / 1e9:.3g} GFLOP/s in float32, {peaks.bf16 / 1e9:.3g} in bfloat16."
    )


def _size(n_bytes: int) -> str:
    return f"{n_bytes >> 20} MiB" if n_bytes >= 2**20 else f"{n_bytes >> 10} KiB"


def plot(sessions: Sequence[Session]) -> Figure:
    """Return a figure with a row per session: ratios at the left, roofline shares at the right."""
    tables = [
        [(name, m) for name, m in session.cases.items() if m.timing.ratio is not None]
        for session in sessions
    ]
    heights = [max(len(table), 1) for table in tables]
    figure = Figure(figsize=(10.5, 0.29 * sum(heights) + 1.3 * len(sessions)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(
        len(sessions), 2, squeeze=False, width_ratios=(3, 2), height_ratios=heights
    )
    for session, table, (left, right) in zip(sessions, tables, grid, strict=True):
        _draw(session, table, left, right)
    return figure


def _draw(session: Session, table: list[tuple[str, Measurement]], left: Axes, right: Axes) -> None:
    for y, (_, measured) in enumerate(table):
        timing = measured.timing
        assert timing.ratio is not None and timing.ratio_low is not None
        assert timing.ratio_high is not None
        colour = _COLOURS.get(measured.group, INK)
        left.plot([timing.ratio_low, timing.ratio_high], [y, y], color=colour, linewidth=2.5)
        left.plot(timing.ratio, y, "o", color=colour, markersize=6)
        _label(left, timing.ratio_high, y, f"{timing.ratio:.3g}")
        share = roofline_share(measured, session.peaks)
        if share is not None:
            right.barh(y, 100 * share, height=0.55, color=colour, alpha=0.85)
            _label(right, 100 * share, y, f"{100 * share:.0f} %")
    left.set_xscale("log")
    left.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
    left.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    left.xaxis.set_minor_formatter(NullFormatter())
    left.axvline(1, color=FAINT, linewidth=1, linestyle="--")
    low, high = left.get_xlim()
    left.set_xlim(min(low, 0.8), max(high * 1.35, 1.25))
    right.set_xlim(0, max(100.0, right.get_xlim()[1]) * 1.12)
    right.axvline(100, color=FAINT, linewidth=1, linestyle="--")
    left.set_title(session.device, loc="left", fontsize=9.5, color=INK)
    left.set_xlabel("time / reference's time (log scale; left of 1 is faster)")
    right.set_xlabel("share of the measured roofline, %")
    left.set_yticks(range(len(table)), [name for name, _ in table])
    right.set_yticks(range(len(table)), [""] * len(table))
    for axes in (left, right):
        axes.set_ylim(len(table) - 0.4, -0.6)
        axes.grid(axis="x", color=GRID, linewidth=0.8)
        _dress(axes)


def _dress(axes: Axes) -> None:
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=8.5, length=0, which="both")
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=FAINT, fontsize=9)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color("#c9ced6")


def plot_fidelity(fidelities: Sequence[Fidelity]) -> Figure:
    """Return a figure with a row per device: losses in training at the left, scores at the right.

    Losses are means over seeds, with a band from the smallest to the largest in float32.
    """
    n = len(fidelities)
    figure = Figure(figsize=(10.5, 3.3 * n), layout="constrained")
    FigureCanvasAgg(figure)
    for fidelity, (left, right) in zip(
        fidelities, figure.subplots(n, 2, squeeze=False), strict=True
    ):
        ways = sorted(fidelity.curves, key=lambda way: (way != REFERENCE.name, way))
        colours = dict(zip(ways, _WAY_COLOURS, strict=False))
        for way in ways:
            curves = fidelity.curves[way]
            done = fidelity.settings.iterations * np.arange(1, len(curves[0]) + 1) / len(curves[0])
            style = "-" if way == REFERENCE.name else "--"
            left.plot(done, np.mean(curves, 0), style, color=colours[way], linewidth=1.6, label=way)
            if way == REFERENCE.name:
                low, high = np.min(curves, 0), np.max(curves, 0)
                left.fill_between(done, low, high, color=colours[way], alpha=0.15, linewidth=0)
                continue
            scores = [c for c in fidelity.comparisons if c.sigma is not None and c.way == way]
            sigmas = [score.sigma for score in scores]
            right.plot(sigmas, [c.value for c in scores], "o-", color=colours[way], label=way)
            right.plot(sigmas, [c.reference for c in scores], "o-", color=colours[REFERENCE.name])
            right.plot(sigmas, [c.spread for c in scores], "--", color=FAINT)
        right.plot([], [], "o-", color=colours[REFERENCE.name], label=REFERENCE.name)
        right.plot([], [], "--", color=FAINT, label="networks of other seeds")
        right.set(xscale="log", yscale="log")
        left.set_title(fidelity.device, loc="left", fontsize=9.5, color=INK)
        left.set_xlabel("iterations")
        left.set_ylabel("training loss")
        right.set_xlabel("noise scale")
        right.set_ylabel("relative error of the score")
        for axes in (left, right):
            axes.legend(fontsize=8, frameon=False)
            _dress(axes)
            axes.grid(color=GRID, linewidth=0.8)
    return figure


def _label(axes: Axes, x: float, y: int, text: str) -> None:
    place: dict[str, Any] = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
    # On white, or the line at 1 would run through the number.
    box = {"boxstyle": "square,pad=0.15", "facecolor": "white", "edgecolor": "none"}
    axes.annotate(text, (x, y), **place, fontsize=8.5, color=INK, bbox=box)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0, or 2 for files that hold no results."""
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("results", nargs="*", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args(argv)
    paths = arguments.results or sorted(RESULTS.glob("*.json"))
    try:
        if not paths:
            raise ValueError(f"{RESULTS} holds no results; `pytest bench --save` writes them")
        compared = [path for path in paths if path.name.startswith("fidelity-")]
        sessions = [load_session(path) for path in paths if path not in compared]
        page = render(sessions, arguments.out, [load_fidelity(path) for path in compared])
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
