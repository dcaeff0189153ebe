"""A user's own file: loaded once, told by its content, and taken along wherever its names are."""

import json
import pickle
import re
import subprocess
import sys

import pytest
from resolved import cell
from tiny_grid import environment

from ablations.command_line import load_units, make_plan, parse_arguments
from ablations.engine.plugins import (
    joined_plugins,
    load_plugins,
    plugin_digest,
    read_plugin,
    unload_plugins,
)
from ablations.launch import main
from ablations.pipeline.cell import cell_from_json
from ablations.pipeline.manifest import load_manifest
from scorekit.sampling.registry import SAMPLERS

SAMPLER = """
from scorekit.sampling import AnnealedLangevin, register_sampler
register_sampler("mine", lambda score, ladder, **options:
    AnnealedLangevin.along(score, ladder, **options))
"""
GRID = """
name = "own"
plugin = "mine.py"
datasets = ["digits"]
budget = "quick"
[[rows]]
variant = "ncsnv2"
[[rows]]
variant = "ncsnv2"
sampler = "mine"
[set]
width = 2
iterations = 2
batch_size = 4
snapshot_interval = 2
test_interval = 2
n_levels = 3
n_steps_each = 2
n_selection = 4
n_final = 4
n_loss = 4
n_dump = 2
sampling_batch = 4
compile = false
"""


@pytest.fixture(autouse=True)
def nothing_stays():
    yield
    unload_plugins()


def plugin(folder, text=SAMPLER, name="mine.py"):
    (folder / name).write_text(text)
    return read_plugin(folder / name)


def flags(folder, *more):
    return ["--out", str(folder / "out"), "--device", "cpu", "--executor", "inline", *more]


@pytest.fixture
def grid(tmp_path):
    (tmp_path / "mine.py").write_text(SAMPLER)
    (tmp_path / "own.toml").write_text(GRID)
    return str(tmp_path / "own.toml")


def test_a_name_is_known_once_its_file_is_loaded_and_its_digest_is_that_of_the_content(tmp_path):
    mine = plugin(tmp_path)
    assert "mine" not in SAMPLERS
    load_plugins([mine])
    made = SAMPLERS["mine"]
    load_plugins([read_plugin(tmp_path / "mine.py")])  # the same again
    assert SAMPLERS["mine"] is made
    assert plugin_digest("sampler", "mine") == mine.digest
    assert plugin_digest("sampler", "annealed") is None
    assert plugin_digest("noise_levels", "mine") is None


def test_another_content_takes_the_place_of_the_first_and_two_files_live_together(tmp_path):
    load_plugins([plugin(tmp_path)])
    first = SAMPLERS["mine"]
    other = plugin(tmp_path, SAMPLER.replace('"mine"', '"other"'), "other.py")
    edited = plugin(tmp_path, SAMPLER + "# edited\n")
    load_plugins([other, edited])
    assert SAMPLERS["mine"] is not first
    assert plugin_digest("sampler", "mine") == edited.digest
    assert plugin_digest("sampler", "other") == other.digest
    load_plugins([plugin(tmp_path, SAMPLER.replace('"mine"', '"renamed"'))])
    assert "mine" not in SAMPLERS
    assert "renamed" in SAMPLERS
    assert "other" in SAMPLERS


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = = 1", "mine.py is not Python: line 1: invalid syntax"),
        ("\n1 / 0", "mine.py, line 2: ZeroDivisionError: division by zero"),
        ("import no_such_module_of_mine", "ModuleNotFoundError: No module named 'no_such_mod"),
        ("raise SystemExit(3)", "mine.py, line 1: SystemExit: 3"),
        ("pass", "mine.py registers nothing; known: .*sampler"),
        (SAMPLER.replace('"mine"', '"heun"'), "line 3: ValueError: sampler = 'heun' is registered"),
        (
            "from scorekit.sampling.registry import SAMPLERS\nSAMPLERS['heun'] = 3",
            "mine.py: sampler = 'heun' is taken",
        ),
        (SAMPLER + "\n1 / 0", "mine.py, line 6: ZeroDivisionError"),
    ],
)
def test_a_file_that_fails_is_one_line_and_leaves_nothing(tmp_path, text, said):
    before = dict(SAMPLERS)
    load_plugins([plugin(tmp_path, SAMPLER.replace('"mine"', '"kept"'), "kept.py")])
    kept = SAMPLERS["kept"]
    with pytest.raises(ValueError, match=said) as error:
        load_plugins([plugin(tmp_path, text)])
    assert "\n" not in str(error.value)
    assert before | {"kept": kept} == SAMPLERS
    assert plugin_digest("sampler", "mine") is None
    load_plugins([plugin(tmp_path)])  # mended
    assert "mine" in SAMPLERS


def test_a_failed_edit_leaves_what_was_there(tmp_path):
    first = plugin(tmp_path)
    load_plugins([first])
    with pytest.raises(ValueError, match="division"):
        load_plugins([plugin(tmp_path, SAMPLER + "1 / 0")])
    assert "mine" in SAMPLERS
    assert plugin_digest("sampler", "mine") == first.digest


def test_a_file_that_is_not_there_and_two_of_one_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"plugin .*gone\.py cannot be read: No such file"):
        read_plugin(tmp_path / "gone.py")
    (tmp_path / "a").mkdir()
    first, other = plugin(tmp_path), plugin(tmp_path / "a", SAMPLER + "#")
    assert joined_plugins([first], [other]) == (other,)
    assert joined_plugins([first], []) == (first,)
    with pytest.raises(ValueError, match=r"both called mine\.py; rename one"):
        joined_plugins([], [first, other])


def test_a_plugin_that_imports_its_neighbour_is_refused(tmp_path, monkeypatch):
    (tmp_path / "a_neighbour_of_mine.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"imports a_neighbour_of_mine\.py, which lies beside it"):
        load_plugins([plugin(tmp_path, "import a_neighbour_of_mine\n" + SAMPLER)])
    sys.modules.pop("a_neighbour_of_mine")


def test_a_file_may_define_dataclasses_and_read_where_it_lies(tmp_path):
    text = "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: 'int' = 1\n"
    load_plugins([plugin(tmp_path, text + "assert __file__.endswith('mine.py')\n" + SAMPLER)])
    assert "mine" in SAMPLERS


def test_stages_that_use_a_plugin_have_its_digest_and_others_what_they_had(tmp_path):
    plain, before = cell(), cell().sample_stages(100, final=False)[0]
    load_plugins([mine := plugin(tmp_path)])
    own = cell(sampler="mine")
    assert own.train_stage() == plain.train_stage()
    (stage,) = own.sample_stages(100, final=False)
    assert stage.settings["plugins"] == {"sampler=mine": mine.digest}
    assert own.interpolation_stage(100).settings["plugins"] == {"sampler=mine": mine.digest}
    assert cell() == plain
    assert cell().sample_stages(100, final=False)[0].digest == before.digest
    load_plugins([plugin(tmp_path, SAMPLER + "#")])
    (edited,) = cell(sampler="mine").sample_stages(100, final=False)
    assert edited.digest != stage.digest
    assert own.sample_stages(100, final=False)[0].digest == stage.digest
    again = cell_from_json(json.loads(json.dumps(own.to_json())))
    assert again == own
    old = own.to_json()
    del old["plugins"]  # of before there were any
    assert cell_from_json(old).plugins == ()


def test_what_shapes_a_training_is_in_its_digest(tmp_path):
    text = """
from dataclasses import replace
from scorekit.models.conditioning import CONDITIONINGS, register_conditioning
from scorekit.techniques.noise_levels import NOISE_LEVELS, register_noise_levels
register_conditioning("mine", replace(CONDITIONINGS["edm"]))
register_noise_levels("mine", replace(NOISE_LEVELS["log_normal"]))
"""
    load_plugins([mine := plugin(tmp_path, text)])
    for kind in ("conditioning", "noise_levels"):
        stage = cell(**{kind: "mine"}).train_stage()
        assert stage.settings["plugins"] == {f"{kind}=mine": mine.digest}
    assert "plugins" not in cell(noise_levels="log_normal").train_stage().settings


def sample_results(out):
    return {path.parent.name for path in (out / "stages" / "sample").glob("*/result.json")}


def test_a_grid_with_a_plugin_runs_goes_on_without_it_and_makes_an_edited_one_anew(
    grid, tmp_path, capsys
):
    assert main(["--grid", grid, *flags(tmp_path)]) == 0
    out = tmp_path / "out"
    (kept,) = (out / "plugins").iterdir()
    assert kept.read_text() == SAMPLER
    first = sample_results(out)
    trained = {p.parent.name for p in (out / "stages" / "train").glob("*/result.json")}
    assert (len(first), len(trained)) == (2, 1)
    # What was made by the paper's sampler, but for its name, is the same images.
    images = {(p / "denoised.npy").read_bytes() for p in (out / "stages" / "sample").iterdir()}
    assert len(images) == 1

    unload_plugins()
    (tmp_path / "mine.py").unlink()
    capsys.readouterr()
    assert main(flags(tmp_path)) == 0
    assert "nothing to do" in capsys.readouterr().out
    unload_plugins()
    assert main(flags(tmp_path, "--status")) == 0
    assert "DONE      evaluate digits NCSNv2, mine seed 0" in capsys.readouterr().out

    unload_plugins()
    (tmp_path / "mine.py").write_text(SAMPLER + "# edited\n")
    assert main([*flags(tmp_path), "--plugin", str(tmp_path / "mine.py")]) == 0
    assert len(sample_results(out) - first) == 1
    assert first < sample_results(out)
    assert {p.parent.name for p in (out / "stages" / "train").glob("*/result.json")} == trained
    assert len(list((out / "plugins").iterdir())) == 2
    unload_plugins()
    manifest = load_manifest(out)
    assert manifest is not None
    assert [p.source.decode() for p in manifest.plugins] == [SAMPLER + "# edited\n"]
    digest = manifest.plugins[0].digest
    assert [c.plugins for c in manifest.units] == [(), (("sampler", "mine", digest),)]
    capsys.readouterr()
    assert main(flags(tmp_path)) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_a_kept_plugin_that_is_gone_or_changed_is_one_line(grid, tmp_path, capsys):
    plan = make_plan(parse_arguments(["--grid", grid, *flags(tmp_path)]))
    plan.study.file.save(plan.manifest, plan.context.out)
    (kept,) = (tmp_path / "out" / "plugins").iterdir()
    kept.write_text("1 / 0")
    assert main(flags(tmp_path, "--status")) == 2
    assert re.search(r"error: plugin .* was changed; put mine\.py there", capsys.readouterr().err)
    kept.unlink()
    assert main(flags(tmp_path, "--status")) == 2
    assert "cannot be read: No such file" in capsys.readouterr().err


def test_rows_whose_names_an_edited_plugin_has_no_more_are_refused(grid, tmp_path, capsys):
    plan = make_plan(parse_arguments(["--grid", grid, *flags(tmp_path)]))
    plan.study.file.save(plan.manifest, plan.context.out)
    plugin(tmp_path, SAMPLER.replace('"mine"', '"other"'))
    assert main(flags(tmp_path, "--plugin", str(tmp_path / "mine.py"))) == 2
    assert "sampler = 'mine' is unknown" in capsys.readouterr().err


def test_names_of_plugins_are_listed(tmp_path, capsys):
    plugin(tmp_path)
    given = ["--plugin", str(tmp_path / "mine.py")]
    assert main([*flags(tmp_path), *given, "--set", "sampler=mime"]) == 2
    assert re.search("sampler = 'mime' is unknown.*heun.*mine", capsys.readouterr().err)


def test_a_spawned_worker_loads_it(grid, tmp_path):
    """As `--executor local` and Slurm do: from what was pickled, in a process of its own."""
    from ablations.executors.local import SubmittedJob

    plan = make_plan(parse_arguments(["--grid", grid, *flags(tmp_path)]))
    plan.study.file.save(plan.manifest, plan.context.out)
    (tmp_path / "mine.py").unlink()
    path = tmp_path / "pickled"
    train, *_, own = [job for job in plan.jobs if job.kind in ("train", "evaluate")]
    for job in (train, own):
        path.write_bytes(pickle.dumps(SubmittedJob(job, plan.context)))
        code = (
            "import pickle, sys\n"
            "from ablations.engine.run import run_job\n"
            "submitted = pickle.load(open(sys.argv[1], 'rb'))\n"
            "run_job(submitted.job, submitted.context)\n"
        )
        command = [sys.executable, "-c", code, str(path)]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert own.cell.sampler == "mine"
    assert own.is_done(plan.context)


def test_a_plugin_that_fails_in_a_worker_is_on_record(grid, tmp_path):
    import dataclasses

    from ablations.engine.failures import read_failure
    from ablations.engine.run import run_job

    plan = make_plan(parse_arguments(["--grid", grid, *flags(tmp_path)]))
    broken = plugin(tmp_path, "import not_installed_on_this_node")
    context = dataclasses.replace(plan.context, plugins=(broken,))
    with pytest.raises(ValueError, match="No module named"):
        run_job(plan.jobs[0], context)
    failure = read_failure(plan.context.out, plan.jobs[0].name)
    assert failure is not None
    assert "not_installed_on_this_node" in failure["message"]


def test_status_reads_the_plugins_of_the_folder(grid, tmp_path):
    plan = make_plan(parse_arguments(["--grid", grid, *flags(tmp_path)]))
    plan.study.file.save(plan.manifest, plan.context.out)
    unload_plugins()
    _, units, _ = load_units(parse_arguments(flags(tmp_path)))
    assert [unit.sampler for unit in units] == ["annealed", "mine"]
    assert "mine" in SAMPLERS
