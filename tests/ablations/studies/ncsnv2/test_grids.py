import dataclasses
import errno
import json
import os
from functools import partial

import pytest
from resolved import facts, whole_jobs

from ablations.engine.settings import apply_overrides
from ablations.pipeline.cell import cell_from_json
from ablations.pipeline.data import data_facts
from ablations.pipeline.variants import NCSNV2, PAPER_VARIANTS
from ablations.studies.ncsnv2.grids import GRIDS, budget_cells, load_grid, rows_beside
from ablations.studies.ncsnv2.resolution import resolve
from ablations.studies.ncsnv2.rows import settings_apart
from ablations.studies.ncsnv2.settings import BUDGETS
from scorekit.data.registry import prepare
from scorekit.techniques.noise_scales import ladder_ratio
from scorekit.techniques.step_size import (
    consistent_step_size,
    langevin_step_size,
    steady_state_step_size,
)


def write(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return str(path)


def test_built_in_grids():
    assert [row.variant.slug for row in load_grid("paper").rows] == [
        "ncsn",
        "ncsn_5",
        "ncsn_1245",
        "ncsnv2",
        "ncsnv2",
    ]
    assert len(GRIDS["factorial"].rows) == 8


def test_a_users_grid(tmp_path):
    text = (
        'variants = ["ncsnv2", "NCSN_5", "ncsnv2"]\ndatasets = ["digits"]\nseeds = 2\n'
        'budget = "quick"\n[set]\nwidth = 8\nflip = false\n'
    )
    grid = load_grid(write(tmp_path, text))
    assert grid.name == "mine"
    assert [row.variant.slug for row in grid.rows] == ["ncsnv2", "ncsn_5"]
    assert grid.overrides == {"width": 8, "flip": False}
    assert (grid.seeds, grid.budget, grid.datasets) == (2, "quick", ("digits",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("variants = [", "is not TOML"),
        ("x = " + "[" * 3000 + "]" * 3000, "is nested too deeply to be read"),
        ("seeds = " + "9" * 5000, "is not TOML: Exceeds the limit"),
        ("", "must name at least one variant"),
        ('variants = "ncsn"', "must be a list of texts"),
        ('variants = ["ncsnx"]', "variant 'ncsnx' is unknown"),
        ('variants = ["ncsn"]\ncolour = 1', "key 'colour' is unknown"),
        ('variants = ["ncsn"]\nseeds = "two"', "seeds = 'two' must be a whole number"),
        ('variants = ["ncsn"]\nbudget = "huge"', "budget = 'huge'; known: paper, hour, quick"),
        ("rows = 1", r"rows must be tables, each begun by \[\[rows\]\]"),
        ('[[rows]]\nsampler = "consistent"', r"\[\[rows\]\] needs variant"),
        ('[[rows]]\nvariant = "ncsnv2"\nwide = 8', r"\[\[rows\]\] key 'wide' is unknown"),
        ('[[rows]]\nvariant = "ncsnv2"\nwidth = "w"', "width = 'w' is not a whole number"),
        ('[[rows]]\nvariant = "ncsnv2"\nimage_size = 8', "image_size = 8: all rows of a data set"),
        ('[[rows]]\nvariant = "ncsnv2"\nbudget = "huge"', "budget = 'huge'; known: paper, hour"),
        ('[[rows]]\nvariant = "ncsnv2"\nlabel = 3', "label = 3 must be a text of one line"),
        ('variants = ["ncsn"]\nvary = 3', "vary must be a table of lists"),
        ('variants = ["ncsn"]\n[vary]\nwidth = []', "vary must be a table of lists"),
        ('variants = ["ncsn"]\n[vary]\nwide = [1]', r"\[vary\] wide: unknown; known: budget"),
        ('[[rows]]\nvariant = "ncsnv2"\nstart = "x"', "start = 'x' is not one of 'uniform'"),
        ('variants = ["ncsn"]\nset = 3', "set must be a table"),
        ('variants = ["ncsn"]\n[set]\nwidth = "w"', "width = 'w' is not a whole number"),
    ],
)
def test_a_bad_grid_file_is_one_clear_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        load_grid(write(tmp_path, text))


def test_facts_of_the_digits_and_cells_of_a_grid(tmp_path):
    data = data_facts("digits", tmp_path, image_size=None, inception_weights=None)
    assert (data.channels, data.image_size, data.flip) == (1, 8, False)
    assert (data.n_train, data.n_test, data.extractor) == (1500, 297, "digits-cnn")
    assert data.max_distance == pytest.approx(4.8, abs=0.05)
    # Measured once, then read.
    assert data == data_facts("digits", tmp_path, image_size=None, inception_weights=None)
    cells = budget_cells(GRIDS["paper"], BUDGETS["quick"], {}, [data], seeds=2)
    assert len(cells) == len({cell.name for cell in cells}) == 10
    assert cells[:8] == [
        resolve(BUDGETS["quick"].settings, variant, data, seed)
        for variant in PAPER_VARIANTS
        for seed in range(2)
    ]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return data_facts("digits", folder, image_size=None, inception_weights=None)


def test_rows_that_differ_in_sampling_only_share_one_training(digits):
    cells = budget_cells(GRIDS["steps"], BUDGETS["quick"], {}, [digits], seeds=1)
    assert len({cell.train_stage().digest for cell in cells}) == 1
    n_levels = cells[0].train.n_levels
    annealed, consistent = cells[:5], cells[5:]
    shares = (25 / 232, 100 / 232, 1, 1, 1)
    assert [c.sampling_levels for c in annealed] == [max(2, round(n_levels * s)) for s in shares]
    assert [cell.n_steps_each for cell in cells] == [1, 1, 1, 3, 5, 1, 3, 5]
    for cell in annealed:
        assert cell.score_evaluations == cell.sampling_levels * cell.n_steps_each + 1
    for cell in consistent:
        assert cell.score_evaluations == (n_levels - 1) * cell.n_steps_each + 1
    assert annealed[-1].label == f"NCSNv2, {n_levels}×5"
    assert annealed[-1].name == f"digits/ncsnv2-{n_levels}x5/seed0"
    assert consistent[-1].name == f"digits/ncsnv2-consistent-{n_levels}x5/seed0"
    # The variant's own row, at the same T, is the same work under another name.
    settings = apply_overrides(BUDGETS["quick"].settings, {"n_steps_each": 5})
    own = resolve(settings, NCSNV2, digits, seed=0)
    assert own.name == "digits/ncsnv2/seed0"
    final = {"denoise": True, "final": True}
    assert own.distance_stage(600, **final) == annealed[-1].distance_stage(600, **final)


def test_step_sizes_follow_the_ladder_that_is_sampled(digits):
    cells = budget_cells(GRIDS["steps"], BUDGETS["quick"], {}, [digits], seeds=1)
    rules = {
        "Technique 4": langevin_step_size,
        "steady state": steady_state_step_size,
        "consistent": consistent_step_size,
    }
    expected = ["steady state"] * 3 + ["Technique 4"] * 2 + ["consistent"] * 3
    assert [cell.step_rule for cell in cells] == expected
    for cell in cells:
        gamma = ladder_ratio(cell.ladder.sigmas)
        assert cell.step_size == rules[cell.step_rule](gamma, 0.01, cell.n_steps_each)


def test_a_rows_own_step_size_is_given_and_a_presets_published(digits, tmp_path):
    text = (
        'variants = ["ncsn", "ncsnv2"]\n[[rows]]\nvariant = "ncsnv2"\nstep_size = 1e-5\n'
        '[[rows]]\nvariant = "ncsnv2"\nsampler = "consistent"\nn_steps_each = 1\n'
        "step_size = 5e-6\n"
        '[[rows]]\nvariant = "ncsnv2"\nsampler = "consistent"\n'
        '[[rows]]\nvariant = "ncsnv2"\nsampling_levels = 20\nstep_size = 1e-5\n'
    )
    cells = budget_cells(
        load_grid(write(tmp_path, text)), BUDGETS["quick"], {"preset": "cifar10"}, [digits], seeds=1
    )
    assert [(cell.step_rule, cell.step_size) for cell in cells] == [
        ("Table 4", 2e-5),
        ("Table 4", 6.2e-6),
        ("given", 1e-5),
        ("given", 5e-6),
        ("consistent", pytest.approx(1.028e-6, rel=1e-3)),
        ("given", 1e-5),
    ]


def test_consistent_sampling_is_a_row_beside_the_variants_own(digits, tmp_path):
    own, consistent = budget_cells(GRIDS["paper"], BUDGETS["quick"], {}, [digits], seeds=1)[3:]
    assert (own.label, consistent.label) == ("NCSNv2", "NCSNv2, consistent")
    assert own.train_stage() == consistent.train_stage()
    assert own.sample_stages(600, final=False) != consistent.sample_stages(600, final=False)
    levels = consistent.sampling_levels
    assert consistent.score_evaluations == (levels - 1) * consistent.n_steps_each + 1
    text = (
        'variants = ["ncsnv2"]\n[[rows]]\nvariant = "ncsnv2"\nsampler = "consistent"\n'
        "sampling_levels = 5\n"
    )
    grid = load_grid(write(tmp_path, text))
    cells = budget_cells(grid, BUDGETS["quick"], {}, [digits], seeds=1)
    assert [cell.label for cell in cells] == ["NCSNv2", "NCSNv2, consistent, 5×10"]


def rows(tmp_path, key, values):
    text = "".join(f'[[rows]]\nvariant = "ncsnv2"\n{key} = {value}\n' for value in values)
    return load_grid(write(tmp_path, text))


def test_rows_that_come_to_one_cell_are_one_and_others_of_its_name_are_refused(digits, tmp_path):
    same = rows(tmp_path, "sampling_levels", (0.51, 0.5101))
    assert len(budget_cells(same, BUDGETS["quick"], {}, [digits], seeds=1)) == 1
    other = rows(tmp_path, "step_size", (1e-5, 1.0001e-5))
    with pytest.raises(ValueError, match="two rows are called NCSNv2, ε=1e-05 on digits"):
        budget_cells(other, BUDGETS["quick"], {}, [digits], seeds=1)


def test_a_feature_space_by_name(tmp_path):
    arguments = {"image_size": None, "inception_weights": None}
    data = data_facts("patches", tmp_path, **arguments, extractor="patches-cnn")
    assert data.extractor == "patches-cnn"
    with pytest.raises(
        ValueError, match="--extractor vgg: unknown; known are cifar-cnn, digits-cnn"
    ):
        data_facts("patches", tmp_path, **arguments, extractor="vgg")


def test_another_objective_is_another_training_and_the_same_variant(digits):
    cells = budget_cells(GRIDS["objectives"], BUDGETS["quick"], {}, [digits], seeds=1)
    assert [cell.label for cell in cells] == ["NCSN_5", "NCSN_5, ssm_vr", "NCSN_5, fd_ssm_vr"]
    assert [cell.train.objective for cell in cells] == ["dsm", "ssm_vr", "fd_ssm_vr"]
    assert len({cell.train_stage().digest for cell in cells}) == 3
    assert len({cell.sampling_levels for cell in cells}) == 1
    changed = {"fd_epsilon": 0.1}
    cells = budget_cells(GRIDS["objectives"], BUDGETS["quick"], changed, [digits], seeds=1)
    # Only finite differences have an epsilon: the other trainings stay what they were.
    assert [cell.train.fd_epsilon for cell in cells] == [None, None, 0.1]


def test_a_read_only_data_root_is_used_as_it_is(tmp_path, monkeypatch, caplog):
    prepare("digits", tmp_path)

    def refused(*arguments):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("ablations.pipeline.data.write_sealed_json", refused)
    facts = data_facts("digits", tmp_path, image_size=None, inception_weights=None)
    assert facts.max_distance > 0 and "is read-only" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["digits-v1"]


def quick(side, overrides=None):
    """The paper's cells under the quick budget on images of a side, and the FLOPs of their jobs."""
    about = {8: (1, 6.0), 16: (3, 22.0), 32: (3, 50.0), 64: (3, 90.0), 128: (3, 190.0)}
    channels, distance = about[side]
    data = facts(image_size=side, channels=channels, max_distance=distance)
    cells = budget_cells(GRIDS["paper"], BUDGETS["quick"], overrides or {}, [data], 1)
    return cells, sum(job.flops for job in whole_jobs(cells))


@pytest.mark.parametrize("side", [32, 64, 128])
def test_the_quick_budget_takes_about_as_long_on_images_of_any_size(side):
    assert quick(side)[1] < 3 * quick(16)[1]


def test_the_quick_budget_follows_the_images_where_nothing_else_was_set():
    for side in (8, 16):
        train = quick(side)[0][0].train
        assert (train.width, train.iterations) == (16, 1800)
    own = quick(64, {"iterations": 900, "n_final": 40})[0][0]
    assert (own.train.width, own.train.iterations, own.n_selection, own.n_final) == (8, 900, 16, 40)


def test_a_row_has_any_setting_and_a_name(digits, tmp_path):
    text = (
        'variants = ["ncsnv2"]\n[[rows]]\nvariant = "ncsnv2"\nwidth = 8\nema_momentum = 0.99\n'
        '[[rows]]\nvariant = "ncsnv2"\nlabel = "paper’s width"\nwidth = 128\n'
        '[[rows]]\nvariant = "ncsnv2"\nbudget = "hour"\niterations = 10\n'
    )
    own, narrow, named, hour = budget_cells(
        load_grid(write(tmp_path, text)), BUDGETS["quick"], {"n_dump": 7}, [digits], seeds=1
    )
    assert [c.label for c in (own, narrow, named, hour)] == [
        *("NCSNv2", "NCSNv2, width=8, ema_momentum=0.99", "paper’s width"),
        "NCSNv2, budget=hour, iterations=10",
    ]
    assert named.name.startswith("digits/ncsnv2-paper-s-width+")
    assert (narrow.train.width, narrow.train.ema_momentum) == (8, 0.99)
    assert (named.train.width, named.own) == (128, (("width", 128),))
    quick, other = BUDGETS["quick"].settings, BUDGETS["hour"].settings
    assert (hour.train.iterations, hour.n_final) == (10, other.n_final)
    assert other.n_final != quick.n_final
    # The rest is the grid's: its budget's, and what was set for all.
    assert narrow.train.iterations == quick.iterations
    assert {c.n_dump for c in (own, narrow, named, hour)} == {7}
    assert cell_from_json(json.loads(json.dumps(named.to_json()))).own == named.own
    assert settings_apart([own, narrow, named]) == ["width", "ema_momentum"]


def test_values_are_crossed_and_rows_without_use_for_one_are_kept_once(digits, tmp_path):
    text = (
        'variants = ["ncsn", "ncsnv2"]\n[vary]\nn_steps_each = [2, 3]\nwidth = [4, 8]\n'
        '[[rows]]\nvariant = "ncsn_5"\nwidth = 6\nlabel = "mine"\n'
    )
    cells = budget_cells(load_grid(write(tmp_path, text)), BUDGETS["quick"], {}, [digits], seeds=1)
    # The third has a width of its own, and NCSN a T.
    assert [c.label for c in cells] == [
        *("NCSN, width=4", "NCSN, width=8"),
        *(f"NCSNv2, 21×{steps}, width={width}" for steps in (2, 3) for width in (4, 8)),
        "mine",
    ]
    assert [(c.n_steps_each, c.train.width) for c in cells[2:]] == [
        *((2, 4), (2, 8), (3, 4), (3, 8)),
        (100, 6),
    ]


def test_rows_beside_others_have_what_differs_as_their_own(digits):
    quick, paper = BUDGETS["quick"], BUDGETS["paper"]
    beside = partial(rows_beside, GRIDS["steps"], facts=[digits])
    same = beside(quick, {"width": 8}, base=quick, base_overrides={"width": 8})
    assert same == GRIDS["steps"]
    wider = beside(quick, {"width": 9}, base=quick, base_overrides={"width": 8, "n_dump": 0})
    assert wider.rows[0].common == (("n_dump", quick.settings.n_dump), ("width", 9))
    other = beside(paper, {}, base=quick, base_overrides={})
    cells = budget_cells(other, quick, {}, [digits], seeds=1)
    wanted = budget_cells(GRIDS["steps"], paper, {}, [digits], seeds=1)
    assert [c.train_stage() for c in cells] == [c.train_stage() for c in wanted]
    sides = [digits, facts(image_size=64, channels=3, max_distance=90.0)]
    with pytest.raises(ValueError, match="another for images of each size: give --set width"):
        beside(quick, {}, facts=sides, base=quick, base_overrides={"width": 9})
    with pytest.raises(ValueError, match="all rows of a folder have the same images"):
        beside(quick, {"image_size": 16}, base=quick, base_overrides={})


def test_averages_of_one_training_are_rows_that_share_it(digits):
    cells = budget_cells(GRIDS["ema"], BUDGETS["quick"], {}, [digits], seeds=2)
    assert len({cell.train_stage().digest for cell in cells}) == 2  # one for each seed
    assert {cell.train.ema_profiles for cell in cells} == {
        ("0.9", "0.97", "0.99", "power:0.02", "power:0.05", "power:0.1", "power:0.2")
    }
    assert [cell.weights for cell in cells if cell.seed == 0] == [
        *("raw", "0.9", "0.97", "0.99", "ema"),
        *("power:0.02", "power:0.05", "power:0.1", "power:0.2"),
    ]
    samples = {cell.sample_stages(600, final=False)[0].digest for cell in cells}
    assert len(samples) == len(cells)
    # Other trainings have none of them.
    grid = dataclasses.replace(GRIDS["ema"], rows=(*GRIDS["ema"].rows, *GRIDS["paper"].rows[:2]))
    plain = budget_cells(grid, BUDGETS["quick"], {}, [digits], seeds=1)[-2:]
    assert {cell.train.ema_profiles for cell in plain} == {()}


def test_successors_spend_alike_on_a_sample_and_share_a_training(digits):
    cells = budget_cells(GRIDS["successors"], BUDGETS["quick"], {}, [digits], seeds=1)
    sampled = cells[:10]
    assert len({cell.train_stage().digest for cell in sampled}) == 1
    assert len({cell.sample_stages(600, final=False)[0].digest for cell in cells}) == len(cells)
    assert all(195 < cell.score_evaluations <= 216 for cell in cells)
    told = [
        cell.train.resolved_conditioning
        for cell in budget_cells(
            GRIDS["noise-conditioning"], BUDGETS["quick"], {}, [digits], seeds=1
        )
    ]
    assert told == ["inverse_sigma", "none", "normalisation", "edm"]
