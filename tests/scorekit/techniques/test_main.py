"""``python -m scorekit.techniques design``: its text, its files, its check and its refusals."""

import csv

import numpy as np
import pytest
from scipy.spatial.distance import pdist

from scorekit.data.store import Dataset
from scorekit.techniques import __main__ as command
from scorekit.techniques.frontier import design_frontier

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 1, 4, 4)).astype(np.uint8)


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_digits_give_tables_a_picture_and_their_text(tmp_path, capsys):
    root = str(tmp_path / "data")
    asked = ["design", "digits", "--evaluations", "215", "--data-root", root, "--out"]
    assert command.main([*asked, str(tmp_path / "a")]) == 0
    printed = capsys.readouterr().out
    assert "digits: D = 64, 1,500 training images" in printed
    assert printed.count("<- Technique 2, C = 0.5") == 1
    names = ["design.png", "design.svg", "frontier.csv", "sigma_1.csv"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == names
    frontier = rows_of(tmp_path / "a" / "frontier.csv")
    scales = rows_of(tmp_path / "a" / "sigma_1.csv")
    designs = design_frontier(float(scales[0]["sigma_1"]), 64, 215)
    assert [(row["L"], row["T"]) for row in frontier] == [
        (str(made.ladder.n_levels), str(made.ladder.n_steps_each)) for made in designs
    ]
    for row, made in zip(frontier, designs, strict=True):
        assert float(row["steady state: steady"]) == made.steps["steady state"].steady
        assert row["technique_2"] == str(made.chosen)
        line = f"{made.coverage:.3f}  {made.ladder.n_levels:>3}  {made.ladder.n_steps_each:>2}  "
        assert line in printed
    assert command.main([*asked, str(tmp_path / "b")]) == 0
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_sigma_1_is_measured_with_its_bound():
    rows = command.sigma_rows(IMAGES, 0.25)
    distances = pdist(IMAGES.reshape(40, -1) / 255)
    assert [row["quantile"] for row in rows] == [None, 0.99, 0.9, 0.5, 0.25]
    expected = [distances.max(), *np.quantile(distances, [0.99, 0.9, 0.5, 0.25])]
    assert [row["sigma_1"] for row in rows] == pytest.approx(expected, rel=1e-5)
    bounds = np.exp(-(distances.max() ** 2) / (8 * np.square(expected))) / 2
    assert [row["bound"] for row in rows] == pytest.approx(bounds, rel=1e-4)
    with pytest.raises(ValueError, match="the images are too alike"):
        command.sigma_rows(np.concatenate([np.repeat(IMAGES[:1], 39, 0), IMAGES[1:2]]))


def test_a_quantile_takes_the_maximums_place(tmp_path, capsys):
    asked = ["design", "digits", "--evaluations", "100", "--data-root", str(tmp_path)]
    assert command.main([*asked, "--quantile", "0.5"]) == 0
    printed = capsys.readouterr().out
    scale = next(line for line in printed.splitlines() if "quantile 0.5 " in line).split()[2]
    assert f"from sigma_1 = {scale} (the quantile 0.5) to 0.01" in printed


def test_a_check_samples_what_the_frontier_says(monkeypatch):
    monkeypatch.setattr(command, "_SAMPLES", 400)
    dataset = Dataset(name="x", train=IMAGES, test=IMAGES[:2], flip=False, fingerprint="")
    designs = design_frontier(3.0, 16, 60)
    rows = command.check_rows(dataset, designs)
    *sampled, true = rows
    assert {(row["L"], row["T"]) for row in sampled} <= {
        (made.ladder.n_levels, made.ladder.n_steps_each) for made in designs
    }
    assert {row["T"] for row in sampled} >= {1, designs[-1].ladder.n_steps_each}
    for row in sampled:
        # 400 x 16 numbers: the spread of their variance is 2 %.
        assert row["variance"] == pytest.approx(row["predicted"], rel=0.08)
    doubled = next(r for r in sampled if r["T"] == 1 and r["rule"] == "Technique 4")
    assert doubled["predicted"] == pytest.approx(2, abs=0.01)
    assert true["rule"] == "true samples" and true["off"] < 1e-3
    assert "true samples" in command._check_text(rows)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["digits", "--evaluations", "1"], "--evaluations 1: at least 2 are needed"),
        (["digits", "--evaluations", "9", "--quantile", "1"], "--quantile 1.0: must lie in (0, 1)"),
        (["nothing", "--evaluations", "9"], "dataset=nothing: unknown"),
        (["digits", "--evaluations", "9", "--image-size", "9"], "image"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, arguments, line):
    assert command.main(["design", *arguments, "--data-root", str(tmp_path / "data")]) == 2
    error = capsys.readouterr().err
    assert line in error and error.startswith("error: ") and error.count("\n") == 1


def test_folders_are_data_too(tmp_path, capsys):
    from PIL import Image

    folder = tmp_path / "mine"
    folder.mkdir()
    for i, image in enumerate(IMAGES):
        Image.fromarray(image[0]).save(folder / f"{i}.png")
    asked = ["design", str(folder), "--evaluations", "40", "--image-size", "4"]
    assert command.main([*asked, "--data-root", str(tmp_path / "data")]) == 0
    assert "D = " in capsys.readouterr().out
    (tmp_path / "file").write_text("")
    asked += ["--out", str(tmp_path / "file")]
    assert command.main([*asked, "--data-root", str(tmp_path / "data")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
