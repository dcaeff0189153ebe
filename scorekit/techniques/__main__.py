"""``python -m scorekit.techniques design``: noise scales and step sizes for a data set."""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from scorekit.data.registry import prepare
from scorekit.data.store import DataError, Dataset
from scorekit.files import CorruptFile, write_file
from scorekit.techniques.distances import distance_quantiles
from scorekit.techniques.frontier import RULES, Design, design_frontier
from scorekit.techniques.noise_scales import initial_noise_scale
from scorekit.techniques.propositions import responsibility_bound

_QUANTILES = (0.5, 0.9, 0.99)
#: Of the mixture that a check samples: as few as make it a matter of minutes.
_COMPONENTS, _SAMPLES = 300, 600
_SIGMA_END = 0.01
_HEADINGS = ("C", "L", "T", "gamma", *("epsilon", "Eq. (4)", "v*", "v at end") * len(RULES))

Rows = list[dict[str, Any]]


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the parsed command line; argparse exits with code 2 on a bad one."""
    parser = argparse.ArgumentParser(
        prog="python -m scorekit.techniques",
        description="Techniques 1, 2 and 4 for a data set, jointly under a number of evaluations.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="design")
    text = "sigma_1 from the data, and every way to share L x T evaluations between L and T"
    add = commands.add_parser("design", help=text, description=text).add_argument
    add("data", metavar="DATA", help="as `python -m scorekit.data prepare` takes it, or a folder")
    add("--evaluations", type=int, required=True, metavar="N", help="L x T of a sample, at most")
    add("--data-root", type=Path, default=Path("runs/data"), metavar="DIR", help="prepared data")
    add("--image-size", type=int, metavar="N", help="for folders of images")
    add("--quantile", type=float, metavar="Q", help="sigma_1 by this quantile, not the maximum")
    add("--out", type=Path, metavar="DIR", help="also write tables (CSV) and a picture (PNG, SVG)")
    add("--check", action="store_true", help="sample along some of the ladders by an exact score")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0, 2 where the input is bad, or 130 where interrupted."""
    args = parse_arguments(argv)
    try:
        _design(args)
    except (ValueError, DataError, CorruptFile, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _design(args: argparse.Namespace) -> None:
    if args.evaluations < 2:
        raise ValueError(
            f"--evaluations {args.evaluations}: at least 2 are needed, a step at 2 noise scales"
        )
    if args.quantile is not None and not 0 < args.quantile < 1:
        raise ValueError(f"--quantile {args.quantile}: must lie in (0, 1); without it, the maximum")
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
    name = f"imagefolder:{args.data}" if Path(args.data).is_dir() else args.data
    dataset = prepare(name, args.data_root, image_size=args.image_size)
    images = np.asarray(dataset.train)
    dim = int(np.prod(images.shape[1:]))
    scales = sigma_rows(images, args.quantile)
    sigma_begin = next(row["sigma_1"] for row in scales if row["quantile"] == args.quantile)
    designs = design_frontier(sigma_begin, dim, args.evaluations)
    print(f"{dataset.name}: D = {dim}, {len(images):,} training images\n")
    print(_scales_text(scales))
    print(_frontier_text(designs, args.evaluations, args.quantile))
    checks = check_rows(dataset, designs) if args.check else []
    if checks:
        print(_check_text(checks))
    if args.out is not None:
        tables = {"sigma_1": scales, "frontier": frontier_rows(designs), "check": checks}
        for stem, rows in tables.items():
            if rows:
                write_file(args.out / f"{stem}.csv", _csv(rows))
        _draw(designs, f"{dataset.name}, {args.evaluations} evaluations", args.out)
        print(f"written to {args.out}")


def sigma_rows(images: np.ndarray, quantile: float | None = None) -> Rows:
    """Return sigma_1 by the maximum and by quantiles of the distances, with Prop. 1's bound.

    The bound is Eq. (3)'s for the two images farthest from each other.
    """
    maximum = initial_noise_scale(images)
    wanted = sorted({*_QUANTILES, *([] if quantile is None else [quantile])}, reverse=True)
    rows: Rows = [{"quantile": None, "sigma_1": maximum, "low": maximum, "high": maximum}]
    for found in distance_quantiles(images, wanted):
        ends = {"low": found.low, "high": found.high}
        rows.append({"quantile": found.quantile, "sigma_1": found.value} | ends)
    for row in rows:
        if not row["sigma_1"] > _SIGMA_END:
            raise ValueError(
                f"sigma_1 = {row['sigma_1']:g} by the quantile {row['quantile']} of the distances "
                f"is not above sigma_L = {_SIGMA_END}: the images are too alike"
            )
        row["bound"] = responsibility_bound(maximum, row["sigma_1"])
    return rows


def frontier_rows(designs: Sequence[Design]) -> Rows:
    """Return designs as rows of numbers, each rule's with its name before."""
    rows: Rows = []
    for made in designs:
        ladder = made.ladder
        row: dict[str, Any] = {"C": made.coverage, "L": ladder.n_levels, "T": ladder.n_steps_each}
        row |= {"gamma": ladder.gamma, "technique_2": made.chosen}
        for rule, step in made.steps.items():
            row |= {f"{rule}: {key}": value for key, value in asdict(step).items()}
        rows.append(row)
    return rows


def check_rows(dataset: Dataset, designs: Sequence[Design]) -> Rows:
    """Sample a mixture at some training images along some designs, by its exact score.

    The designs are the first, Technique 2's, the last, and the one in the middle. ``variance`` is
    the samples' over sigma_L^2 before the denoising step: what v at the end says. The last row is
    of true samples.
    """
    import torch  # the other tables do without, and it is slow to import

    from scorekit.data.pixels import to_float
    from scorekit.metrics.exact_score import ImageMixture
    from scorekit.sampling.registry import make_sampler

    order = np.random.Generator(np.random.Philox(key=0)).permutation(len(dataset.train))
    mixture = ImageMixture(np.asarray(dataset.train)[order[:_COMPONENTS]])
    mean, shape = to_float(mixture.components).mean(0), tuple(mixture.components.shape[1:])
    places = {0, len(designs) // 2, len(designs) - 1}
    places |= {i for i, made in enumerate(designs) if made.chosen}
    rows: Rows = []
    for made in [designs[i] for i in sorted(places)]:
        for rule, step in made.steps.items():
            ladder = made.ladder.by_rule(rule)
            sampler = make_sampler(
                "annealed",
                mixture.score,
                ladder,
                takes_sigma=True,
                start="gaussian",
                start_mean=mean,
            )
            drawn = sampler.sample(torch.arange(_SAMPLES), shape)
            row: dict[str, Any] = {
                "C": made.coverage,
                "L": ladder.n_levels,
                "T": ladder.n_steps_each,
            }
            row |= {"rule": rule, "predicted": step.at_end}
            row |= {"variance": (mixture.quality(drawn.last).off / _SIGMA_END) ** 2}
            rows.append(row | asdict(mixture.quality(drawn.denoised)))
    true = mixture.quality(mixture.draw(_SAMPLES, sigma=_SIGMA_END, seed=1)[1])
    blank = dict.fromkeys(("C", "L", "T", "predicted", "variance"))
    return [*rows, blank | {"rule": "true samples"} | asdict(true)]


def _scales_text(rows: Rows) -> str:
    cells = []
    for row in rows:
        title = "maximum" if row["quantile"] is None else f"quantile {row['quantile']:g}"
        interval = "" if row["low"] == row["high"] else f"{row['low']:.4g} .. {row['high']:.4g}"
        cells.append([title, f"{row['sigma_1']:.4g}", interval, f"{row['bound']:.3g}"])
    return _aligned(["sigma_1 by distances", "sigma_1", "95 % interval", "Prop. 1"], cells) + (
        "\nProp. 1: exp(-d^2 / (8 sigma_1^2)) / 2 of the pair at the maximum d; 0: out of reach.\n"
    )


def _frontier_text(designs: Sequence[Design], evaluations: int, quantile: float | None) -> str:
    cells = []
    for made in designs:
        ladder = made.ladder
        row = [f"{made.coverage:.3f}", str(ladder.n_levels), str(ladder.n_steps_each)]
        row.append(f"{ladder.gamma:.4f}")
        for step in made.steps.values():
            row.append(f"{step.epsilon:.3g}")
            row += [f"{v:.3f}" for v in (step.one_scale, step.steady, step.at_end)]
        cells.append([*row, "<- Technique 2, C = 0.5" if made.chosen else ""])
    of = "the maximum" if quantile is None else f"the quantile {quantile:g}"
    first = designs[0].ladder
    lines = [
        f"L x T <= {evaluations}, denoising not counted, from sigma_1 = {first.sigma_begin:.4g} "
        f"({of}) to {first.sigma_end:g}; epsilon, Eq. (4), v* and v at the end of the ladder",
        f"by {', then by '.join(RULES)}:",
        _aligned([*_HEADINGS, ""], cells),
    ]
    if not any(made.chosen for made in designs):
        lines.append(f"Technique 2 (C = 0.5) needs more than {evaluations} evaluations.")
    return "\n".join(lines) + "\n"


def _check_text(rows: Rows) -> str:
    def text(value: float | None, places: int = 3) -> str:
        return "" if value is None else f"{value:.{places}f}"

    cells = [
        [
            *(text(row["C"]), *("" if row[k] is None else str(row[k]) for k in ("L", "T"))),
            *(row["rule"], text(row["predicted"]), text(row["variance"])),
            *(text(row["distance"], 4), text(row["covered"]), text(row["entropy"])),
        ]
        for row in rows
    ]
    headings = ["C", "L", "T", "epsilon by", "v at end", "sampled", "distance", "met", "entropy"]
    return (
        f"{_SAMPLES} samples of a mixture at {_COMPONENTS} training images at most, by its exact "
        "score:\nv before the denoising step; after it, Frechet distance of pixels to the mixture "
        f"(where {_SAMPLES} are enough),\nand share and entropy of the components met.\n"
        f"{_aligned(headings, cells)}\n"
    )


def _aligned(headings: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    rows = [headings, *cells]
    widths = [max(len(row[i]) for row in rows) for i in range(len(headings))]
    return "\n".join(
        "  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _csv(rows: Rows) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _draw(designs: Sequence[Design], title: str, out: Path) -> None:
    """Write C, epsilon and v* over T as design.png and design.svg; the same designs, same bytes."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps = [made.ladder.n_steps_each for made in designs]
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams["svg.hashsalt"] = "scorekit"
        figure = Figure(figsize=(11, 3.6), layout="constrained")
        FigureCanvasAgg(figure)
        left, middle, right = figure.subplots(1, 3)
        left.plot(steps, [made.coverage for made in designs], marker="o", markersize=3)
        left.axhline(0.5, color="#7d838c", linewidth=0.8)
        for rule in RULES:
            of = [made.steps[rule] for made in designs]
            middle.plot(steps, [s.epsilon for s in of], marker="o", markersize=3, label=rule)
            right.plot(steps, [s.steady for s in of], marker="o", markersize=3, label=f"v*, {rule}")
        right.plot(
            steps,
            [made.steps[RULES[0]].one_scale for made in designs],
            linestyle="--",
            color="#7d838c",
            label=f"Eq. (4), {RULES[0]}",
        )
        for made in designs:
            if made.chosen:
                for axes in (left, middle, right):
                    axes.axvline(made.ladder.n_steps_each, color="#c8501e", linewidth=0.8)
                left.annotate(
                    f"Technique 2: L = {made.ladder.n_levels}, T = {made.ladder.n_steps_each}",
                    (made.ladder.n_steps_each, made.coverage),
                    xytext=(-6, -10),
                    textcoords="offset points",
                    ha="right",
                    fontsize=8,
                )
        left.set(ylabel="C, overlap of neighbouring scales", title=title.replace("$", r"\$"))
        middle.set(ylabel="epsilon", yscale="log")
        right.set(ylabel="variance / sigma^2 (1 is right)")
        for axes in (left, middle, right):
            axes.set(xscale="log", xlabel="T, steps at each scale")
        middle.legend(fontsize=8)
        right.legend(fontsize=8)
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
            write_file(out / f"design.{kind}", buffer.getvalue())


if __name__ == "__main__":
    sys.exit(main())
