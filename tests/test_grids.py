import pytest

from ablations.cells import resolve
from ablations.grids import GRIDS, build_cells, data_facts, load_grid
from ablations.settings import BUDGETS


def write(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return str(path)


def test_built_in_grids():
    assert [v.slug for v in load_grid("paper").variants] == [
        "ncsn",
        "ncsn_5",
        "ncsn_1245",
        "ncsnv2",
    ]
    assert len(GRIDS["factorial"].variants) == 8


def test_a_users_grid(tmp_path):
    text = (
        'variants = ["ncsnv2", "NCSN_5", "ncsnv2"]\ndatasets = ["digits"]\nseeds = 2\n'
        'budget = "quick"\n[set]\nwidth = 8\nflip = false\n'
    )
    grid = load_grid(write(tmp_path, text))
    assert grid.name == "mine"
    assert [v.slug for v in grid.variants] == ["ncsnv2", "ncsn_5"]
    assert grid.overrides == {"width": 8, "flip": False}
    assert (grid.seeds, grid.budget, grid.datasets) == (2, "quick", ("digits",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("variants = [", "is not TOML"),
        ("", "must name at least one variant"),
        ('variants = "ncsn"', "must be a list of texts"),
        ('variants = ["ncsnx"]', "variant 'ncsnx' is unknown"),
        ('variants = ["ncsn"]\ncolour = 1', "key 'colour' is unknown"),
        ('variants = ["ncsn"]\nseeds = "two"', "seeds = 'two' must be a whole number"),
        ('variants = ["ncsn"]\nbudget = "huge"', "budget = 'huge'; known: paper, quick"),
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
    cells = build_cells(GRIDS["paper"], BUDGETS["quick"].settings, [data], seeds=2)
    assert len(cells) == len({cell.name for cell in cells}) == 8
    assert cells == [
        resolve(BUDGETS["quick"].settings, variant, data, seed)
        for variant in GRIDS["paper"].variants
        for seed in range(2)
    ]
