"""The command ``scorekit``, and what it and the launcher say of themselves."""

import dataclasses
import re
import subprocess
import sys

import pytest
from places import ROOT

import scorekit
from ablations import doctor
from ablations.__main__ import COMMANDS, main
from ablations.command_line import output_folder, parse_arguments
from ablations.launch import main as launch
from ablations.studies import all_studies


def test_every_command_takes_its_own_flags(capsys):
    for command in COMMANDS:
        with pytest.raises(SystemExit) as ended:
            main([command, "--help"])
        assert ended.value.code == 0
        assert "usage:" in capsys.readouterr().out
    assert main(["report", "not-there"]) == 2
    assert "not-there holds no grid" in capsys.readouterr().err


def test_the_version_and_the_commands_are_said(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.strip() == scorekit.__version__
    with pytest.raises(SystemExit):
        main(["--help"])
    printed = capsys.readouterr().out
    assert all(re.search(rf"^  {name} ", printed, re.M) for name in COMMANDS)


@pytest.mark.parametrize(
    ("run", "arguments", "said"),
    [
        (main, ["lunch"], "command 'lunch' is unknown, did you mean 'launch'?"),
        (launch, ["--grid", "papper"], "grid 'papper' is unknown, did you mean 'paper'?"),
        (launch, ["--grid", "fd-toy,fd-tou"], "'fd-tou' is unknown, did you mean 'fd-toy'?"),
        (launch, ["--set", "widht=8"], "setting 'widht' is unknown, did you mean 'width'?"),
    ],
)
def test_what_is_mistyped_is_met_with_the_nearest(tmp_path, capsys, run, arguments, said):
    flags = ["--out", str(tmp_path / "out")] if run is launch else []
    assert run([*arguments, *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_the_folder_that_one_stands_in_decides_nothing(tmp_path, monkeypatch):
    (tmp_path / "grid.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    for grid, folder in (("fd-toy", "fd-toy"), ("paper,steps", None), (None, "paper")):
        out = output_folder(parse_arguments([] if grid is None else ["--grid", grid]))
        assert out.parent == tmp_path / "runs"
        assert folder is None or out.name == folder


@pytest.mark.parametrize("study", all_studies(), ids=lambda study: study.name)
def test_every_setting_is_listed_with_its_type_and_its_values(study, tmp_path, capsys):
    grid = next(iter(study.grids))
    assert launch(["--grid", grid, "--settings", "--out", str(tmp_path)]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["setting", "type", *study.budgets, "what", "it", "is"]
    names = [line.split()[0] for line in lines]
    assert names == list(study.settings.__dataclass_fields__)
    quick = study.budgets["quick"].settings
    width = next(name for name in names if name.endswith("width"))
    line = lines[names.index(width)]
    assert "a whole number of " in line and str(getattr(quick, width)) in line.split()
    for field in dataclasses.fields(study.settings):
        assert field.metadata["words"] in lines[names.index(field.name)]


def test_the_doctor_says_what_is_there(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "compile_unavailable_reason", lambda: "no g++")
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert doctor.main([]) == 0
    lines = dict(
        re.split(r" {2,}", line, maxsplit=1) for line in capsys.readouterr().out.splitlines()
    )
    assert lines["torch.compile"] == "eager instead: no g++"
    assert lines["sbatch"] == "not on PATH (needed for --executor slurm)"
    assert "digits-cnn" in lines["feature spaces"]


@pytest.mark.slow
def test_the_doctor_looks_at_this_machine():
    done = subprocess.run(
        [sys.executable, "-m", "ablations", "doctor"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "torch.compile" in done.stdout
