"""The paper's figures and tables by themselves: what they show is what they were given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fake_results
import numpy as np
import pandas as pd
import pytest

from ablations.engine.frames import make_frame
from ablations.reporting.artefacts import Artefact, save_artefacts
from ablations.reporting.image_grids import tile
from ablations.reporting.pictures import Picture
from ablations.reporting.table import Table
from ablations.studies.ncsnv2.results import LOSS_COLUMNS, QUALITY_COLUMNS, Results, SampleSet
from ablations.studies.ncsnv2.sections.colour_shift import (
    colour_shifts,
    shift_curves,
    shift_strips,
    shift_table,
)
from ablations.studies.ncsnv2.sections.conditioning import conditioning_figure, conditioning_losses
from ablations.studies.ncsnv2.sections.curves import (
    SMOOTHING,
    ema_artefact,
    group_artefact,
    loss_artefacts,
    loss_curves,
)
from ablations.studies.ncsnv2.sections.generalisation import (
    interpolation_picture,
    memorisation_summary,
    neighbour_distances_picture,
    neighbour_picture,
)
from ablations.studies.ncsnv2.sections.paper_tables import table_1, table_4, table_6
from ablations.studies.ncsnv2.sections.samples import overview_artefact, sheet_artefacts
from scorekit.techniques.table_4 import TABLE_4

TINT = np.array([0.0, 0.1, -0.2])


def with_snapshots(directory: Path, results: Results, *, n: int = 16) -> Results:
    """The same results with samples of known colour shift, (iteration / 6000) TINT, raw only."""
    samples: list[SampleSet] = []
    (dataset,) = results.run["datasets"]
    real = np.full((32, 3, 16, 16), 128, np.uint8)
    real[::2] += 20
    np.save(directory / "real.npy", real)
    for sample in results.samples:
        for iteration in fake_results.SNAPSHOTS:
            path = directory / f"{len(samples)}.npy"
            strength = iteration / 6000 if sample.weights == "raw" else 0.0
            colour = 138 + 255 * strength * TINT[:, None, None]
            np.save(path, np.broadcast_to(colour.round(), (n, 3, 16, 16)).astype(np.uint8))
            samples.append(replace(sample, iteration=iteration, path=path))
    return replace(results, samples=samples, real={dataset: directory / "real.npy"})


def with_conditioning(results: Results) -> Results:
    """The same results with losses of the two trainings that Fig. 3 compares."""
    rows = [
        {"dataset": "digits", "seed": 0, "training": kind, "variants": users}
        | {"iteration": i, "split": "train", "objective": "dsm", "loss": level + 20 / i}
        for kind, users, level in (
            ("conditional, L=58", "NCSN_1,2,4, NCSN_1,2,4,5", 5.0),
            ("s(x)/σ, L=58", "NCSN_1,2,3,4, NCSNv2", 4.0),
            ("conditional, L=10", "NCSN", 9.0),
        )
        for i in range(1, 101)
    ]
    return replace(results, losses=make_frame(LOSS_COLUMNS, rows))


def tables(artefacts: list[Artefact]) -> list[Table]:
    return [a.shown for a in artefacts if isinstance(a.shown, Table)]


def test_the_colour_shift_is_the_mean_of_the_samples_less_that_of_the_data(tmp_path: Path) -> None:
    results = with_snapshots(tmp_path, fake_results.complete(tmp_path, datasets=("photos",)))
    frame = colour_shifts(results, denoise=True)
    assert len(frame) == 4 * len(fake_results.SNAPSHOTS)
    raw = frame[frame["variant"] == "NCSN"]
    for channel, tint in zip(("red", "green", "blue"), TINT, strict=True):
        expected = tint * raw["iteration"] / 6000
        # Half a grey level, to which pixels are rounded.
        assert raw[channel].to_numpy(float) == pytest.approx(expected.to_numpy(float), abs=0.002)
    norms = np.linalg.norm(raw[["red", "green", "blue"]].to_numpy(float), axis=1)
    assert raw["norm"].to_numpy(float) == pytest.approx(norms)
    assert frame[frame["weights"] == "EMA"]["norm"].max() < 1e-12
    # Real images alternate between 128 and 148 in all three channels.
    deviation = np.std([128 / 255, 148 / 255] * 16, ddof=1)
    assert set(frame["norm_of_real"].round(12)) == {round(deviation * np.sqrt(3 / 16), 12)}
    assert raw["grey"].isna().all()


def test_grey_images_have_one_channel(tmp_path: Path) -> None:
    results = fake_results.complete(tmp_path)
    frame = colour_shifts(results, denoise=False)
    sample = np.load(results.samples[1].path) / 255
    real = np.load(results.real["digits"]) / 255
    row = frame[frame["variant"] == "NCSN"].iloc[0]
    assert row["grey"] == pytest.approx(sample.mean() - real.mean())
    assert row["norm"] == pytest.approx(abs(row["grey"]))
    (table,) = tables([shift_table(results, denoise=False)])
    assert "Grey" in table.display and "Red" not in table.display


def test_unreadable_samples_keep_their_row_and_say_why(tmp_path: Path) -> None:
    results = fake_results.complete(tmp_path)
    results.samples[0].path.unlink()
    frame = colour_shifts(results, denoise=True)
    assert frame.iloc[0]["note"].startswith("cannot read 0.npy")
    assert np.isnan(frame.iloc[0]["norm"])


def test_strips_pair_raw_and_averaged_weights_at_the_same_indices(tmp_path: Path) -> None:
    results = with_snapshots(tmp_path, fake_results.complete(tmp_path, datasets=("photos",)))
    artefact = shift_strips(results, denoise=True)
    assert len(artefact.arrays) == 2 * len(fake_results.SNAPSHOTS)
    for images in artefact.arrays.values():
        assert images.shape == (8, 3, 16, 16)
    words = [text.get_text() for text in artefact.shown.figure.texts]  # type: ignore[union-attr]
    assert "NCSN, iteration 6,000" in words
    assert any("raw, seed 0, shift 0.22" in word for word in words)


def test_fig_3_compares_the_two_methods_alone_and_smooths_as_it_says(tmp_path: Path) -> None:
    results = with_conditioning(fake_results.complete(tmp_path))
    frame = conditioning_losses(results)
    assert list(frame.groupby("variant")["training"].first()) == [
        "conditional, L=58",
        "s(x)/σ, L=58",
    ]
    assert len(frame) == 2 * 100
    for _, curve in frame.groupby("variant"):
        expected, value = [], float(curve["loss"].iloc[0])
        for loss in curve["loss"]:
            value = SMOOTHING * value + (1 - SMOOTHING) * loss
            expected.append(value)
        assert curve["smoothed"].to_numpy(float) == pytest.approx(np.array(expected))
    picture = conditioning_figure(results).shown
    assert "momentum 0.9" in picture.caption
    assert "digits NCSN_1,2,4,5 (dsm) 5.2" in picture.caption


def test_fig_3_says_which_iterations_are_left(tmp_path: Path) -> None:
    results = with_conditioning(fake_results.complete(tmp_path))
    assert "over every iteration;" in conditioning_figure(results).shown.caption
    losses = results.losses[results.losses["iteration"] % 7 == 1]
    caption = conditioning_figure(replace(results, losses=losses)).shown.caption
    assert "over one iteration in 7;" in caption


def test_fig_15_is_of_ncsnv2_alone(tmp_path: Path) -> None:
    results = with_conditioning(fake_results.complete(tmp_path))
    assert len(loss_curves(results).figure.axes) == 4  # three and an empty place
    (axes,) = loss_curves(results, ["NCSNv2"]).figure.axes
    assert axes.get_title(loc="left") == "digits: s(x)/σ, L=58"
    curves, table = loss_artefacts(results)
    for frame in (*curves.frames.values(), tables([table])[0].raw):
        assert set(frame["training"]) == {"s(x)/σ, L=58"}


def test_table_1_has_ours_and_all_of_the_papers_rows(tmp_path: Path) -> None:
    results = fake_results.complete(tmp_path)
    (table,) = tables([table_1(results)])
    kinds = pd.Series(table.kinds)
    paper = table.raw[(kinds == "paper").to_numpy()]
    assert len(paper) == 12
    assert list(paper["variant"][:4]) == ["PixelCNN", "IGEBM", "WGAN-GP", "SNGAN"]
    best = paper[(paper["dataset"] == "CIFAR-10") & (paper["denoise"] == True)]  # noqa: E712
    assert list(best["distance"]) == [29.8, 10.87]
    assert list(best["inception_score"]) == [7.32, 8.40]
    assert (paper["source"] == "paper (Table 1)").all()
    ours = table.raw[(kinds == "ours").to_numpy()]
    for row in ours.to_dict("records"):
        expected = fake_results.final_distance(row["variant"], 0, bool(row["denoise"]))
        assert row["distance"] == expected
        assert row["inception_score"] == 9 - fake_results.VARIANTS[row["variant"]][3] / 10


def test_inception_scores_join_their_variant(tmp_path: Path) -> None:
    results = fake_results.complete(tmp_path, n_seeds=2)
    row = {"dataset": "digits", "weights": "EMA", "denoise": True, "iteration": 5000}
    row |= {"metric": "IS", "label": "IS[digits-cnn]", "std": 0.5, "n": 1000}
    qualities = pd.DataFrame(
        [
            row | {"variant": "NCSNv2", "seed": seed, "value": 8.0 + seed, "metric": metric}
            for seed in range(2)
            for metric in ("IS", "KID")
        ]
        + [row | {"variant": "NCSN_5", "seed": 0, "value": 3.0, "note": "10 splits of 14"}]
    )
    results = replace(results, qualities=make_frame(QUALITY_COLUMNS, qualities.to_dict("records")))
    shown = tables([table_1(results)])[0].display
    cell = shown[(shown["Variant"] == "NCSNv2") & (shown["Denoised"] == "yes")].iloc[0]
    assert cell["Inception score ↑"] == "IS[digits-cnn] 8.50 ± 0.71"
    cell = shown[(shown["Variant"] == "NCSN_5") & (shown["Denoised"] == "yes")].iloc[0]
    assert cell["Inception score ↑"] == "IS[digits-cnn] 3.00 ± 0.50 (10 splits of 14)"
    cell = shown[(shown["Variant"] == "NCSN_5") & (shown["Denoised"] == "no")].iloc[0]
    assert cell["Inception score ↑"] == "—"


def test_table_6_is_the_papers_and_ours(tmp_path: Path) -> None:
    (table,) = tables([table_6(fake_results.complete(tmp_path))])
    assert table.name == "table6"
    assert table.kinds.count("paper") == 6 and table.kinds.count("ours") == 4


@pytest.mark.parametrize(
    "build",
    [
        lambda path: fake_results.complete(path, n_seeds=2),
        fake_results.hostile,
        lambda _: fake_results.empty(),
    ],
    ids=["complete", "hostile", "empty"],
)
def test_every_artefact_is_saved_whole(build: Callable[[Path], Results], tmp_path: Path) -> None:
    results = build(tmp_path / "data")
    artefacts = [
        table_1(results),
        table_4(results),
        table_6(results),
        conditioning_figure(results),
        ema_artefact(results, denoise=True),
        group_artefact(results, denoise=False),
        shift_curves(results, denoise=True),
        shift_table(results, denoise=True),
        shift_strips(results, denoise=True),
        overview_artefact(results, denoise=False),
        sheet_artefacts(results, snapshot="selected")[0],
        *loss_artefacts(results),
    ]
    paths = save_artefacts(artefacts, tmp_path / "saved")
    assert all(path.stat().st_size > 0 for path in paths)
    assert sorted(paths) == sorted((tmp_path / "saved").iterdir())
    caption = (tmp_path / "saved" / "caption.md").read_text()
    assert caption.count("## ") == len(artefacts)


def test_two_artefacts_may_not_share_a_file(tmp_path: Path) -> None:
    (artefact,) = loss_artefacts(fake_results.empty())
    with pytest.raises(ValueError, match="loss_curves"):
        save_artefacts([artefact, artefact], tmp_path)


def test_tables_quote_every_row_of_table_4(tmp_path: Path) -> None:
    from ablations.studies.ncsnv2.reproductions import GridRun

    (table,) = tables([table_4(GridRun(out=tmp_path).results)])
    published = table.raw[table.raw["source"] == "paper (Table 4)"]
    assert list(published["epsilon"]) == [row.ladder.step_size for row in TABLE_4]
    assert len(published) == 10  # bedroom and tower share one of the print
    assert (table.raw["source"] == "computed, C=0.5").sum() == 6
    assert "none of its rows are ours" in table.caption


@pytest.mark.parametrize("channels", [1, 3])
def test_tiles_are_the_images_row_by_row(channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, channels, 4, 6), dtype=np.uint8)
    grid = tile(images, 3, factor=2, gap=1)
    assert grid.shape == (2 * 8 + 1, 3 * 12 + 2, 3)
    for index, image in enumerate(images):
        y, x = 9 * (index // 3), 13 * (index % 3)
        shown = grid[y : y + 8 : 2, x : x + 12 : 2]
        assert (shown == image.transpose(1, 2, 0)).all()
    assert (grid[9:, 26:] == 255).all()


def test_interpolations_keep_their_endpoints_in_the_outer_columns(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 3, 8, 8), dtype=np.uint8)
    results = fake_results.empty()
    words = {"dataset": "digits", "variant": "NCSNv2", "details": "EMA weights."}
    picture = interpolation_picture(results, images, **words)
    (axes,) = picture.figure.axes
    pixels = np.asarray(axes.get_images()[0].get_array())
    assert (pixels[:64:8, :64:8] == images[0, 0].transpose(1, 2, 0)).all()
    assert (pixels[-64::8, -64::8] == images[1, 4].transpose(1, 2, 0)).all()
    assert "N = 3" in picture.caption and "EMA weights." in picture.caption
    with pytest.raises(ValueError, match="one between"):
        interpolation_picture(results, images[:, :2], **words)
    with pytest.raises(ValueError, match="5 dimensions"):
        interpolation_picture(results, images[0], **words)


def test_neighbours_stand_right_of_the_line_mirrored_where_that_is_nearer() -> None:
    rng = np.random.default_rng(0)
    samples = rng.integers(0, 256, (3, 3, 8, 8), dtype=np.uint8)
    neighbours = rng.integers(0, 256, (3, 4, 3, 8, 8), dtype=np.uint8)
    distances = np.sort(rng.uniform(1, 9, (3, 4)), axis=1)
    flipped = np.zeros((3, 4), bool)
    flipped[0, 0] = True
    results, words = fake_results.empty(), {"dataset": "digits", "what": "NCSNv2", "details": ""}
    picture = neighbour_picture(results, samples, neighbours, distances, flipped=flipped, **words)
    (axes,) = picture.figure.axes
    pixels = np.asarray(axes.get_images()[0].get_array())
    assert (pixels[:64:8, :64:8] == samples[0].transpose(1, 2, 0)).all()
    line = axes.get_lines()[0].get_xdata()[0]
    assert 64 < line < 82
    first, second = pixels[:64:8, 82:146:8], pixels[:64:8, 150:214:8]
    assert (first == neighbours[0, 0].transpose(1, 2, 0)[:, ::-1]).all()
    assert (second == neighbours[0, 1].transpose(1, 2, 0)).all()
    assert axes.texts[0].get_text().endswith("*")
    assert not axes.texts[1].get_text().endswith("*")
    with pytest.raises(ValueError, match="do not fit"):
        neighbour_picture(results, samples[:2], neighbours, distances, **words)


def test_the_memorisation_check_counts_samples_closer_than_held_out_images() -> None:
    held_out = np.arange(1, 1001) / 100.0
    summary = memorisation_summary(held_out + 0.0, held_out)
    assert summary["share_nearer"] == pytest.approx(0.01, abs=1e-3)
    copies = np.concatenate([np.zeros(30), np.full(70, 6.0)])
    summary = memorisation_summary(copies, held_out)
    assert summary["share_nearer"] == 0.3
    assert (summary["median"], summary["median_held_out"]) == (6.0, pytest.approx(5.005))
    picture = neighbour_distances_picture(
        fake_results.empty(),
        copies,
        held_out,
        dataset="digits",
        variant="NCSNv2",
        feature_space="digits-cnn",
        details="",
    )
    assert isinstance(picture, Picture)
    assert "30.0% of the samples" in picture.caption and "digits-cnn" in picture.caption
    with pytest.raises(ValueError, match="fake"):
        memorisation_summary(np.array([]), held_out)
    with pytest.raises(ValueError, match="held_out"):
        memorisation_summary(copies, np.array([np.nan]))
