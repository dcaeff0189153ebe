"""The report's figures: what they draw is what they were given, whatever is missing."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fake_results
import numpy as np
import pytest
from matplotlib.axes import Axes

from ablations.reporting.pictures import Picture, save_picture
from ablations.reporting.wording import file_slug, for_figure
from ablations.studies.ncsnv2.results import Results
from ablations.studies.ncsnv2.sections.curves import (
    SMOOTHING,
    distance_curves,
    ema_curves,
    loss_curves,
)
from ablations.studies.ncsnv2.sections.samples import (
    grid_keys,
    sample_grid,
    sample_overview,
    tile_images,
)
from ablations.studies.ncsnv2.sections.style import variant_colour

Build = Callable[[Path], Results]


def _line(axes: Axes, label: str) -> np.ndarray:
    (line,) = [line for line in axes.get_lines() if line.get_label() == label]
    return np.asarray(line.get_xydata())


def _words(picture: Picture) -> str:
    texts = list(picture.figure.texts)
    for axes in picture.figure.axes:
        texts += axes.texts
    return "\n".join(text.get_text() for text in texts)


def test_distance_curves_draw_the_selection_distances(tmp_path: Path) -> None:
    results = fake_results.complete(tmp_path, datasets=("digits", "cifar10-jpeg"))
    picture = distance_curves(results, denoise=True)
    digits, cifar = picture.figure.axes
    given = results.distances[
        (results.distances["dataset"] == "digits")
        & (results.distances["variant"] == "NCSNv2")
        & (results.distances["purpose"] == "selection")
        & results.distances["denoise"]
    ]
    drawn = _line(digits, "NCSNv2")
    assert drawn[:, 0].tolist() == list(fake_results.SNAPSHOTS)
    assert drawn[:, 1] == pytest.approx(given["distance"].to_numpy(float))
    assert digits.get_ylabel().startswith("FD[digits-cnn]")
    assert cifar.get_title(loc="left") == "cifar10-jpeg"
    for words in ("n = 256", "1,437 train images", "quick", "with the denoising step"):
        assert words in picture.caption


def test_the_chosen_snapshot_is_ringed_per_seed(tmp_path: Path) -> None:
    results = fake_results.complete(tmp_path, n_seeds=2)
    (axes,) = distance_curves(results, denoise=False).figure.axes
    offsets = [np.asarray(collection.get_offsets()) for collection in axes.collections]
    rings = [points for points in offsets if len(points) == 2]
    assert len(rings) == 4
    assert {float(x) for ring in rings for x in ring[:, 0]} == {5000.0}
    assert len(offsets) - len(rings) == 4, "one band of seeds per variant"


def test_variants_without_values_are_named(tmp_path: Path) -> None:
    caption = distance_curves(fake_results.partial(tmp_path), denoise=True).caption
    assert "No values from digits NCSN_1,2,4,5 (failed), digits NCSNv2 (diverged)." in caption


def test_ema_curves_pair_variants_that_differ_by_technique_5(tmp_path: Path) -> None:
    results = fake_results.complete(tmp_path)
    (axes,) = ema_curves(results, denoise=True).figure.axes
    labels = [line.get_label() for line in axes.get_lines()]
    assert labels == ["NCSN (raw weights)", "NCSN$_{5}$ (EMA)"]
    assert axes.get_lines()[0].get_color() == variant_colour("NCSN")
    distances = results.distances.copy()
    distances.loc[distances["variant"] == "NCSN_1,2,4,5", "variant"] = "NCSN_1,2,3,4"
    cells = results.cells.copy()
    cells.loc[cells["variant"] == "NCSN_1,2,4,5", ["variant", "base"]] = "NCSN_1,2,3,4"
    changed = replace(results, distances=distances, cells=cells)
    pairs = ema_curves(changed, denoise=True).figure.axes
    assert [axes.get_title(loc="left") for axes in pairs] == [
        "digits: NCSN and NCSN$_{5}$",
        "digits: NCSN$_{1{,}2{,}3{,}4}$ and NCSNv2",
    ]


def test_loss_is_smoothed_as_the_caption_says(tmp_path: Path) -> None:
    results = fake_results.complete(tmp_path)
    picture = loss_curves(results)
    axes = picture.figure.axes[0]
    losses = results.losses
    train = losses[losses["training"] == "conditional, L=10"]
    expected, value = [], float(train["loss"].iloc[0])
    for loss in train["loss"]:
        value = SMOOTHING * value + (1 - SMOOTHING) * loss
        expected.append(value)
    assert _line(axes, "training batches, smoothed")[:, 1] == pytest.approx(np.array(expected))
    assert "momentum 0.9" in picture.caption
    assert "NCSN, NCSN$_{5}$" in _words(picture)


def test_train_and_test_images_are_drawn_for_the_same_weights_with_intervals(
    tmp_path: Path,
) -> None:
    results = fake_results.complete(tmp_path)
    axes = loss_curves(results, ["NCSN"]).figure.axes[0]
    held_out = results.held_out_losses
    drawn = {container.get_label(): container for container in axes.containers}
    assert len(drawn) == 4
    for weights in ("raw", "EMA"):
        rows = held_out[
            (held_out["training"] == "conditional, L=10") & (held_out["weights"] == weights)
        ]
        for split in ("train", "test"):
            points, _, (bars,) = drawn[f"{split} images, {weights} weights"].lines
            assert points.get_ydata() == pytest.approx(rows[split].to_numpy(float))
            heights = [segment[1, 1] - segment[0, 1] for segment in bars.get_segments()]
            assert heights == pytest.approx(2 * 1.96 * rows[f"{split}_error"].to_numpy(float))


def test_a_panel_has_one_objective_and_names_it(tmp_path: Path) -> None:
    results = fake_results.complete(tmp_path)
    losses = results.losses.copy()
    losses.loc[losses["training"] == "s(x)/σ, L=58", "objective"] = "ssm_vr"
    picture = loss_curves(replace(results, losses=losses))
    assert [axes.get_ylabel() for axes in picture.figure.axes[:3]] == [
        *("loss: dsm", "loss: dsm", "loss: ssm_vr")
    ]


def test_infinite_and_missing_values_are_left_out(tmp_path: Path) -> None:
    results = fake_results.complete(tmp_path)
    losses, distances = results.losses.copy(), results.distances.copy()
    losses.loc[losses.index[-5:], "loss"] = np.inf
    distances.loc[distances.index[:3], "distance"] = np.nan
    broken = replace(results, losses=losses, distances=distances)
    curve = _line(loss_curves(broken).figure.axes[2], "training batches, smoothed")
    assert np.isfinite(curve).all() and len(curve) == 115
    assert len(_line(distance_curves(broken, denoise=True).figure.axes[0], "NCSN")) == 3


@pytest.mark.parametrize("channels", [1, 3])
def test_tiles_are_the_images_enlarged_by_whole_factors(channels: int) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, size=(5, channels, 8, 8), dtype=np.uint8)
    grid = tile_images(images, side=3, target_px=150)
    assert grid.shape == (152, 152, 3) and grid.dtype == np.uint8
    factor = 6
    tile = grid[52 : 52 + 48 : factor, 52 : 52 + 48 : factor]
    expected = images[4].transpose(1, 2, 0)
    assert (tile == expected).all()
    assert (grid[:48, :48] == grid[:48:factor, :48:factor].repeat(6, 0).repeat(6, 1)).all()
    assert (grid[104:, 104:] == 244).all()


def test_large_images_are_shown_fewer_at_a_time() -> None:
    images = np.zeros((64, 3, 256, 256), np.uint8)
    assert tile_images(images, side=8, target_px=560).shape == (3 * 260 - 4, 3 * 260 - 4, 3)


def test_overview_has_every_variant_and_says_what_is_missing(tmp_path: Path) -> None:
    words = _words(sample_overview(fake_results.partial(tmp_path), denoise=True))
    for expected in ("digits", "NCSN", "NCSN$_{5}$", "NCSNv2", "running", "failed", "diverged"):
        assert expected in words.splitlines()
    assert "raw, iteration 5,000, seed 0" in words
    assert "budget “quick”" in words


def test_samples_come_from_the_selected_snapshot(tmp_path: Path) -> None:
    results = fake_results.complete(tmp_path)
    later = [replace(sample, iteration=6000) for sample in results.samples]
    picture = sample_grid(
        replace(results, samples=later + results.samples), "digits", "NCSNv2", denoise=True
    )
    assert "EMA, iteration 5,000, seed 0" in _words(picture)
    assert len(grid_keys(results)) == 8


def test_unreadable_samples_are_named_not_raised(tmp_path: Path) -> None:
    results = fake_results.complete(tmp_path)
    (tmp_path / "0.npy").write_bytes(b"not an array")
    np.save(tmp_path / "2.npy", np.zeros((4, 8, 8), np.float32))
    (tmp_path / "4.npy").unlink()
    words = _words(sample_overview(results, denoise=True))
    assert "cannot read 0.npy: CorruptFile" in words
    assert "2.npy: float32, shape (4, 8, 8)" in words
    assert "cannot read 4.npy: FileNotFoundError" in words


@pytest.mark.parametrize(
    "build",
    [
        lambda path: fake_results.complete(path, datasets=("digits", "cifar10-jpeg"), n_seeds=2),
        fake_results.partial,
        fake_results.hostile,
        lambda _: fake_results.empty(),
    ],
    ids=["complete", "partial", "hostile", "empty"],
)
def test_every_figure_is_saved_whole(build: Build, tmp_path: Path) -> None:
    results = build(tmp_path / "data")
    pictures = [
        distance_curves(results, denoise=False),
        ema_curves(results, denoise=True),
        loss_curves(results),
        sample_overview(results, denoise=False),
    ]
    for picture in pictures:
        png, svg = save_picture(picture, tmp_path / "figures")
        assert png.read_bytes().startswith(b"\x89PNG")
        assert ElementTree.parse(svg).getroot().tag.endswith("svg")
        assert "Budget “quick”" in picture.caption
        assert picture.alt
    assert len(list((tmp_path / "figures").iterdir())) == 2 * len(pictures)


def test_the_same_results_give_the_same_files(tmp_path: Path) -> None:
    results = fake_results.complete(tmp_path)
    files = [save_picture(loss_curves(results), tmp_path / name) for name in ("a", "b")]
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]


def test_text_is_no_mathematics_and_no_path() -> None:
    assert for_figure("$x$ NCSN_1,2") == r"\$x\$ NCSN$_{1{,}2}$"
    slugs = [file_slug(text) for text in ("../../etc", "a b", "a/b", "digits", "NCSN_1,2")]
    assert len(set(slugs)) == 5
    assert not any("/" in slug or slug.startswith(".") for slug in slugs)
    assert slugs[3] == "digits"
