"""HYPE∞: the score of ratings, its spread, and Table 5."""

import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from places import SHARED
from rated_dump import finish, make_dump

from ablations.engine.frames import make_frame
from ablations.hype import score
from ablations.hype.dumps import open_dumps
from ablations.hype.ratings import Ratings
from ablations.hype.score import (
    RATING_COLUMNS,
    bootstrap_std,
    hype_scores,
    hype_table,
    read_ratings,
)
from ablations.reporting.table_files import save_table


def ratings_of(fakes_wrong, reals_wrong, complete=True, dump="d"):
    label = {"dump": dump, "name": "x", "model": "NCSN", "dataset": "digits"}
    counts = {"n_fakes": 50, "n_reals": 50, "n_answers": 100, "complete": complete}
    rows = [
        label | counts | {"rater": str(i), "fakes_wrong": f, "reals_wrong": r}
        for i, (f, r) in enumerate(zip(fakes_wrong, reals_wrong, strict=True))
    ]
    return make_frame(RATING_COLUMNS, rows)


def test_scores_are_the_shares_called_wrong():
    row = hype_scores(ratings_of([10, 20, 30], [5, 5, 20])).iloc[0]
    assert row["fakes_error"] == pytest.approx(40)
    assert row["reals_error"] == pytest.approx(20)
    assert row["hype"] == pytest.approx(30)
    assert (row["n_raters"], row["n_answers"], row["n_incomplete"]) == (3, 300, 0)


@pytest.mark.parametrize(
    ("choose", "expected"),
    [
        (lambda truth: truth, (0, 0, 0)),
        (lambda truth: "real", (50, 100, 0)),
        (lambda truth: "fake", (50, 0, 100)),
        (lambda truth: {"fake": "real", "real": "fake"}[truth], (100, 100, 100)),
    ],
)
def test_raters_of_known_habits_get_their_scores(opened, tmp_path, unsynced, choose, expected):
    ratings = Ratings(tmp_path, [opened])
    finish(ratings, ratings.new_rater(), choose)
    row = hype_scores(read_ratings([tmp_path])).iloc[0]
    assert (row["hype"], row["fakes_error"], row["reals_error"]) == expected
    assert np.isnan(row["std"])  # one rater says nothing of the spread over raters


def test_the_bootstrap_is_the_deviation_of_a_mean():
    values = np.random.default_rng(0).normal(30, 5, 40)
    closed_form = values.std() / np.sqrt(len(values))
    assert bootstrap_std(values, 20_000, seed=0) == pytest.approx(closed_form, rel=0.03)
    assert bootstrap_std(values, 100, seed=1) == bootstrap_std(values, 100, seed=1)
    assert bootstrap_std(values, 100, seed=1) != bootstrap_std(values, 100, seed=2)
    assert bootstrap_std(np.full(9, 7.0), 100, seed=0) == pytest.approx(0, abs=1e-9)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=2, max_size=30))
@settings(max_examples=30, deadline=None)
def test_the_score_is_the_mean_of_both_errors(wrong):
    fakes, reals = zip(*wrong, strict=True)
    row = hype_scores(ratings_of(fakes, reals), n_bootstrap=10).iloc[0]
    assert row["hype"] == pytest.approx((row["fakes_error"] + row["reals_error"]) / 2)
    assert row["fakes_error"] == pytest.approx(100 * sum(fakes) / (50 * len(fakes)))
    assert 0 <= row["hype"] <= 100 and row["std"] >= 0


def test_unfinished_raters_are_left_out_and_counted():
    whole, part = ratings_of([10], [10]), ratings_of([50, 50], [50, 50], complete=False)
    row = hype_scores(pd.concat([whole, part])).iloc[0]
    assert (row["hype"], row["n_raters"], row["n_incomplete"]) == (20, 1, 2)
    only = hype_table(hype_scores(part))
    assert only.kinds[0] == "pending"
    assert only.display["Source"][0] == "not rated yet; 2 unfinished left out"
    assert only.display["HYPE∞(%)"][0] == "—"


def test_the_table_has_table_5s_columns_and_rows_and_every_dump(opened, tmp_path):
    rated = ratings_of([10, 20], [5, 5])
    table = hype_table(hype_scores(rated, [opened]))
    wanted = ["Model", "HYPE∞(%)", "Fakes Error(%)", "Reals Error(%)", "Std."]
    assert list(table.display.columns[1:6]) == wanted
    assert table.kinds == ("pending", "ours", *["paper"] * 6)
    assert list(table.display["Source"][:2]) == ["not rated yet", "rated here"]
    assert set(table.display["Source"][2:]) == {"paper (Table 5)"}
    last = table.display.iloc[-1]
    assert list(last[wanted]) == ["NCSNv2", "37.3", "49.8", "24.8", "0.5"]
    for path in save_table(table, tmp_path):
        assert path.name.startswith("table5.") and path.stat().st_size
    assert r"HYPE$\infty$(\%)" in (tmp_path / "table5.tex").read_text()


def test_two_runs_of_the_same_settings_are_told_apart(opened, tmp_path):
    other = open_dumps(make_dump(tmp_path / opened.name, key=1))[0]
    models = list(hype_table(hype_scores(read_ratings([]), [opened, other])).display["Model"][:2])
    expected = [f"NCSNv2, seed 0, denoised ({dump.digest[:8]})" for dump in (opened, other)]
    assert sorted(models) == sorted(expected)


def test_without_ratings_there_are_the_papers_rows_alone():
    table = hype_table(hype_scores(read_ratings([])))
    assert set(table.kinds) == {"paper"} and len(table.display) == 6


def test_the_quoted_scores_are_the_means_of_their_errors():
    for model, hype, fakes, reals, _ in score.HYPE:
        assert hype == pytest.approx((fakes + reals) / 2, abs=0.0501), model


def test_the_quoted_scores_are_the_papers():
    paper = SHARED / "papers/ncsnv2.txt"
    if not paper.exists():
        pytest.skip("the paper's text is not beside this checkout")
    table = paper.read_text().split("Table 5: HYPE")[1]
    for model, *values in score.HYPE:
        line = re.search(rf"^{re.escape(model.split()[0])}\b.*$", table, re.MULTILINE)
        assert line, model
        assert [float(v) for v in line[0].split("\t")[1:]] == values
