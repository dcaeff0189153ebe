"""Technique 5 as a curve: its numbers from the distances, and only where there is one."""

from dataclasses import replace

import fake_results
import numpy as np
import pandas as pd
import pytest

from ablations.engine.frames import make_frame
from ablations.studies.ncsnv2.results import (
    APART_COLUMNS,
    CELL_COLUMNS,
    DISTANCE_COLUMNS,
    empty_results,
)
from ablations.studies.ncsnv2.sections.averages import (
    average_artefacts,
    average_curve,
    average_table,
)

WIDTHS = {"NCSN_1,2,3,4": 0.0, "NCSNv2, ema=0.9": 0.02, "NCSNv2": 0.1}
AVERAGES = dict(zip(WIDTHS, ("none", "0.9", "0.997"), strict=True))
SNAPSHOTS = (10, 20, 30, 40)


def distance(variant, seed, iteration):
    noise = (iteration // 10) % 2 * 0.5 * (variant == "NCSN_1,2,3,4")
    return (60 - 100 * WIDTHS[variant]) * np.exp(noise + 0.01 * seed)


def made(training="s(x)/σ, L=21", n_seeds=2):
    cells, rows = [], []
    for variant, width in WIDTHS.items():
        base = variant.partition(", ")[0] if "ema" in variant else variant
        for seed in range(n_seeds):
            key = {"dataset": "digits", "variant": variant, "seed": seed}
            weights = "raw" if width == 0 else "EMA"
            facts = {"base": base, "sampler": "annealed", "training": training, "status": "done"}
            facts |= {"average": AVERAGES[variant], "average_width": width, "weights": weights}
            cells.append(key | facts)
            shared = {"weights": weights, "denoise": True, "label": "FD[digits-cnn]", "n": 100}
            for iteration in SNAPSHOTS:
                value = distance(variant, seed, iteration)
                row = key | shared | {"iteration": iteration, "distance": value}
                rows.append(row | {"purpose": "selection"})
            rows.append(row | {"purpose": "final", "distance": distance(variant, seed, 20)})
    return replace(
        empty_results(fake_results.fake_run()),
        cells=make_frame(CELL_COLUMNS, cells),
        distances=make_frame(DISTANCE_COLUMNS, rows),
    )


def test_each_average_has_its_width_distance_and_stability():
    table = average_table(made())
    assert list(table.raw["variant"]) == list(WIDTHS)
    assert list(table.raw["width"]) == list(WIDTHS.values())
    assert list(table.raw["average"]) == list(AVERAGES.values())
    raw = table.raw.set_index("variant")
    both = [distance("NCSNv2", seed, 20) for seed in range(2)]
    assert raw.loc["NCSNv2", "distance_mean"] == pytest.approx(np.mean(both))
    # Of the snapshots at 20, 30 and 40: the first is within a third of the training.
    logs = [np.log([distance("NCSN_1,2,3,4", seed, i) for i in (20, 30, 40)]) for seed in (0, 1)]
    wanted = np.mean([np.std(log, ddof=1) for log in logs])
    assert raw.loc["NCSN_1,2,3,4", "stability"] == pytest.approx(wanted)
    assert raw.loc["NCSNv2", "stability"] == pytest.approx(0.0, abs=1e-12)
    assert set(raw["n_snapshots"]) == {3}
    assert "(3 of them)" in table.caption


def test_the_curve_is_of_the_averages_and_raw_weights_are_a_line():
    results = made()
    picture = average_curve(results, average_table(results))
    (axes,) = picture.figure.axes
    curve, raw = axes.get_lines()[0], axes.get_lines()[-1]
    assert list(curve.get_xdata()) == [0.02, 0.1]
    assert axes.get_xscale() == "log"
    table = average_table(results).raw.set_index("variant")
    assert raw.get_ydata()[0] == table.loc["NCSN_1,2,3,4", "distance_mean"]
    assert [text.get_text() for text in axes.texts] == ["0.9", "0.997"]


def test_rows_that_differ_in_more_than_the_average_are_no_points_of_the_curve():
    results = made()
    cell = results.cells[results.cells["variant"] == "NCSNv2"]
    other = cell.assign(variant="NCSNv2, consistent", sampler="consistent")
    distances = results.distances[results.distances["variant"] == "NCSNv2"]
    apart = [("NCSNv2, ema=0.9", "ema", "0.9"), ("NCSNv2, consistent", "sampler", "consistent")]
    rows = [
        {"dataset": "digits", "variant": v, "setting": k, "value": value, "given": True}
        for v, k, value in apart
    ]
    more = replace(
        results,
        cells=pd.concat([results.cells, other]),
        distances=pd.concat([results.distances, distances.assign(variant="NCSNv2, consistent")]),
        apart=make_frame(APART_COLUMNS, rows),
    )
    assert list(average_table(more).raw["variant"]) == list(WIDTHS)


def test_fewer_than_three_averages_are_no_curve():
    results = made()
    fewer = results.cells[results.cells["variant"] != "NCSNv2"]
    assert average_table(replace(results, cells=fewer)) is None
    with pytest.raises(ValueError, match="--grid ema has them"):
        average_artefacts(replace(results, cells=fewer))
    # Averages of different trainings are none of one.
    cells = results.cells.copy()
    cells.loc[cells["variant"] == "NCSNv2", "training"] = "another"
    assert average_table(replace(results, cells=cells)) is None
    assert average_table(empty_results(fake_results.fake_run())) is None
