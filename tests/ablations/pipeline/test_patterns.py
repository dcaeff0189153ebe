import pytest
from resolved import facts

from ablations.pipeline.patterns import select_cells, split_datasets
from ablations.studies.ncsnv2.grids import GRIDS
from ablations.studies.ncsnv2.settings import BUDGETS


@pytest.fixture(scope="module")
def cells():
    data = [facts(), facts(name="imagefolder:a[1], b")]
    rows = dict.fromkeys(row for grid in GRIDS.values() for row in grid.rows)
    found = {}
    for d in data:
        for row in rows:
            made = row.resolve(BUDGETS["paper"], {}, d)
            found |= {c.name: c for c in (made, made.with_seed(1))}
    return list(found.values())


def test_every_name_that_is_printed_chooses_its_cells(cells):
    for c in cells:
        assert select_cells(cells, c.name) == [c]
        assert select_cells(cells, f"{c.data.name} {c.label} seed {c.seed}") == [c]
        assert select_cells(cells, c.label) == [
            o for o in cells if o.label == c.label or (o.variant.name == c.label)
        ]
        assert c in select_cells(cells, c.variant.name.upper())
        assert select_cells(cells, c.data.name) == [o for o in cells if o.data == c.data]


def test_lists_of_names_with_and_without_commas(cells):
    def labels(text):
        return list(dict.fromkeys(c.label for c in select_cells(cells, text)))

    of = {name: labels(name) for name in ("NCSN_1,2,4,5", "NCSN_1,2,4", "ncsn_5", "ncsn_3")}
    assert of["NCSN_1,2,4"] == ["NCSN_1,2,4"]
    both = of["NCSN_1,2,4,5"] + of["NCSN_1,2,4"]
    assert set(labels("NCSN_1,2,4, NCSN_1,2,4,5,")) == set(both)
    assert set(labels("ncsn_3,NCSN_1,2,4,ncsn_5")) == {
        *of["NCSN_1,2,4"],
        *of["ncsn_3"],
        *of["ncsn_5"],
    }
    assert labels("NCSN_1,2,*") == [
        c for c in dict.fromkeys(c.label for c in cells) if c.startswith("NCSN_1,2,")
    ]
    # Globs are a list, though the two would match one label as one.
    assert len(select_cells(cells, "*consistent*,*ncsn_5*")) > len(
        select_cells(cells, "*consistent*")
    )
    assert select_cells(cells, "*/seed1") == [c for c in cells if c.seed == 1]


@pytest.mark.parametrize(
    ("text", "part"),
    [("ncsn,x", "x"), ("x,ncsn", "x"), ("NCSN_1,2,4,6", "6"), ("ncsn_1,5", "ncsn_1")],
)
def test_a_part_that_matches_nothing_is_named(cells, text, part):
    with pytest.raises(ValueError, match=rf"--only {part} matches no cell; there are: cifar/ncsn/"):
        select_cells(cells, text)


def test_data_sets_are_listed_by_commas_and_paths_may_hold_some(tmp_path, monkeypatch):
    assert split_datasets("") == split_datasets(",") == []
    assert split_datasets("digits, patches,") == ["digits", "patches"]
    assert split_datasets("digits,imagefolder:Photos, 2019,patches") == [
        "digits",
        "imagefolder:Photos, 2019",
        "patches",
    ]
    assert split_datasets("imagefolder:a,b,imagefolder:c") == ["imagefolder:a,b", "imagefolder:c"]
    assert split_datasets("cifar10,mnist") == ["cifar10", "mnist"]  # no path: unknown, and said so
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a,digits").mkdir()
    assert split_datasets("imagefolder:a,digits") == ["imagefolder:a,digits"]
    (tmp_path / "a").mkdir()
    assert split_datasets("imagefolder:a,digits") == ["imagefolder:a", "digits"]
