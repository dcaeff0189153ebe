"""How near the toy's score fields are to one another and to the truth."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ablations.reporting.paired import comparison
from ablations.reporting.pictures import FAINT, INK, Picture, dress_frame
from ablations.reporting.table import Table
from ablations.studies.finite_difference.results import TrialResults
from ablations.studies.finite_difference.sections.curves import panels_of
from ablations.studies.finite_difference.sections.rows import (
    conditions_of,
    plain_table,
    row_kind,
    said,
    settings_of,
    status_of,
)
from scorekit.data.toy_mixture import HALF_WIDTH
from scorekit.files import load_arrays


def toy_table(results: TrialResults) -> Table:
    """Every seed of the toy: how far the two fields lie from one another and from the truth."""
    records = []
    for entry in results.of("toy"):
        record: dict[str, Any] = {"seed": entry.seed, "status": status_of(entry)}
        if (found := entry.result) is not None:
            record |= {
                "relative_difference": found["relative_difference"],
                "relative_difference_weighted": found["relative_difference_weighted"],
                "fisher_ssm": found["fisher_divergence"]["SSM"],
                "fisher_fd_ssm": found["fisher_divergence"]["FD-SSM"],
                "seconds_ssm": found["seconds"]["SSM"],
                "seconds_fd_ssm": found["seconds"]["FD-SSM"],
                "truncation": found["error"]["truncation"],
                "rounding": found["error"]["rounding"],
            }
        records.append(row_kind(entry) | record)
    columns = {
        "seed": "Seed",
        "relative_difference": "Fields' relative difference",
        "relative_difference_weighted": "The same, weighted by the density",
        "fisher_ssm": "Fisher divergence, SSM",
        "fisher_fd_ssm": "Fisher divergence, FD-SSM",
        "seconds_ssm": "Time, SSM",
        "seconds_fd_ssm": "Time, FD-SSM",
        "truncation": "Truncation",
        "rounding": "Rounding",
        "status": "Status",
    }
    settings = settings_of(results, "toy")
    return plain_table(
        "toy",
        "Score fields of the 2-D toy",
        "0.8 N([5, 5], I) + 0.2 N([−5, −5], I), a three-layer MLP energy, "
        f"ε = {said(settings, 'epsilon')}, {said(settings, 'iterations')} iterations of "
        f"{said(settings, 'batch_size')}; both methods from the same weights on the same batches "
        "and directions. Relative difference of the fields: root mean square of FD-SSM − SSM over "
        "that of SSM, on [−8, 8]². Fisher divergence: mean of half the "
        "squared difference from the true score, weighted by the density. Time: of the steps "
        "alone, taken by turns. Truncation and rounding: relative errors of FD-SSM's gradient "
        "after training. The source has the mixture, ε = 0.1, three layers and the square, and "
        "says “almost the same as SSM” without a number: sizes, iterations and measures are ours. "
        f"{conditions_of(results, ['toy'])}",
        "2-D toy",
        records,
        columns,
        times=("seconds_ssm", "seconds_fd_ssm"),
    )


def toy_comparisons(results: TrialResults) -> list[dict[str, Any]]:
    done = list(results.done("toy").values())
    if not done:
        return []
    records = []
    for key, quantity, sort in (
        ("fisher_divergence", "Fisher divergence from the truth", "difference"),
        ("seconds", "seconds of training", "ratio"),
    ):
        first, second = ([result[key][name] for result in done] for name in ("SSM", "FD-SSM"))
        records.append(
            comparison("FD-SSM against SSM", quantity, sort, ("SSM", first), ("FD-SSM", second))
        )
    return records


def field_picture(results: TrialResults) -> Picture | None:
    """Fig. A(d): the score field of the truth, of SSM and of FD-SSM, and what differs."""
    entry = next((e for e in results.of("toy") if e.result is not None), None)
    if entry is None or entry.result is None:
        return None
    arrays = load_arrays(entry.directory / "fields.npz", ("points", "truth", "ssm", "fd_ssm"))
    figure, panels = panels_of(results, 2, 2, (9.0, 8.4))
    side = math.isqrt(len(arrays["points"]))
    longest = float(np.linalg.norm(arrays["truth"], axis=1).max())
    every = max(1, side // 16)
    fields = {
        "truth": arrays["truth"],
        "SSM": arrays["ssm"],
        "FD-SSM": arrays["fd_ssm"],
        "FD-SSM − SSM": arrays["fd_ssm"] - arrays["ssm"],
    }
    for axes, (title, field) in zip(panels, fields.items(), strict=True):
        size = np.linalg.norm(field, axis=1).reshape(side, side)
        last = title == "FD-SSM − SSM"
        # The first axis of the points is x; an image's first axis is y.
        image = axes.imshow(
            size.T,
            origin="lower",
            extent=(-HALF_WIDTH, HALF_WIDTH, -HALF_WIDTH, HALF_WIDTH),
            cmap="Blues",
            vmin=0,
            vmax=None if last else longest,
        )
        thinned = [
            values.reshape(side, side, 2)[every // 2 :: every, every // 2 :: every].reshape(-1, 2)
            for values in (arrays["points"], field)
        ]
        axes.quiver(*thinned[0].T, *thinned[1].T, color=INK, width=0.004, angles="xy")
        note = f"relative difference {entry.result['relative_difference']:.4f}" if last else ""
        divergence = entry.result["fisher_divergence"].get(title)
        if divergence is not None:
            note = f"Fisher divergence {divergence:.4f}"
        axes.set_title(title + (f": {note}" if note else ""), fontsize=10, color=INK, loc="left")
        dress_frame(axes, "", "")
        axes.grid(False)
        bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02)
        bar.outline.set_visible(False)
        bar.ax.tick_params(colors=FAINT, labelsize=8, length=0)
    return Picture(
        name="toy_fields",
        title="Score fields of the 2-D toy",
        caption="The source's Fig. A(d) and what it does not show: the score on [−8, 8]² of the "
        "truth, of an MLP energy trained by SSM and of one by FD-SSM, and the difference of the "
        "two. Colour: length; the first three share a scale. Arrows are scaled panel by panel. "
        f"Seed {entry.seed}. {conditions_of(results, ['toy'])}",
        alt="Four fields of arrows; SSM and FD-SSM look the same",
        figure=figure,
    )
