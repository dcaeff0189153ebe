"""From settings to a cell: the ladder that each variant, preset and sampler leads to."""

import pytest

from ablations.pipeline.data import DataFacts
from ablations.pipeline.variants import parse_variant
from ablations.studies.ncsnv2.resolution import resolve
from ablations.studies.ncsnv2.settings import Settings

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
