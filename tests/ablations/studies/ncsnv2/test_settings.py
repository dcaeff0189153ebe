import pytest
from hypothesis import given
from hypothesis import strategies as st

from ablations.engine.settings import apply_overrides, coerce, parse_overrides
from ablations.studies.ncsnv2.settings import BUDGETS, LADDER_SETTINGS, Profile, budget_label


def test_overrides_are_typed_by_the_setting():
    pairs = ["width=32", "learning_rate=1e-3", "compile=false", "flip=none", "iterations=20_000"]
    assert parse_overrides(pairs, Profile) == {
        "width": 32,
        "learning_rate": 1e-3,
        "compile": False,
        "flip": None,
        "iterations": 20_000,
    }


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("widht=3", r"setting 'widht' is unknown, did you mean 'width'.*; known: .*width"),
        ("width=wide", r"width = 'wide' is not a whole number"),
        ("width=1.5", r"width = '1.5' is not a whole number"),
        ("compile=yes", r"compile = 'yes' is not true or false"),
        ("precision=fp8", r"precision = 'fp8' is not one of 'fp32', 'tf32', 'bf16'"),
        ("width", r"not of the form key=value"),
    ],
)
def test_a_bad_override_is_named_with_what_would_be_right(pair, message):
    with pytest.raises(ValueError, match=message):
        parse_overrides([pair], Profile)


@given(st.text(max_size=20), st.text(max_size=20))
def test_any_text_is_a_value_or_one_clear_line(key, value):
    message, result = "", {}
    try:
        result = parse_overrides([f"{key}={value}"], Profile)
    except ValueError as error:
        message = str(error)
    assert bool(message) != bool(result)
    assert set(result) <= set(Profile.__dataclass_fields__)


@given(st.integers(2, 10**9))
def test_whole_numbers_survive_the_round_trip(value):
    assert (
        coerce("iterations", str(value), Profile) == coerce("iterations", value, Profile) == value
    )


def test_toml_values_are_checked_like_texts():
    assert coerce("sigma_end", 1, Profile) == 1.0
    with pytest.raises(ValueError, match="width = True is not a whole number"):
        coerce("width", True, Profile)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"n_selection": 1}, "n_selection = 1 must be at least 2"),
        ({"n_final": 10, "n_selection": 11}, "n_final = 10 must be at least n_selection = 11"),
        ({"n_dump": -1}, "n_dump = -1"),
        ({"sampling_batch": 0}, "sampling_batch = 0"),
        ({"accumulation": 0}, "accumulation = 0 must be at least 1"),
        ({"n_final": 10**400}, "n_final = 10+ must be at least 2 and at most 10+"),
        ({"sampling_batch": 10**12}, "sampling_batch = 10+ must be at least 2 and at most 10+"),
    ],
)
def test_values_out_of_range(override, message):
    with pytest.raises(ValueError, match=message):
        apply_overrides(Profile(), override)


def test_the_paper_budget_is_the_papers():
    paper = BUDGETS["paper"].settings
    assert (paper.width, paper.snapshot_interval, paper.n_selection) == (128, 5000, 1000)
    assert paper.ema_momentum == 0.999
    assert all(getattr(paper, name) is None for name in LADDER_SETTINGS)  # derived


def test_a_budget_names_what_it_sets_otherwise_for_large_images():
    assert budget_label("quick", {}, [8, 16]) == "quick"
    scaled = budget_label("quick", {"n_dump": 5}, [16, 64])
    assert scaled.startswith("quick, at 64×64: iterations=300, n_final=32, n_loss=128, n_selec")
    assert scaled.endswith(", width=8, changed: n_dump=5")
    assert budget_label("paper", {}, [256]) == "paper"


def test_a_budget_names_what_was_changed_of_it_alone():
    assert budget_label("paper", {}) == "paper"
    assert budget_label("paper", {"width": 128, "n_selection": 1000}) == "paper"
    overrides = {"width": 128, "iterations": 5, "objective": "ssm_vr"}
    assert budget_label("paper", overrides) == "paper, changed: iterations=5, objective=ssm_vr"
