import pytest
from resolved import cell, facts

from ablations.command_line import make_plan, parse_arguments
from ablations.launch import main
from ablations.pipeline.variants import Variant
from ablations.studies.ncsnv2.rows import Row
from ablations.studies.ncsnv2.settings import BUDGETS, LADDER_SETTINGS
from ablations.studies.ncsnv2.without_effect import describe_without_effect, without_effect

#: Another value than the paper's or the preset's, of every setting of the ladder.
OTHER = dict(zip(LADDER_SETTINGS, (30.0, 0.02, 7, 0.1, 3, 1e-6), strict=True))


@pytest.mark.parametrize("name", LADDER_SETTINGS)
@pytest.mark.parametrize("preset", [None, "cifar10"])
def test_each_setting_of_the_ladder_has_its_effect_beside_a_preset_too(name, preset):
    changed = cell("ncsnv2", preset=preset, **{name: OTHER[name]})
    assert changed.sample_stages(5000, final=False) != cell(preset=preset).sample_stages(
        5000, final=False
    )
    assert without_effect(changed, {name: OTHER[name]}) == {}


def test_coverage_replaces_the_published_number_of_noise_scales():
    published, own = cell(preset="cifar10"), cell(sigma_begin=50.0, coverage=0.1)
    assert published.train.n_levels == 232
    changed = cell(preset="cifar10", coverage=0.1).train
    assert changed.n_levels == own.train.n_levels < 200
    with pytest.raises(ValueError, match=r"coverage = 0.1 has no effect beside n_levels = 7"):
        cell(coverage=0.1, n_levels=7)
    assert cell(coverage=0.1, n_levels=0).train.n_levels == changed.n_levels


def test_what_some_rows_do_not_take_is_named_and_what_no_row_takes_refused():
    overrides = {"n_levels": 7, "width": 16, "fd_epsilon": 0.1}
    plain, v2 = cell("ncsn", **overrides), cell("ncsnv2", **overrides)
    assert list(without_effect(plain, overrides)) == ["n_levels", "fd_epsilon"]
    lines = describe_without_effect([plain, v2], overrides)
    assert lines == [
        "warning: n_levels = 7 has no effect on NCSN, where n_levels = 10",
        "warning: fd_epsilon = 0.1 has no effect on any row, where fd_epsilon = None",
    ]
    assert describe_without_effect([plain, v2], overrides, {"n_levels", "width"}) == lines
    with pytest.raises(ValueError, match=r"--set fd_epsilon: fd_epsilon = 0\.1 has no effect"):
        describe_without_effect([plain, v2], overrides, overrides)
    # What happens to be the row's own is no disappointment.
    assert without_effect(cell("ncsn"), {"sigma_end": 0.01, "n_levels": 10}) == {}


@pytest.mark.parametrize(
    ("variant", "more"),
    [("ncsn", {}), ("ncsnv2", {"n_steps_each": 3}), ("ncsnv2", {"preset": "cifar10"})],
)
def test_a_budget_of_evaluations_gives_t_unless_t_is_given(variant, more):
    overrides = {"score_evaluations": 1000} | more
    assert list(without_effect(cell(variant, **overrides), overrides)) == ["score_evaluations"]
    alone = {"score_evaluations": 1000}
    assert without_effect(cell("ncsnv2", **alone), alone) == {}
    assert cell("ncsnv2", **alone).n_steps_each != cell("ncsnv2").n_steps_each


@pytest.mark.parametrize("name", ["n_steps_each", "step_size"])
def test_a_row_is_not_called_by_what_it_does_not_take(name):
    row = Row(Variant(ema=True), ((name, OTHER[name]),))
    with pytest.raises(ValueError, match=rf"the row NCSN_5 with {name} = .* no effect"):
        row.resolve(BUDGETS["paper"], {}, facts())


def test_a_share_of_the_noise_scales_is_taken():
    row = Row(Variant(conditioning=True), (("sampling_levels", 0.5),))
    assert row.resolve(BUDGETS["paper"], {}, facts()).sampling_levels == 5
    assert without_effect(cell(sampling_levels=20), {"sampling_levels": 20.0}) == {}
    row = Row(Variant(conditioning=True), (("sampling_levels", 30),))
    other = row.resolve(BUDGETS["paper"], {"sampling_levels": 20}, facts())
    assert list(without_effect(other, {"sampling_levels": 20.0})) == ["sampling_levels"]


def test_the_launcher_says_so(tmp_path, capsys):
    flags = ["--out", str(tmp_path / "out"), "--device", "cpu", "--budget", "quick"]
    assert main([*flags, "--set", "n_levels=7", "--dry-run"]) == 0
    line = "warning: n_levels = 7 has no effect on NCSN; NCSN_5, where n_levels = 10"
    assert line in capsys.readouterr().out.splitlines()
    assert make_plan(parse_arguments(flags)).notes == ()  # the budget's own are no user's
    assert main([*flags, "--grid", "objectives", "--set", "coverage=0.1", "--dry-run"]) == 2
    assert "coverage = 0.1 has no effect on any row" in capsys.readouterr().err
    # Rows that are added to a folder come with its settings.
    plan = make_plan(parse_arguments([*flags, "--set", "coverage=0.1"]))
    (tmp_path / "out").mkdir(exist_ok=True)
    plan.study.file.save(plan.manifest, tmp_path / "out")
    added = make_plan(parse_arguments([*flags, "--grid", "objectives"]))
    assert added.manifest.overrides == {"coverage": 0.1}
    both = make_plan(parse_arguments([*flags, "--grid", "objectives,steps"]))
    assert both.manifest.overrides == {"coverage": 0.1}
    assert both.manifest.grid == "paper + objectives + steps"
    assert len(added.notes) == 1 and "coverage = 0.1 has no effect on any row" in added.notes[0]
