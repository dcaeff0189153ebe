"""Distance against n and against score evaluations, as drawn."""

from dataclasses import replace

import fake_results
import numpy as np
import pytest

from ablations.reporting.pictures import save_picture
from ablations.studies.ncsnv2.sections.quality import distance_against_n
from ablations.studies.ncsnv2.sections.steps import steps_curve, steps_table


def lines(axes, label):
    return [line for line in axes.get_lines() if line.get_label() == label]


@pytest.mark.parametrize("denoise", [True, False])
def test_distances_lie_over_one_by_n_and_the_line_ends_at_infinity(tmp_path, denoise):
    results = fake_results.complete(tmp_path)
    picture = distance_against_n(results, denoise=denoise)
    axes = picture.figure.axes[0]
    (points,) = lines(axes, "NCSNv2")
    frame = results.extrapolations
    frame = frame[(frame["variant"] == "NCSNv2") & (frame["denoise"] == denoise)]
    np.testing.assert_allclose(points.get_xdata(), 1 / frame["n"].to_numpy(float))
    np.testing.assert_allclose(points.get_ydata(), frame["distance"].to_numpy(float))
    ends = [line.get_ydata()[0] for line in axes.get_lines() if line.get_xdata()[0] == 0]
    assert frame["intercept"].iloc[0] in ends
    assert save_picture(picture, tmp_path)[0].stat().st_size > 0


def test_nothing_measured_is_said(tmp_path):
    results = fake_results.complete(tmp_path)
    picture = distance_against_n(
        replace(results, extrapolations=results.extrapolations[:0]), denoise=True
    )
    assert "No distance at several n to show yet." in picture.figure.axes[0].texts[0].get_text()


def test_the_same_network_sampled_in_several_ways_is_one_curve(tmp_path):
    run = fake_results.fake_run(datasets=["cifar10-jpeg"])
    results = replace(
        fake_results.complete(tmp_path), run=run, **fake_results.stepped("cifar10-jpeg")
    )
    picture = steps_curve(results, steps_table(results))
    axes = picture.figure.axes[0]
    (ours,) = lines(axes, "NCSNv2, annealed Langevin, this run")
    assert ours.get_xdata().tolist() == [26, 101, 1161]
    assert ours.get_ydata().tolist() == [46, 17, 12]
    (published,) = lines(axes, "NCSNv2, annealed Langevin, published")
    assert published.get_ydata().tolist() == [46.8, 17.2, 16.0, 12.8, 12.5]


def test_each_sampler_and_each_variant_is_a_curve_of_its_own(tmp_path):
    results = replace(fake_results.complete(tmp_path), **fake_results.stepped("digits"))
    facts = {"sampler": ["consistent", "consistent", "annealed"], "base": "NCSNv2"}
    of_two = replace(results, cells=results.cells.assign(**facts))
    axes = steps_curve(of_two, steps_table(of_two)).figure.axes[0]
    (consistent,) = lines(axes, "NCSNv2, consistent, this run")
    assert consistent.get_xdata().tolist() == [26, 101]
    (annealed,) = lines(axes, "NCSNv2, annealed Langevin, this run")
    assert annealed.get_xdata().tolist() == [1161]
    facts = {"sampler": "annealed", "base": ["NCSN", "NCSNv2", "NCSNv2"]}
    of_two = replace(results, cells=results.cells.assign(**facts))
    axes = steps_curve(of_two, steps_table(of_two)).figure.axes[0]
    (one,) = lines(axes, "NCSN, annealed Langevin, this run")
    assert one.get_xdata().tolist() == [26]


def test_each_training_is_a_curve_of_its_own(tmp_path):
    results = replace(fake_results.complete(tmp_path), **fake_results.stepped("digits"))
    table = steps_table(results)
    two = replace(table, raw=table.raw.assign(training=["other", "one", "one"]))
    axes = steps_curve(results, two).figure.axes[0]
    (one,) = lines(axes, "NCSNv2, annealed Langevin, this run, one")
    assert one.get_xdata().tolist() == [26, 101]
    (other,) = lines(axes, "NCSNv2, annealed Langevin, this run, other")
    assert other.get_xdata().tolist() == [1161]


def test_one_point_for_each_way_of_sampling_is_no_curve(tmp_path):
    results = replace(fake_results.complete(tmp_path), **fake_results.stepped("digits"))
    table = steps_table(results)
    assert steps_curve(results, table) is not None
    raw = table.raw[table.raw["variant"] == "NCSNv2, 25×1"]
    one = replace(table, raw=raw, columns=(), kinds=("ours",) * len(raw))
    assert steps_curve(results, one) is None
