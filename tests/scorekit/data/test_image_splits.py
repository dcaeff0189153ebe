"""Splits by the names of folders, and drawn ones."""

import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scorekit.data.image_splits import split_folders, split_images
from scorekit.data.store import DataError


@settings(max_examples=50, deadline=None)
@given(st.integers(3, 400), st.integers(0, 2**31))
def test_split_images_any_count_any_seed(n, seed):
    names = [f"{i:05}.png" for i in range(n)]
    splits = split_images(names, seed)
    assert sorted(splits["train"] + splits["test"]) == names
    assert splits["train"] == sorted(splits["train"]) and splits["test"] == sorted(splits["test"])
    assert len(splits["test"]) == max(1, n // 10)
    assert splits == split_images(names, seed)


def test_at_most_ten_thousand_test_images():
    splits = split_images([f"{i:06}.png" for i in range(150_000)], 0)
    assert (len(splits["train"]), len(splits["test"])) == (140_000, 10_000)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "test"),
        ("Train", "TEST"),
        ("x/train", "x/test"),
        ("a/b/c/train/cat", "a/b/c/test/dog"),
        ("cat/train", "cat/test"),
        ("training", "testing"),
        ("train", "val"),
        ("Training", "Validation"),
        ("train2017", "val2017"),
        ("DIV_train_HR", "DIV_valid_HR"),
        ("trainA", "testA"),
        ("train/test", "test/train"),  # classes of these names
        ("test/train", "test/test"),
    ],
)
def test_an_evident_split_is_used_with_a_loose_image_beside(train, test, caplog):
    given = {"train": [f"{train}/{i}.png" for i in range(3)], "test": [f"{test}/7.png"]}
    with caplog.at_level(logging.WARNING, logger="scorekit"):
        assert split_images(["cover.png", *given["train"], *given["test"]], 0, "photos") == given
    assert "photos: 1 images outside train/ and test/ are left out" in caplog.text
    assert ("validation images are the test split" in caplog.text) == ("val" in test.lower())


def test_validation_images_are_left_out_where_there_is_a_test(caplog):
    names = ["test/a.png", "train/b.png", "val/c.png", "val/d.png"]
    assert split_folders(names) == {"train": ["train/b.png"], "test": ["test/a.png"]}
    assert "2 images outside train/ and test/" in caplog.text


def test_each_class_with_a_split_of_its_own():
    names = [f"{c}/{s}/{i}.png" for c in "ab" for s in ("test", "train") for i in range(2)]
    splits = split_folders(names)
    assert splits == {s: [n for n in names if f"/{s}/" in n] for s in ("train", "test")}


@pytest.mark.parametrize("other", ["images/1.png", "a/train/1.png", "1.png"])
@pytest.mark.parametrize("test", ["test", "x/Test/y", "validation"])
def test_test_images_without_train_beside_are_refused(test, other):
    with pytest.raises(DataError, match=r"photos: 1 of 2 images are in test folders .*train/ and"):
        split_images([f"{test}/0.png", other], 0, "photos")


@pytest.mark.parametrize(
    "names",
    [
        ["train/0.png", "train/1.png", "bus/1.png"],  # a class
        ["test/0.png", "test/1.png", "test/2.png"],  # no others
        ["latest/0.png", "contest/1.png", "valley/2.png", "trained/3.png"],
        ["train.png", "test.png", "a/test.png"],
    ],
)
def test_other_names_are_no_split(names, caplog):
    assert split_folders(names) is None and not caplog.records
