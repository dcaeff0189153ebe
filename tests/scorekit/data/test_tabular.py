"""Tables in UCI's formats: what is kept of them, how they are split, and what is refused."""

import numpy as np
import pytest
import torch
from places import SHARED

from scorekit.data.store import DataError
from scorekit.data.tabular import TABLES, Whitening, independent_columns, load_table

UCI = SHARED / "data" / "uci"
#: name -> rows, D, (train, valid, test)
SIZES = {
    "parkinsons": (5875, 15, (4760, 528, 587)),
    "redwine": (1599, 11, (1296, 144, 159)),
    "whitewine": (4898, 11, (3969, 440, 489)),
}
#: Pairs of Parkinsons columns that go together, the first of which is left out.
TOGETHER = {"Jitter:RAP": "Jitter:DDP", "Shimmer:APQ3": "Shimmer:DDA"}


def write(folder, name, n=100, edit=lambda lines: lines):
    """Write a table of n rows in its true format and return the values."""
    known = TABLES[name]
    rng = np.random.Generator(np.random.Philox(1))
    values = np.round(rng.normal(5, 1, (n, len(known.columns))), 1)
    for first, second in TOGETHER.items():
        if first in known.columns:
            a, b = known.columns.index(first), known.columns.index(second)
            values[:, a] = np.round(values[:, b] / 3, 5)
    quote = '"' if known.delimiter == ";" else ""
    header = known.delimiter.join(f"{quote}{column}{quote}" for column in known.columns)
    rows = [known.delimiter.join(f"{value:g}" for value in row) for row in values]
    (folder / known.file).write_text("\n".join(edit([header, *rows])) + "\n")
    return values


def unwhiten(table, rows):
    return torch.linalg.solve(table.whitening.matrix, rows.T).T + table.whitening.mean


def test_parkinsons_are_the_file_s_rows_from_the_fourth_column_on(tmp_path):
    values = write(tmp_path, "parkinsons")
    table = load_table("parkinsons", tmp_path)
    kept = [c for c in TABLES["parkinsons"].columns[3:] if c not in TOGETHER]
    assert table.columns == tuple(kept)
    assert [len(part) for part in (table.train, table.valid, table.test)] == [81, 9, 10]
    rows = unwhiten(table, torch.cat([table.train, table.valid, table.test]))
    expected = values[:, [TABLES["parkinsons"].columns.index(c) for c in kept]]
    torch.testing.assert_close(
        torch.from_numpy(np.sort(rows.numpy(), 0)), torch.from_numpy(np.sort(expected, 0))
    )


def test_the_training_rows_alone_are_white(tmp_path):
    write(tmp_path, "parkinsons", n=400)
    table = load_table("parkinsons", tmp_path)
    eye, zero = torch.eye(table.dim).double(), torch.zeros(table.dim).double()
    torch.testing.assert_close(table.train.T.cov(), eye, rtol=0, atol=1e-9)
    torch.testing.assert_close(table.train.mean(0), zero, rtol=0, atol=1e-9)
    assert float((table.test.mean(0)).abs().max()) > 1e-3


def test_log_densities_move_between_the_spaces_by_the_determinant():
    x = torch.randn(500, 3, dtype=torch.float64) @ torch.randn(3, 3, dtype=torch.float64)
    whitening = Whitening.of(x)
    normal = torch.distributions.MultivariateNormal(x.mean(0), x.T.cov())
    white = torch.distributions.MultivariateNormal(torch.zeros(3).double(), torch.eye(3).double())
    torch.testing.assert_close(normal.log_prob(x), white.log_prob(whitening(x)) + whitening.log_det)


def test_wine_is_dequantised_by_at_most_half_a_step(tmp_path):
    values = write(tmp_path, "redwine", n=200)[:, :-1]
    table = load_table("redwine", tmp_path)
    assert table.columns == TABLES["redwine"].columns[:-1]
    rows = unwhiten(table, torch.cat([table.train, table.valid, table.test])).numpy()
    # A step of 0.1: every value lies within half a step of one of the file's, and rarely on it.
    nearest = np.abs(rows - np.round(rows, 1))
    assert nearest.max() <= 0.05 + 1e-9
    assert 0.02 < nearest.mean() < 0.03
    np.testing.assert_allclose(np.sort(np.round(rows, 1), 0), np.sort(values, 0), atol=1e-9)


def test_seeds_draw_other_splits_and_the_same_seed_the_same(tmp_path):
    write(tmp_path, "whitewine")
    first, again = (load_table("whitewine", tmp_path) for _ in range(2))
    other = load_table("whitewine", tmp_path, seed=1)
    for part in ("train", "valid", "test"):
        assert torch.equal(getattr(first, part), getattr(again, part))
        assert not torch.equal(getattr(first, part), getattr(other, part))


def test_noise_is_added_to_all_but_the_test_rows(tmp_path):
    write(tmp_path, "parkinsons", n=500)
    clean = load_table("parkinsons", tmp_path)
    noisy = load_table("parkinsons", tmp_path, noise=0.05)
    assert torch.equal(noisy.test, clean.test)
    for part in ("train", "valid"):
        difference = getattr(noisy, part) - getattr(clean, part)
        assert float(difference.std()) == pytest.approx(0.05, rel=0.1)
        assert abs(float(difference.mean())) < 0.01


def test_of_columns_that_correlate_one_is_left():
    rng = np.random.Generator(np.random.Philox(0))
    a, b = rng.normal(size=(2, 1000))
    nearly = a + 0.1 * b  # correlation .995
    loosely = a + 0.5 * b  # .89
    values = np.stack([a, b, nearly, -a, loosely, np.ones(1000)], 1)
    assert independent_columns(values) == [1, 3, 4, 5]


def test_a_missing_file_says_where_to_get_it(tmp_path):
    with pytest.raises(DataError, match=r"parkinsons_updrs.data: no such file; get it from the "):
        load_table("parkinsons", tmp_path)
    with pytest.raises(DataError, match="'Wine Quality' of the UCI Machine Learning Repository"):
        load_table("redwine", tmp_path)


def test_a_folder_named_uci_is_looked_into(tmp_path):
    (tmp_path / "uci").mkdir()
    write(tmp_path / "uci", "redwine")
    assert load_table("redwine", tmp_path).dim == 11


def replace(number, old, new):
    return lambda lines: [
        line.replace(old, new, 1) if i == number else line for i, line in enumerate(lines)
    ]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (replace(0, "age", "years"), r"wrong columns \('years' stands where 'age' should\)"),
        (replace(0, ",PPE", ""), "should name 22, separated by ',', and names 21"),
        (lambda lines: [line.replace(",", ";") for line in lines], "and names 1"),
        (lambda lines: [], "names 0"),
        (lambda lines: lines[:5], "has 4 rows; at least 12"),
        (lambda lines: [*lines[:7], lines[7] + ",1", *lines[8:]], "line 8 has 23 values; 22 are"),
        (lambda lines: [*lines[:7], "", *lines[7:]], "line 8 has 0 values"),
        (lambda lines: [lines[0], "NaN" + lines[1][lines[1].index(",") :], *lines[2:]],
         "line 2, column 'subject#' is 'NaN'; a finite number is needed"),
        (lambda lines: [*lines, lines[1][: lines[1].rindex(",")] + ",?"],
         r"line 102, column 'PPE' is '\?'"),
        (lambda lines: [lines[0], *[",".join(["1"] * 22)] * 50],
         "cannot be whitened: column 0 is constant"),
        (lambda lines: [lines[0], *(f"{line},{sum(map(float, line.split(',')[3:5]))}"
                                    for line in (line.rpartition(",")[0] for line in lines[1:]))],
         "cannot be whitened: the correlation of its 17 columns is singular"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_as_it_should_be_is_refused_in_one_line(tmp_path, edit, message):
    write(tmp_path, "parkinsons", edit=edit)
    with pytest.raises(DataError, match=message) as refused:
        load_table("parkinsons", tmp_path)
    assert "\n" not in str(refused.value)
    assert "parkinsons_updrs.data" in str(refused.value)


def test_a_binary_file_is_refused(tmp_path):
    (tmp_path / "winequality-red.csv").write_bytes(bytes(range(256)))
    with pytest.raises(DataError, match="is not a text table"):
        load_table("redwine", tmp_path)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("wine", {}, "table=wine: unknown; known are parkinsons, redwine, whitewine"),
        ("redwine", {"seed": -1}, "seed=-1"),
        ("redwine", {"noise": float("nan")}, "noise=nan: a finite number from 0"),
    ],
)
def test_bad_settings_are_refused(tmp_path, name, options, message):
    with pytest.raises(DataError, match=message):
        load_table(name, tmp_path, **options)


@pytest.mark.skipif(not UCI.is_dir(), reason="the UCI files are not at hand")
@pytest.mark.parametrize("name", SIZES)
def test_the_real_files_have_the_sizes_of_the_authors(name):
    n, dim, sizes = SIZES[name]
    table = load_table(name, UCI, noise=0.05)
    assert table.dim == dim
    assert (len(table.train), len(table.valid), len(table.test)) == sizes
    assert sum(sizes) == n
    assert table.test.isfinite().all()
