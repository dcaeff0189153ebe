"""The files of the guide to plugins, run by the commands that it gives, on a small budget."""

import re

import pandas as pd
import pytest
from places import ROOT

from ablations.engine.context import Context
from ablations.engine.plugins import unload_plugins
from ablations.launch import main
from ablations.pipeline.jobs import EvaluateJob
from ablations.pipeline.manifest import load_manifest

GUIDE = (ROOT / "docs" / "plugins.md").read_text()
TINY = {
    **{"width": 2, "iterations": 4, "batch_size": 4, "snapshot_interval": 4, "test_interval": 2},
    **{"n_levels": 3, "n_steps_each": 2, "n_selection": 4, "n_final": 4, "n_loss": 4, "n_dump": 2},
    **{"sampling_batch": 4},
}


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for title, text in re.findall(r'^```\w+ title="([\w.]+)"\n(.*?)^```', GUIDE, re.M | re.S):
        (tmp_path / title).write_text(text)
    yield
    unload_plugins()


def command(beginning):
    (line,) = re.findall(rf"^python -m ablations\.launch {beginning}.*$", GUIDE, re.M)
    tiny = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]
    return [*line.split()[3:], *tiny, "--device", "cpu"]


def rows(out):
    table = pd.read_csv(out / "report" / "tables" / "ablation.csv")
    assert set(table["status"]) == {"done", "reference"}
    return load_manifest(out).units


@pytest.mark.slow
def test_the_network_is_trained_sampled_and_measured_beside_the_papers(tmp_path):
    """By local workers, which are processes of their own."""
    given = command(r"--plugin mine\.py --vary")
    few = ["--only", "digits/ncsnv2-architecture*"]
    assert main([*given, *few, "--executor", "local", "--workers", "2"]) == 0
    units = load_manifest(tmp_path / "runs" / "unet").units
    assert {cell.train.architecture for cell in units} == {"32-64", "unet"}
    assert len(units) == 10
    assert {cell.train.conditional for cell in units} == {True, False}
    context = Context.reading(tmp_path / "runs" / "unet", tmp_path / "runs" / "unet" / "data")
    done = [cell for cell in units if EvaluateJob(cell=cell).is_done(context)]
    assert [cell.row for cell in done] == ["architecture=32-64", "architecture=unet"]


def test_a_grid_finds_both_files_beside_it(tmp_path):
    assert main([*command("--grid quieter"), "--executor", "inline"]) == 0
    out = tmp_path / "runs" / "quieter"
    paper, quieter, both = rows(out)
    assert (quieter.sampler, quieter.train_stage()) == ("quieter", paper.train_stage())
    assert (both.sampler, both.train.architecture) == ("quieter", "unet")
    assert quieter.score_evaluations == 3
    assert len(list((out / "plugins").iterdir())) == 2
    (of_network,) = [digest for kind, _, digest in both.plugins if kind == "architecture"]
    (of_sampler,) = [digest for kind, _, digest in quieter.plugins if kind == "sampler"]
    assert of_network != of_sampler


def test_conditionings_are_those_of_the_base_class(tmp_path):
    given = command(r"--plugin mine\.py --grid noise-conditioning")
    assert main([*given, "--executor", "inline", "--out", "out", "--only", "*conditioning*"]) == 0
    assert {unit.train.conditioning for unit in load_manifest(tmp_path / "out").units} == {
        *(None, "none", "normalisation", "edm")
    }
