"""What a grid says of its trained networks, against the same computed from its files."""

import hashlib
import json
from types import SimpleNamespace

import numpy as np
import oracle
import pytest
import torch
from grid_files import Grid, evaluations, weights
from PIL import Image
from training_oracle import TEST_STEP, total_loss

from ablations.studies.ncsnv2.collect import collect
from ablations.studies.ncsnv2.sections.ablation import ablation_table

pytestmark = pytest.mark.slow

SETTINGS = (False, True)  # without and with the denoising step


@pytest.fixture(scope="module")
def grid(whole):
    return Grid(whole[0])


@pytest.fixture(scope="module")
def cells(grid):
    """The cells that were run, by dataset, label and seed."""
    results = collect(grid.out)
    done = results.cells[results.cells["status"] == "done"]
    found = {key(cell): cell for cell in grid.cells}
    names = list(done[["dataset", "variant", "seed"]].itertuples(index=False, name=None))
    assert len(names) == 7
    return {name: found[name] for name in names}


@pytest.fixture(scope="module")
def results(grid):
    return collect(grid.out)


def key(cell):
    variant = "NCSNv2" if cell["variant"]["ema"] else "NCSN"
    return cell["data"]["name"], variant + (cell["row"] and f", {cell['row']}"), cell["seed"]


def snapshots(cell):
    every, last = cell["train"]["snapshot_interval"], cell["train"]["iterations"]
    return sorted({*range(every, last + 1, every), last})


def rows(frame, cell, **columns):
    """The rows of a frame about a cell."""
    name, variant, seed = key(cell)
    wanted = {"dataset": name, "variant": variant, "seed": seed} | columns
    for column, value in wanted.items():
        frame = frame[frame[column] == value]
    return frame


@pytest.fixture(scope="module")
def distances(grid, cells):
    """Selection distances computed again: {cell: {denoise: {iteration: distance}}}."""
    found = {}
    for name, cell in cells.items():
        space = cell["data"]["extractor"]
        real = oracle.features(grid.real(cell, "test"), space)[0]
        found[name] = {d: {} for d in SETTINGS}
        for iteration in snapshots(cell):
            stages = grid.samples(cell, iteration, cell["n_selection"])
            for d in SETTINGS:
                fake = oracle.features(grid.images(stages, d), space)[0]
                found[name][d][iteration] = oracle.frechet(fake, real)
    return found


@pytest.fixture(scope="module")
def chosen(distances):
    """The snapshot of the smallest distance: {cell: {denoise: iteration}}."""
    return {
        name: {d: min(of, key=of.get) for d, of in by.items()} for name, by in distances.items()
    }


def test_the_grid_can_tell_one_thing_from_another(cells, chosen):
    assert {iteration for by in chosen.values() for iteration in by.values()} == {6, 12}
    assert {cell["n_final"] > cell["n_selection"] for cell in cells.values()} == {True}
    assert {cell["data"]["channels"] for cell in cells.values()} == {1, 3}


def test_noise_scales_and_step_sizes_follow_the_techniques(grid, cells):
    for cell in cells.values():
        train, data = cell["train"], cell["data"]
        if not cell["variant"]["noise_scales"]:
            ladder = (train["sigma_begin"], train["sigma_end"], train["n_levels"])
            assert (*ladder, cell["step_size"]) == (1, 0.01, 10, 2e-5)
            continue
        images = grid.data(data["store"]).train
        first, last = oracle.technique_1(images), 1.0
        n_levels = oracle.technique_2(first, last, images[0].size, 0.001)
        assert train["sigma_begin"] == pytest.approx(first, rel=1e-5)
        assert (train["sigma_end"], train["n_levels"]) == (last, n_levels)
        assert cell["sampling_levels"] == (5 if "5×3" in cell["row"] else n_levels)
        assert cell["n_steps_each"] == (3 if "5×3" in cell["row"] else 2)
        sigmas = np.geomspace(first, last, cell["sampling_levels"])
        assert cell["step_size"] == pytest.approx(oracle.step_size(cell, sigmas), rel=5e-3)


def difference(found, expected):
    return np.abs(found.astype(int) - expected.astype(int))


def test_samples_are_those_of_the_papers_algorithms(grid, cells, chosen):
    for name, cell in cells.items():
        for iteration in snapshots(cell):
            drawn = oracle.draw(grid, cell, iteration, np.arange(cell["n_final"]))
            for d in SETTINGS:
                n = cell["n_final" if iteration == chosen[name][d] else "n_selection"]
                found = grid.images(grid.samples(cell, iteration, n), d)
                assert found.shape == drawn[d][:n].shape
                wrong = difference(found, drawn[d][:n])
                assert wrong.max() <= 1 and wrong.mean() < 0.01, (name, iteration, d)


def test_samples_in_bfloat16_are_those_of_bfloat16(whole):
    grid = Grid(whole[1])
    (cell,) = (c for c in grid.cells if key(c)[1] == "NCSNv2")
    for iteration in snapshots(cell):
        index = np.arange(cell["n_selection"])
        half, single = (oracle.draw(grid, cell, iteration, index, bf16=b) for b in (True, False))
        for d in SETTINGS:
            found = grid.images(grid.samples(cell, iteration, len(index)), d)
            assert difference(found, half[d]).mean() < difference(found, single[d]).mean() / 3


def check_final_distances(grid, cell, results, chosen):
    space = cell["data"]["extractor"]
    real = oracle.features(grid.real(cell, "test"), space)[0]
    for d in SETTINGS:
        (last,) = rows(results.distances, cell, denoise=d, purpose="final").to_dict("records")
        assert last["iteration"] == chosen[d]
        stages = grid.samples(cell, chosen[d], cell["n_final"])
        fake = oracle.features(grid.images(stages, d), space)[0]
        assert last["distance"] == pytest.approx(oracle.frechet(fake, real), rel=1e-6)
        assert (last["n"], last["n_reference"]) == (len(fake), len(real))
        assert last["weights"] == {"raw": "raw", "ema": "EMA"}[weights(cell)]
        assert (last["reference"], last["feature_space"]) == ("test", space)
        assert set(rows(results.qualities, cell, denoise=d)["iteration"]) == {chosen[d]}
        shown = {
            s.iteration
            for s in results.samples
            if (s.selected, s.denoise) == (True, d) and (s.dataset, s.variant, s.seed) == key(cell)
        }
        assert shown == {chosen[d]}


def test_each_denoise_setting_has_the_snapshot_of_its_own_distances(whole):
    grid, results = Grid(whole[1]), collect(whole[1])
    (cell,) = (c for c in grid.cells if key(c)[1] == "NCSNv2")
    frame = rows(results.distances, cell, purpose="selection")
    best = frame.loc[frame.groupby("denoise")["distance"].idxmin()]
    chosen = dict(zip(best["denoise"], best["iteration"], strict=True))
    assert set(chosen.values()) == {6, 12}
    check_final_distances(grid, cell, results, chosen)
    check_dumps(grid, cell, chosen)
    assert [s.iteration for s in results.interpolations] == [chosen[True]]
    assert [s.iteration for s in results.neighbours] == [chosen[True]]


def test_distances_and_the_snapshots_chosen_by_them(grid, cells, results, distances, chosen):
    for name, cell in cells.items():
        for d in SETTINGS:
            frame = rows(results.distances, cell, denoise=d, purpose="selection")
            found = dict(zip(frame["iteration"], frame["distance"], strict=True))
            assert found == pytest.approx(distances[name][d], rel=1e-6)
            assert set(frame["n"]) == {cell["n_selection"]}
        check_final_distances(grid, cell, results, chosen[name])


def test_the_table_is_the_mean_over_seeds(cells, results):
    table = ablation_table(results).raw
    for dataset in ("digits", "imagefolder:photos"):
        for d in SETTINGS:
            pair = [
                rows(results.distances, cells[dataset, "NCSNv2", seed], denoise=d, purpose="final")
                for seed in (0, 1)
            ]
            values = [float(frame["distance"].iloc[0]) for frame in pair]
            of = (table["dataset"] == dataset) & (table["variant"] == "NCSNv2")
            (row,) = table[of & (table["denoise"] == d)].to_dict("records")
            assert row["distance_mean"] == pytest.approx(sum(values) / 2)
            assert row["distance_std"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
            assert (row["n_seeds"], row["n"], row["n_reference"]) == (
                2,
                *pair[0][["n", "n_reference"]].iloc[0],
            )
            iterations = {str(frame["iteration"].iloc[0]) for frame in pair}
            assert set(row["iteration"].split(";")) == iterations


def test_the_other_metrics_of_the_final_samples(grid, cells, results, chosen):
    for name, cell in cells.items():
        space, seed = cell["data"]["extractor"], cell["seed"]
        real = oracle.features(grid.real(cell, "test"), space)[0]
        for d in SETTINGS:
            stages = grid.samples(cell, chosen[name][d], cell["n_final"])
            fake, logits = oracle.features(grid.images(stages, d), space)
            frame = rows(results.qualities, cell, denoise=d).set_index("metric")
            assert set(frame["iteration"]) == {chosen[name][d]}
            score, distance = (
                oracle.inception_score(logits),
                oracle.kernel_distance(fake, real, seed),
            )
            equal = real[: len(fake)]
            precision = oracle.share_within(fake, equal)
            recall = oracle.share_within(equal, fake)
            expected = {"IS": score[0], "KID": distance[0]}
            expected |= {"precision": precision, "recall": recall}
            expected["f_score"] = 2 * precision * recall / max(precision + recall, 1e-5)
            density, coverage = oracle.density_coverage(fake, equal)
            expected |= {"density": density, "coverage": coverage}
            expected["interval"] = oracle.frechet(fake, real)
            expected["infinite n"] = oracle.infinite_n(fake, real, seed)
            assert frame["value"].to_dict() == pytest.approx(expected, rel=1e-5, abs=1e-9)
            error, low, high = oracle.interval(fake, real, seed)
            found = frame.loc["interval"]
            assert (found["std"], found["low"], found["high"]) == pytest.approx(
                (error, low, high), rel=1e-5
            )
            assert frame.loc["IS", "std"] == pytest.approx(score[1], rel=1e-5)
            assert frame.loc["KID", "std"] == pytest.approx(distance[1], rel=1e-5, abs=1e-12)
            assert set(frame["n"]) == {len(fake)}
            against_equal = ("precision", "recall", "f_score", "density", "coverage")
            assert frame["n_reference"].to_dict() == {
                metric: len(equal if metric in against_equal else real) for metric in frame.index
            }


def test_reference_rows(grid, cells, results):
    for cell in {cell["data"]["name"]: cell for cell in cells.values()}.values():
        frame = results.references[results.references["dataset"] == cell["data"]["name"]]
        found = dict(zip(frame["name"], frame["distance"], strict=True))
        assert found == pytest.approx(oracle.reference_rows(grid, cell), rel=1e-6)
        n_real = len(grid.data(cell["data"]["store"]).test)
        assert set(frame["n"]) == {cell["n_final"]} and set(frame["n_reference"]) == {n_real}


def check_dumps(grid, cell, chosen):
    train = grid.data(cell["data"]["store"]).train
    random = np.random.Generator(np.random.Philox(key=cell["seed"]))
    order = random.choice(len(train), cell["n_dump"], replace=False)
    dataset, variant, seed = key(cell)
    for d in SETTINGS:
        wanted = {"dataset": dataset, "variant": variant, "seed": seed, "denoise": d}
        ((folder, manifest),) = [
            (path.parent, record)
            for path in grid.out.glob("samples/*/manifest.json")
            if wanted.items() <= (record := json.loads(path.read_text())).items()
        ]
        path = grid.train(cell).folder / f"snapshot-{chosen[d]:07d}.pt"
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert (manifest["iteration"], manifest["checkpoint_sha256"]) == (chosen[d], digest)
        assert manifest["weights"] == weights(cell)
        stages = grid.samples(cell, chosen[d], cell["n_final"])
        images = {"fake": grid.images(stages, d)[: cell["n_dump"]], "real": train[order]}
        for kind, expected in images.items():
            found = np.stack([np.array(Image.open(p)) for p in sorted((folder / kind).iterdir())])
            found = found.reshape(*found.shape[:3], -1).transpose(0, 3, 1, 2)
            assert np.array_equal(found, expected)


def test_dumps_hold_the_chosen_samples_beside_training_images(grid, cells, chosen):
    for name, cell in cells.items():
        check_dumps(grid, cell, chosen[name])


def test_interpolations_mix_the_noise_of_two_seeds(grid, cells, results, chosen):
    assert [(s.dataset, s.seed) for s in results.interpolations] == [("imagefolder:photos", 1)]
    for shown in results.interpolations:
        name = (shown.dataset, shown.variant, shown.seed)
        assert (shown.denoise, shown.iteration) == (True, chosen[name][True])
        angles = np.tile(np.arange(10) * np.pi / 18, 6)
        index = np.repeat(np.arange(6), 10)
        mixing = (shown.seed + 2**31, angles)
        drawn = oracle.draw(grid, cells[name], shown.iteration, index, mixing=mixing)
        found = np.load(shown.path)
        assert found.shape[:2] == (6, 10)
        wrong = difference(found.reshape(drawn[True].shape), drawn[True])
        assert wrong.max() <= 1 and wrong.mean() < 0.01


def test_neighbours_are_the_nearest_training_images_flips_included(grid, cells, results, chosen):
    assert len(results.neighbours) == 1
    for shown in results.neighbours:
        cell = cells[shown.dataset, shown.variant, shown.seed]
        space, data = cell["data"]["extractor"], grid.data(cell["data"]["store"])
        assert (shown.denoise, shown.iteration) == (True, chosen[key(cell)][True])
        stages = grid.samples(cell, shown.iteration, cell["n_final"])
        queries = {"fake": grid.images(stages, True), "held_out": data.test[: cell["n_final"]]}
        train = oracle.features(np.array(data.train), space)[0]
        for kind, images in queries.items():
            both = [np.array(images), np.ascontiguousarray(images[..., ::-1])]
            own, mirrored = (oracle.features(x, space)[0] for x in both)
            index, near, flipped = oracle.neighbours(own, mirrored, train)
            with np.load(shown.path) as found:
                assert found[f"{kind}_distance"] == pytest.approx(near, rel=1e-4, abs=1e-4)
                assert (found[f"{kind}_train_index"] == index).mean() > 0.95
                agree = found[f"{kind}_flipped"] == flipped
                assert agree.mean() > 0.9 and flipped.any()


def test_losses_and_timings_are_those_recorded(grid, cells, results):
    for cell in cells.values():
        train = grid.train(cell)
        conditional = results.losses["training"].str.startswith("conditional")
        frame = results.losses[
            (results.losses["dataset"] == cell["data"]["name"])
            & (results.losses["seed"] == cell["seed"])
            & (conditional == cell["train"]["conditional"])
        ]
        with np.load(train.folder / "losses.npz") as losses:
            assert list(frame["loss"]) == losses["train"].tolist()
            assert list(frame["iteration"]) == list(range(1, cell["train"]["iterations"] + 1))
            last = cell["train"]["iterations"]
            watched = losses["test"][last // cell["train"]["test_interval"] - 1]
            assert watched == pytest.approx(oracle.test_loss(grid, cell, last), rel=1e-4)
        (row,) = rows(results.timings, cell).to_dict("records")
        there = [
            stage
            for stage in grid.stages.values()
            if stage.kind == "sample"
            and stage.needs == [train.folder.name]
            and all(stage.settings[k] == cell[k] for k in ("sampler", "n_steps_each", "step_size"))
            and stage.settings["n_levels"] == cell["sampling_levels"]
        ]
        counts = {stage.result["score_evaluations_per_sample"] for stage in there}
        assert counts == {row["score_evaluations_per_sample"]} == {evaluations(cell)}
        counted = sum(len(grid.images([stage], True)) for stage in there)
        assert row["n_sampled"] == counted
        seconds = sum(stage.result["sampling_s"] for stage in there)
        assert row["sampling_s"] == pytest.approx(seconds)
        assert row["images_per_s"] == pytest.approx(counted / seconds)
        assert row["training_s"] == train.result["training_s"]


def test_the_loss_of_a_snapshot_is_of_both_splits_alike(grid, cells):
    for cell in cells.values():
        data, settings = cell["data"], SimpleNamespace(**cell["train"])
        n = min(90, data["n_train"], data["n_test"])
        scales = (settings.sigma_begin, settings.sigma_end, settings.n_levels)
        ladder = torch.tensor(np.geomspace(*scales), dtype=torch.float32)
        for iteration in snapshots(cell):
            network = oracle.network_of(grid, cell, iteration)
            place = {"iteration": iteration, "weights": weights(cell)}
            found = grid.stage("loss", [grid.train(cell)], **place)
            draws = -(-90 // n)
            assert (found.result["n"], found.result["draws"]) == (n, draws)
            means = {}
            for split in ("train", "test"):
                images = grid.real(cell, split)[:n]
                totals = [
                    total_loss(
                        *(network, settings, ladder, images, TEST_STEP - 1 - draw),
                        objective=settings.objective,
                        flip=False,
                    ).item()
                    for draw in range(draws)
                ]
                means[split] = sum(totals) / (n * draws)
                assert found.result[split] == pytest.approx(means[split], rel=1e-5)
            gap = means["test"] - means["train"]
            assert found.result["gap"] == pytest.approx(gap, abs=1e-5 * means["test"])
