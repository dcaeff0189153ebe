"""Table 4 as printed."""

import math
from dataclasses import FrozenInstanceError

import pytest

from scorekit.techniques.table_4 import TABLE_4, published, published_evaluations

# model, data set, side, sigma_1, L, T, epsilon, batch size, training iterations
PRINTED = [
    ("NCSN", "cifar10", 32, 1, 10, 100, 2e-5, 128, 300_000),
    ("NCSN", "celeba", 64, 1, 10, 100, 2e-5, 128, 210_000),
    ("NCSN", "church_outdoor", 96, 1, 10, 100, 2e-5, 128, 200_000),
    ("NCSN", "bedroom", 128, 1, 10, 100, 2e-5, 64, 150_000),
    ("NCSNv2", "cifar10", 32, 50, 232, 5, 6.2e-6, 128, 300_000),
    ("NCSNv2", "celeba", 64, 90, 500, 5, 3.3e-6, 128, 210_000),
    ("NCSNv2", "church_outdoor", 96, 140, 788, 4, 4.9e-6, 128, 200_000),
    ("NCSNv2", "bedroom", 128, 190, 1086, 3, 1.8e-6, 128, 150_000),
    ("NCSNv2", "tower", 128, 190, 1086, 3, 1.8e-6, 128, 150_000),
    ("NCSNv2", "ffhq", 256, 348, 2311, 3, 0.9e-7, 32, 80_000),
]
MISPRINT = ("NCSNv2", "ffhq")  # 0.9e-7 stands for 0.9e-6


def test_the_rows_are_those_of_the_paper_in_its_order():
    assert [(row.model, row.dataset) for row in TABLE_4] == [row[:2] for row in PRINTED]


@pytest.mark.parametrize("printed", PRINTED, ids=lambda row: f"{row[0]}-{row[1]}")
def test_every_number_is_the_printed_one(printed):
    model, dataset, size, sigma_1, n_levels, n_steps, epsilon, batch_size, iterations = printed
    row = published(model, dataset)
    assert row.image_size == size
    assert row.ladder.sigma_begin == sigma_1
    assert row.ladder.sigma_end == 0.01
    assert row.ladder.n_levels == n_levels
    assert row.ladder.n_steps_each == n_steps
    assert row.batch_size == batch_size
    assert row.iterations == iterations
    assert row.adam_eps == (1e-3 if dataset == "ffhq" else 1e-8)
    if (model, dataset) == MISPRINT:
        assert math.isclose(row.ladder.step_size, 10 * epsilon)
        assert "misprint" in row.note
    else:
        assert row.ladder.step_size == epsilon


def test_the_row_that_technique_4_contradicts_says_so():
    assert "2.31e-6" in published("NCSNv2", "church_outdoor").note
    assert {(r.model, r.dataset) for r in TABLE_4 if r.note} == {
        MISPRINT,
        ("NCSNv2", "church_outdoor"),
    }


def test_rows_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        TABLE_4[0].ladder = TABLE_4[1].ladder
    with pytest.raises(FrozenInstanceError):
        TABLE_4[0].ladder.step_size = 1.0


@pytest.mark.parametrize(
    ("model", "dataset"), [("NCSN", "ffhq"), ("NCSNv2", "imagenet"), ("DDPM", "cifar10")]
)
def test_unknown_rows_are_refused_with_the_known_ones(model, dataset):
    message = rf"preset = '{dataset}' .* {model}; known: bedroom, celeba"
    with pytest.raises(ValueError, match=message):
        published(model, dataset)


@pytest.mark.parametrize(
    ("size", "evaluations"),
    [(8, 1160), (32, 1160), (64, 2500), (96, 3152), (128, 3258), (256, 6933), (1024, 6933)],
)
def test_what_the_paper_spends_on_a_sample_of_the_nearest_size(size, evaluations):
    assert published_evaluations(size) == evaluations
