import dataclasses
import json
import pickle

import pytest
from resolved import cell, facts

from ablations.engine.stages import Stage
from ablations.pipeline.cell import cell_from_json
from ablations.pipeline.variants import ALL_VARIANTS, PAPER_VARIANTS, Variant
from scorekit.models.score_network import ARCHITECTURES
from scorekit.training.settings import identity


def test_ncsn_has_its_own_ladder_on_any_data_and_whatever_is_set():
    for data in (facts(), facts(image_size=64, max_distance=90.0)):
        plain = cell("ncsn", data=data, sigma_begin=30.0, n_levels=7, n_steps_each=3)
        train = plain.train
        assert (train.sigma_begin, train.sigma_end, train.n_levels) == (1.0, 0.01, 10)
        assert (plain.n_steps_each, plain.step_size) == (100, 2e-5)
        assert plain.score_evaluations == 1001
        assert (train.conditional, train.learning_rate) == (True, 1e-3)
        assert (train.dequantisation, plain.variant.weights) == ("uniform", "raw")


def test_ncsnv2_follows_techniques_1_to_5_from_the_data():
    v2 = cell("ncsnv2")
    assert (v2.train.sigma_begin, v2.train.n_levels, v2.n_steps_each) == (50.0, 219, 5)
    assert v2.step_size == pytest.approx(6.5e-6, rel=0.05)
    assert (v2.train.conditional, v2.train.learning_rate) == (False, 1e-4)
    assert (v2.train.dequantisation, v2.variant.weights) == ("none", "ema")
    assert cell("ncsnv2", coverage=0.5668).train.n_levels == 232


def test_t_follows_from_the_evaluations_that_a_sample_may_take():
    for side, sigma_1, n_steps in ((32, 50, 5), (64, 90, 5), (96, 140, 4), (128, 190, 3)):
        found = cell(data=facts(image_size=side, max_distance=float(sigma_1)))
        assert found.n_steps_each == n_steps  # Table 4's
    assert cell(score_evaluations=2 * 219).n_steps_each == 2
    few = cell(score_evaluations=10)
    assert (few.n_steps_each, few.step_rule) == (1, "steady state")
    assert cell(score_evaluations=2 * 219, n_steps_each=7).n_steps_each == 7
    assert cell(score_evaluations=2 * 219, preset="cifar10").n_steps_each == 5
    with pytest.raises(ValueError, match="score_evaluations = 0 must be at least 1"):
        cell(score_evaluations=0)


def test_the_full_number_of_samples_is_the_authors_unless_set():
    assert cell(data=facts(name="cifar10-jpeg")).n_final == 50_000
    assert cell(data=facts(name="celeba")).n_final == 10_000
    assert cell(data=facts(name="cifar10"), n_final=1000).n_final == 1000
    assert cell(n_selection=20_000).n_final == 20_000


def test_published_hyperparameters_by_name():
    v2 = cell("ncsnv2", preset="cifar10")
    assert (v2.train.sigma_begin, v2.train.n_levels, v2.n_steps_each) == (50, 232, 5)
    assert (v2.step_size, v2.train.batch_size, v2.train.iterations) == (6.2e-6, 128, 300_000)
    ffhq = cell("ncsnv2", preset="ffhq", data=facts(image_size=256))
    assert (ffhq.train.adam_eps, ffhq.train.batch_size) == (1e-3, 32)
    assert ffhq.train.architecture == "256"
    # A ladder that is changed no longer goes with the published step size.
    changed = cell("ncsnv2", preset="cifar10", n_levels=100)
    assert changed.step_size != 6.2e-6
    with pytest.raises(ValueError, match=r"preset = 'mnist' is not in Table 4.*celeba"):
        cell("ncsnv2", preset="mnist")


def test_the_paper_grid_shares_training_between_raw_and_ema_only():
    cells = [cell(v.slug) for v in PAPER_VARIANTS]
    digests = [c.train_stage().digest for c in cells]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3
    assert len({cell(v.slug).train_stage().digest for v in ALL_VARIANTS}) == 4


def test_both_denoise_settings_share_one_trajectory():
    c = cell()
    with_step = c.distance_stage(5000, denoise=True, final=True)
    without = c.distance_stage(5000, denoise=False, final=True)
    assert with_step != without
    assert [f.needs for f in with_step.needs[1:]] == [f.needs for f in without.needs[1:]]


def test_the_full_sample_set_begins_with_the_selections():
    c = cell()
    selection = c.sample_stages(5000, final=False)
    final = c.sample_stages(5000, final=True)
    assert final[0] == selection[0]
    bounds = [(s.settings["start"], s.settings["stop"]) for s in final]
    assert bounds == [(0, 1000), (1000, 10_000)]


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"compile": False}, True),
        ({"sampling_batch": 7}, True),
        ({"n_selection": 500}, True),
        ({"width": 64}, False),
        ({"learning_rate": 1e-4 + 1e-12}, False),
        ({"ema_momentum": 0.99}, False),
    ],
)
def test_training_is_named_by_what_can_change_it(change, same):
    assert (cell(**change).train_stage() == cell().train_stage()) is same


def test_a_revised_network_renames_its_own_trainings_and_no_others():
    trained = {name: cell(architecture=name).train_stage() for name in ARCHITECTURES}
    assert {name: s.settings.get("architecture_revision") for name, s in trained.items()} == {
        "32-64": None,
        "96-128": None,
        "256": 2,
    }
    revised = trained["256"]
    older = {k: v for k, v in revised.settings.items() if k != "architecture_revision"}
    assert Stage("train", older).digest != revised.digest


def test_seed_and_data_are_part_of_the_name():
    assert cell(seed=1).train_stage() != cell(seed=0).train_stage()
    other = cell(data=facts(fingerprint="0" * 64))
    assert other.train_stage() != cell().train_stage()
    renamed = cell(data=facts(name="elsewhere", store="other"))
    assert renamed.train_stage() == cell().train_stage()


@pytest.mark.parametrize("variant", ALL_VARIANTS, ids=lambda v: v.slug)
def test_a_cell_survives_json(variant):
    original = cell(variant.slug)
    assert cell_from_json(json.loads(json.dumps(original.to_json()))) == original


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"sigma_begin": 0.005}, "sigma_begin = 0.005 and sigma_end = 0.01"),
        ({"n_levels": 1}, "n_levels = 1 must be at least 2"),
        ({"n_steps_each": 0}, "n_steps_each = 0 must be at least 1"),
        ({"n_steps_each": 0, "step_size": 1e-6}, "n_steps_each = 0 must be at least 1"),
        ({"n_steps_each": 10**400}, "n_steps_each = 10+ must be .* at most 100000"),
        ({"n_levels": 10**12}, "n_levels = 10+ must be at least 2 and at most 100000"),
        ({"sampling_levels": 1e300}, "n_levels = 10+.* must be at least 2 and at most 100000"),
        ({"sigma_end": 1e-300}, r"sigma_end = 1e-300: 1e-12 <= sigma_end"),
        ({"sigma_begin": 1e200}, r"sigma_begin = 1e\+200 and .* <= 1e\+12 is needed"),
        ({"width": 10**12}, "width = 10+ must be at least 2 and at most 16384"),
        ({"iterations": 10**12}, "iterations = 10+ must be at least 1 and at most 10+"),
        ({"iterations": 10**9}, "snapshot_interval = 5000 gives more than 100000 snapshots in"),
        ({"step_size": 2.1e-4}, r"step_size = 0.00021 .*diverge.*\(0, 0.0002\)"),
        ({"ema_momentum": 1.0}, r"ema_momentum = 1.0 must lie in \[0, 1\)"),
        ({"coverage": 1.0}, "coverage = 1.0 must lie in"),
        ({"architecture": "64"}, "architecture = '64' is unknown; known: 32-64"),
        ({"batch_size": 0}, "batch_size = 0 must be at least 1"),
        (
            {"sampling_levels": 1.0},
            "sampling_levels = 1.0 must be a whole number",
        ),
        (
            {"sampling_levels": 2.5},
            "sampling_levels = 2.5 must .*, or a share",
        ),
        (
            {"sampler": "consistent", "step_size": 1.99e-4, "n_steps_each": 1},
            "step_size = 0.000199",
        ),
    ],
)
def test_a_value_out_of_range_is_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        cell(**overrides)


def test_an_image_size_that_the_network_cannot_take():
    with pytest.raises(ValueError, match="image_size = 33 does not fit architecture '32-64'"):
        cell(data=facts(image_size=33))


@pytest.mark.parametrize("variant", ALL_VARIANTS, ids=lambda v: v.slug)
def test_another_seed_changes_nothing_else(variant):
    one = cell(variant.slug, seed=0)
    one.train_stage()  # what a cell has computed must not follow into its copy
    assert one.with_seed(7) == cell(variant.slug, seed=7)
    assert one.with_seed(7).train_stage() == cell(variant.slug, seed=7).train_stage()
    with pytest.raises(ValueError, match="seed = -1 must lie in"):
        one.with_seed(-1)


def test_json_and_stages_hold_every_field():
    c = cell()
    c.train_stage()
    assert c.to_json() == dataclasses.asdict(c)
    assert c.train_stage().settings == identity(c.train) | {"data": c.data.fingerprint}
    revived = pickle.loads(pickle.dumps(c))
    assert revived == c
    assert revived.train_stage() == c.train_stage()


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"name": "elsewhere"}, True),
        ({"max_distance": 60.0}, True),
        ({"fingerprint": "0" * 64}, False),
        ({"extractor": "inception"}, False),
        ({"extractor_fingerprint": "0" * 64}, False),
    ],
)
def test_reference_rows_are_named_by_images_and_feature_space(change, same):
    one, other = cell(seed=0), cell(seed=1, data=facts(**change))
    assert (one.reference_stage() == other.reference_stage()) is same
    assert (one.baseline_stage() == other.baseline_stage()) is same
    assert cell(reference="test").reference_stage() != one.reference_stage()
    assert cell(n_final=5000).reference_stage() == one.reference_stage()
    assert cell(n_final=5000).baseline_stage() != one.baseline_stage()


def test_cells_are_values():
    assert dataclasses.replace(cell(), seed=0) == cell()
    assert Variant(**dataclasses.asdict(cell().variant)) == cell().variant


def test_what_needs_technique_3_says_so():
    with pytest.raises(ValueError, match=r"sampling_levels = 20 needs .*NCSN_1,2,4,5 knows"):
        cell("ncsn_1245", sampling_levels=20)
    with pytest.raises(ValueError, match="sampler = 'consistent' with n_steps_each = 5 needs"):
        cell("ncsn_1245", sampler="consistent")
    assert cell("ncsn_1245", sampler="consistent", n_steps_each=1).score_evaluations == 219


def test_the_reference_is_the_papers_choice_unless_set():
    assert cell().reference == "train"
    assert cell(data=facts(name="celeba", image_size=64)).reference == "test"
    assert cell(data=facts(name="celeba", image_size=64), reference="train").reference == "train"


def test_interpolations_and_neighbours_follow_what_they_are_made_of():
    c = cell()
    assert c.interpolation_stage(5000) != c.interpolation_stage(10_000)
    assert c.interpolation_stage(5000).settings["mix_seed"] != c.seed
    near = c.neighbour_stage(5000, denoise=True, final=True)
    assert near != c.neighbour_stage(5000, denoise=False, final=True)
    assert near != c.neighbour_stage(5000, denoise=True, final=False)
    # Always among the training images, whatever the distance refers to.
    other = cell(reference="test")
    assert other.neighbour_stage(5000, denoise=True, final=True) == near


def test_neighbours_are_searched_for_among_all_training_images_in_blocks():
    c = cell(data=facts(n_train=120_001))
    blocks = c.training_blocks()
    assert [block.settings.get("block", 0) for block in blocks] == [0, 1, 2]
    assert blocks[0] == c.reference_stage()
    assert c.neighbour_stage(5000, denoise=True, final=False).needs[:3] == blocks
