"""From settings to a cell: the ladder that each variant, preset and sampler leads to."""

import dataclasses

import pytest
from resolved import cell

from ablations.pipeline.data import DataFacts
from ablations.pipeline.variants import parse_variant
from ablations.studies.ncsnv2.resolution import resolve
from ablations.studies.ncsnv2.settings import STEP_RULE_NAMES, Settings
from ablations.studies.ncsnv2.without_effect import without_effect

FACTS = DataFacts(
    name="digits",
    store="digits-v1",
    fingerprint="f" * 16,
    channels=1,
    image_size=8,
    n_train=1500,
    n_test=297,
    flip=False,
    max_distance=6.0,
    extractor="digits-cnn",
    extractor_fingerprint="e" * 16,
)


# sigma_1, L of the training; L, T, epsilon and its rule of the sampling; digest of the training:
# what is finished under it is found again as long as it stays.
@pytest.mark.parametrize(
    ("variant", "given", "trained", "sampled", "digest"),
    [
        ("ncsn", {}, (1, 10), (10, 100, 2e-5, "Table 4"), "099bdfa0eda565ba"),
        ("ncsnv2", {}, (6, 22), (22, 52, 4.821e-6, "Technique 4"), "f1df4f2cc403ca7f"),
        (
            "ncsnv2",
            {"sampler": "consistent"},
            (6, 22),
            (22, 52, 8.177e-7, "consistent"),
            "f1df4f2cc403ca7f",
        ),
        (
            "ncsnv2",
            {"n_steps_each": 1},
            (6, 22),
            (22, 1, 6.755e-5, "steady state"),
            "f1df4f2cc403ca7f",
        ),
        (
            "ncsnv2",
            {"sampling_levels": 0.5},
            (6, 22),
            (11, 52, 5.862e-6, "Technique 4"),
            "f1df4f2cc403ca7f",
        ),
        (
            "ncsnv2",
            {"preset": "cifar10"},
            (50, 232),
            (232, 5, 6.2e-6, "Table 4"),
            "984cc0a811c72de6",
        ),
        (
            "ncsnv2",
            {"preset": "celeba", "coverage": 0.3},
            (90, 27),
            (27, 5, 2.541e-5, "Technique 4"),
            "358aa87cff3d038a",
        ),
        (
            "ncsnv2",
            {"step_size": 1e-5, "n_levels": 9},
            (6, 9),
            (9, 128, 1e-5, "given"),
            "7233b08341d5d5b1",
        ),
    ],
)
def test_ladders_and_what_they_are_kept_under(variant, given, trained, sampled, digest):
    cell = resolve(Settings(**given), parse_variant(variant), FACTS, seed=0)
    assert (cell.train.sigma_begin, cell.train.n_levels) == trained
    assert cell.train.sigma_end == 0.01
    rounded = float(f"{cell.step_size:.4g}")
    assert (cell.sampling_levels, cell.n_steps_each, rounded, cell.step_rule) == sampled
    assert cell.train_stage().digest == digest


def test_a_wrong_ladder_is_said_before_what_follows_from_it():
    for given, message in [
        ({"n_levels": 1, "sampling_levels": 20}, "n_levels = 1 must be at least 2"),
        ({"n_steps_each": 0, "sampler": "consistent"}, "n_steps_each = 0 must be at least 1"),
        ({"coverage": 0.3, "n_levels": 9}, "coverage = 0.3 has no effect beside n_levels = 9"),
    ]:
        with pytest.raises(ValueError, match=message):
            resolve(Settings(**given), parse_variant("ncsn_1245"), FACTS, seed=0)


SAMPLERS_BY_BUDGET = ("reverse_diffusion", "predictor_corrector", "ancestral", "heun")


@pytest.mark.parametrize("sampler", SAMPLERS_BY_BUDGET)
def test_a_sampler_without_a_step_size_spends_the_budget_of_evaluations(sampler):
    own = cell(sampler=sampler)  # 1,160 of CIFAR-10 in Table 4, and the denoising step
    more = cell(sampler=sampler, n_steps_each=own.n_steps_each + 1)
    assert own.score_evaluations <= 1161 < more.score_evaluations
    assert (own.step_size, own.step_rule) == (
        (0.0, "snr") if sampler == "predictor_corrector" else (0.0, "none")
    )
    assert own.snr == (0.16 if sampler == "predictor_corrector" else None)
    fewer = cell(sampler=sampler, score_evaluations=600)
    assert fewer.n_steps_each < own.n_steps_each and fewer.score_evaluations <= 601
    # NCSN's network knows no scales between its own ten, and its T is its own.
    with pytest.raises(ValueError, match=r"evaluates scores between noise scales"):
        cell("ncsn", sampler=sampler) if sampler != "predictor_corrector" else cell(
            "ncsn", sampler="heun"
        )


def test_each_rule_of_the_step_size_is_the_ladders():
    for word, name in STEP_RULE_NAMES.items():
        found = cell(step_size_rule=word, **({"snr": 0.3} if word == "snr" else {}))
        assert found.step_rule == name
        if word == "snr":
            assert (found.step_size, found.snr) == (0.0, 0.3)
        else:
            plain = dataclasses.replace(cell().ladder, step_size=1.0, step_rule="given")
            assert found.step_size == plain.by_rule(name).step_size
    with pytest.raises(ValueError, match="no effect beside step_size"):
        cell(step_size_rule="snr", step_size=1e-5)
    assert cell("ncsn", step_size_rule="snr").step_rule == cell("ncsn").step_rule


def test_what_a_network_is_told_and_trained_on_follows_its_settings():
    for how, told in (("normalisation", True), ("edm", True), ("none", False)):
        train = cell(conditioning=how, noise_levels="log_uniform").train
        assert (train.conditioning, train.conditional) == (how, told)
        assert train.noise_levels == "log_uniform"
    assert cell().train.conditioning is None
    assert cell(schedule="rho").ladder.schedule == "rho"
    assert cell("ncsn", schedule="rho").schedule == "geometric"
    assert cell(start="gaussian").start == "gaussian"
    assert (cell(sampler="heun", churn=2.0).churn, cell(churn=2.0).churn) == (2.0, 0.0)
    assert (cell(ema="power:0.1").ema, cell("ncsn", ema="0.9").ema) == ("power:0.1", None)


@pytest.mark.parametrize(
    ("variant", "overrides", "key"),
    [
        ("ncsnv2", {"churn": 2.0}, "churn"),
        ("ncsnv2", {"snr": 0.3}, "snr"),
        ("ncsnv2", {"sampler": "heun", "step_size": 1e-5}, "step_size"),
        ("ncsnv2", {"sampler": "heun", "step_size_rule": "technique4"}, "step_size_rule"),
        ("ncsn", {"step_size_rule": "steady_state"}, "step_size_rule"),
        ("ncsn", {"schedule": "rho"}, "schedule"),
        ("ncsn", {"ema": "0.9"}, "ema"),
        ("ncsn_124", {"ema_momentum": 0.9}, "ema_momentum"),
    ],
)
def test_a_setting_that_a_row_does_not_take_is_named(variant, overrides, key):
    assert list(without_effect(cell(variant, **overrides), overrides)) == [key]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"sampler": "magic"}, "sampler = 'magic' is unknown; known: annealed, consistent"),
        ({"conditioning": "magic"}, "conditioning = 'magic': one of normalisation"),
        ({"noise_levels": "magic"}, "noise_levels = 'magic'"),
        ({"ema": "power:2"}, "power:2"),
        ({"sampler": "heun", "score_evaluations": 100}, "less than the .* that sampler = 'heun'"),
    ],
)
def test_unknown_words_are_one_line(overrides, message):
    with pytest.raises(ValueError, match=message):
        cell(**overrides)
