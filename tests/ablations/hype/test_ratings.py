"""Rounds of a rater: who sees what, and what a kill leaves."""

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rated_dump import finish, make_dump

from ablations.hype.dumps import open_dumps
from ablations.hype.ratings import Ratings, choose_images
from ablations.hype.score import (
    read_ratings,
)
from scorekit.files import CorruptFile

# Rounds and their files


def test_a_round_is_fifty_of_each_in_an_order_that_only_the_seed_decides(opened):
    chosen = choose_images(opened, seed=3)
    assert Counter(kind for kind, _, _ in chosen) == {"fake": 50, "real": 50}
    assert len(set(chosen)) == 100
    assert choose_images(opened, seed=3) == chosen != choose_images(opened, seed=4)
    first = [kind for seed in range(400) for kind, _, _ in choose_images(opened, seed)[:1]]
    assert 150 < first.count("fake") < 250  # 5 standard deviations of a fair coin


def test_images_that_were_seen_come_only_where_there_are_no_others(opened):
    seen = {digest for _, _, digest in choose_images(opened, seed=0)}
    again = choose_images(opened, seed=1, seen=seen)
    assert len([image for image in again if image[2] in seen]) == 100 - 2 * 10


def test_dumps_are_rated_by_as_many_and_by_nobody_twice(opened, tmp_path, unsynced):
    others = [open_dumps(make_dump(tmp_path / str(k), key=k))[0] for k in (1, 2)]
    ratings = Ratings(tmp_path / "ratings", [opened, *others])
    rated = []
    for _ in range(3):
        rater = ratings.new_rater()
        for _ in range(2):
            rated.append((rater, finish(ratings, rater).label["dump"]))
    assert len(set(rated)) == 6
    assert Counter(Counter(dump for _, dump in rated).values()) == {2: 3}
    raters = [ratings.new_rater() for _ in range(3)]
    begun = {ratings.begin(rater).label["dump"] for rater in raters}
    assert len(begun) == 3  # raters at work at once are spread too


def test_the_choice_is_saved_with_its_seed_and_can_be_made_again(opened, tmp_path):
    ratings = Ratings(tmp_path, [opened], seed=5)
    rater = ratings.new_rater()
    ratings.begin(rater)
    record = json.loads((tmp_path / f"{rater}.jsonl").read_text())
    assert [tuple(i) for i in record["images"]] == choose_images(opened, record["seed"])
    assert record["dump"]["dump"] == opened.digest


@given(cut=st.integers(0, 10_000))
@settings(max_examples=12, deadline=None)
def test_a_file_cut_anywhere_goes_on_behind_its_last_whole_line(opened, tmp_path_factory, cut):
    directory = tmp_path_factory.mktemp("cut")
    ratings = Ratings(directory, [opened])
    rater = ratings.new_rater()
    first = ratings.begin(rater)
    for truth, _, _ in first.images[:20]:
        ratings.answer(rater, truth)
    ratings.close()
    path = directory / f"{rater}.jsonl"
    data = path.read_bytes()[: -1 - cut % (path.stat().st_size - 1)]
    path.write_bytes(data)
    again = Ratings(directory, [opened])
    if data.count(b"\n") == 0:
        again.begin(rater)
    else:
        assert again.current(rater).images == first.images
    left = len(again.current(rater).answers)
    assert left == max(data.count(b"\n") - 1, 0)
    again.answer(rater, "real")
    again.close()
    third = Ratings(directory, [opened])
    assert third.current(rater).answers == [t for t, _, _ in first.images[:left]] + ["real"]
    third.close()


@pytest.mark.parametrize(
    "line",
    [
        '{"round": 0, "position": 7, "answer": "real"}',
        '{"round": 0, "position": 0, "answer": "maybe"}',
        '{"round": 1, "dump": {}, "seed": 0, "images": []}',
        "[" * 100_000,
        "null",
    ],
)
def test_a_damaged_file_of_a_rater_is_named(opened, tmp_path, line):
    ratings = Ratings(tmp_path, [opened])
    rater = ratings.new_rater()
    ratings.begin(rater)
    ratings.close()
    with open(tmp_path / f"{rater}.jsonl", "a") as file:
        file.write(line + "\n")
    with pytest.raises(CorruptFile, match="line 2 is no round and no answer"):
        read_ratings([tmp_path])


def test_what_cannot_be_saved_is_not_there_when_it_is_sent_again(opened, tmp_path, monkeypatch):
    ratings = Ratings(tmp_path, [opened])
    rater = ratings.new_rater()
    ratings.begin(rater)

    def full(descriptor):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="no space"):
            ratings.answer(rater, "real")
    ratings.answer(rater, "fake")
    ratings.close()
    assert Ratings(tmp_path, [opened]).current(rater).answers == ["fake"]


def test_one_server_at_a_time_has_the_folder(opened, tmp_path):
    first = Ratings(tmp_path, [opened])
    with pytest.raises(ValueError, match="in use by another server"):
        Ratings(tmp_path, [opened])
    first.close()
    Ratings(tmp_path, [opened]).close()
