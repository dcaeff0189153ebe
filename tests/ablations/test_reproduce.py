"""The command line that makes the paper's tables and figures by name."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from places import SHARED
from tiny_grid import TOML

from ablations.reproduce import find_items, main
from ablations.studies.ncsnv2 import benchmark
from ablations.studies.ncsnv2.reproductions import FIGURE_DATA, ITEMS

NAMES = [name for item in ITEMS for name in (item.name, *item.aliases)]


def flags(out: Path) -> list[str]:
    return ["--grid", str(TOML), "--out", str(out), "--device", "cpu", "--executor", "inline"]


@pytest.fixture(scope="module")
def finished(finished, tmp_path_factory):
    """A copy, since items run what the grid lacks."""
    folder = tmp_path_factory.mktemp("reproduce")
    return Path(shutil.copytree(finished, folder / "grid"))


def contents(out: Path) -> dict[str, bytes]:
    folder = out / "reproduce"
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_all_makes_every_item_and_again_the_same_bytes(finished, capsys, monkeypatch) -> None:
    out = finished / "out"
    monkeypatch.setattr(benchmark, "EVALUATIONS", (6, 12))
    # The grid is finished, so nothing is trained; mixtures are sampled the first time.
    assert main(["all", *flags(out)]) == 0
    printed = capsys.readouterr().out
    assert "nothing to do" in printed
    first = contents(out)
    for item in ITEMS:
        assert re.search(rf"^{item.name}: .*{item.name} \(\d+ files\)$", printed, re.MULTILINE)
        files = {name: data for name, data in first.items() if name.startswith(f"{item.name}/")}
        assert all(files.values())
        suffixes = {Path(name).suffix for name in files}
        assert f"{item.name}/caption.md" in files
        if item.name.startswith("table"):
            assert {".csv", ".md", ".tex"} <= suffixes
        else:
            assert {".png", ".svg"} <= suffixes and suffixes & {".csv", ".npz"}
    again = ["table1", "fig2", "fig4", "fig13", "sampler-benchmark"]
    assert main([*again, *flags(out), "--no-run"]) == 0
    assert contents(out) == first


def test_every_name_of_the_list_is_known_and_the_papers(capsys) -> None:
    assert main(["--list"]) == 0
    printed = capsys.readouterr().out
    assert len(set(NAMES)) == len(NAMES)
    for name in NAMES:
        assert re.search(rf"\b{name}\b", printed)
        study, found = find_items([name])
        assert study.name == "ncsnv2" and len(found) == 1
    assert re.search(r"cifar10 .*--datasets cifar10:PATH --set preset=cifar10", printed)
    assert find_items(["all"])[1] == list(ITEMS)
    _, found = find_items(["fig12", "fig11", "table4"])
    assert [item.name for item in found] == ["fig11", "table4"]
    for name in ("fd-a", "fd-b", "fd-c", "fd-d", "fd-dkef", "fd-memory"):
        assert re.search(rf"\b{name}\b", printed)
        assert find_items([name])[0].name == "finite-difference"
    with pytest.raises(ValueError, match="fig3, fd-a are of the studies ncsnv2 and finite-diff"):
        find_items(["fig3", "fd-a"])


def test_the_list_says_of_what_data_the_papers_figures_are(capsys) -> None:
    assert set(FIGURE_DATA) <= set(NAMES)
    assert main(["--list"]) == 0
    printed = capsys.readouterr().out
    for name, data in FIGURE_DATA.items():
        assert re.search(rf"(^{name} .*? \[{data}\])|(\b{name} \[{data}\])", printed, re.MULTILINE)
    assert "Here every figure is of\nthe data sets that --datasets names." in printed


PAPER = SHARED / "papers/ncsnv2.txt"


@pytest.mark.skipif(not PAPER.exists(), reason="the papers are not there")
def test_the_data_of_the_figures_are_those_of_the_papers_captions() -> None:
    for number, caption in re.findall(r"^Figure (\d+): (.*)", PAPER.read_text(), re.MULTILINE):
        named = FIGURE_DATA.get(f"fig{number}")
        if int(number) >= 10 and named is not None:
            assert named.replace("_", "\\_") in caption.replace("church_", "church\\_")


def captions(out: Path, name: str) -> str:
    return (out / "reproduce" / name / "caption.md").read_text()


def test_sheets_of_the_appendix_are_of_the_last_iteration_unless_told(finished) -> None:
    out = finished / "out"
    sheets = ["fig7", "fig25", *flags(out), "--no-run"]
    assert main(sheets) == 0
    assert "64 samples of the last iteration" in captions(out, "fig25")
    assert "selected" not in captions(out, "fig25")
    assert "NCSN_1,2,4" not in captions(out, "fig25")
    assert "64 samples of the snapshot selected by its distance" in captions(out, "fig7")
    assert "last iteration" not in captions(out, "fig7")
    for name, other in (("selected", "last iteration"), ("last", "selected by")):
        assert main([*sheets, "--snapshot", name]) == 0
        for item in ("fig7", "fig25"):
            assert other not in captions(out, item)
    with pytest.raises(SystemExit):
        main([*sheets, "--snapshot", "first"])


@pytest.mark.slow
def test_neighbours_of_a_snapshot_that_are_missing_are_made_or_said(
    finished, tmp_path, capsys
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished / "out", out)
    shutil.rmtree(out / "stages" / "neighbours", ignore_errors=True)  # other tests may make them
    for which, words in (("last", "last iteration, 6"), ("selected", "selected by its distance, ")):
        told = ["--snapshot", which]
        assert main(["fig16", *flags(out), *told, "--no-run"]) == 1
        assert "no neighbours of the" in capsys.readouterr().err
        # The last iteration is what it shows unless told.
        assert main(["fig16", *flags(out), *(told if which == "selected" else [])]) == 0
        assert words in captions(out, "fig16")


def test_bad_input_is_one_line_and_code_2(tmp_path, capsys) -> None:
    for arguments, words in [
        (["fig99"], "'fig99' is unknown; known: all, table1"),
        (["fig5", "--no-run", "--out", str(tmp_path)], "holds no grid"),
        (["fig2", "--datasets", "nothing", "--out", str(tmp_path)], "dataset=nothing: unknown"),
        (["fig5", "--set", "widht=3", "--out", str(tmp_path)], "'widht' is unknown"),
    ]:
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2
    assert not (tmp_path / "reproduce").exists()


def test_what_needs_no_run_runs_nothing(tmp_path, capsys) -> None:
    assert main(["table4", "--out", str(tmp_path)]) == 0
    assert sorted(p.name for p in (tmp_path / "reproduce" / "table4").iterdir()) == [
        "caption.md",
        "table4.csv",
        "table4.md",
        "table4.tex",
        *(f"table4_recomputed.{kind}" for kind in ("csv", "md", "tex")),
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["reproduce"]


def test_a_broken_item_stops_no_other(finished, monkeypatch, capsys) -> None:
    out = finished / "out"

    def broken(run):
        raise RuntimeError("no ink\nsecond line")

    items = tuple(replace(i, make=broken) if i.name == "fig3" else i for i in ITEMS)
    monkeypatch.setattr("ablations.studies.ncsnv2.reproductions.ITEMS", items)
    arguments = ["table6", "fig3", "fig15", *flags(out), "--no-run"]
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 2
    (line,) = printed.err.splitlines()
    assert line.startswith("fig3: FAILED: RuntimeError: no ink (see ")
    failure = out / "reproduce" / "fig3" / "failure.txt"
    assert "second line" in failure.read_text()
    monkeypatch.undo()
    assert main(arguments) == 0
    assert not failure.exists()


def test_a_dry_run_is_the_launchers(finished, capsys) -> None:
    assert main(["fig5", *flags(finished / "out"), "--dry-run"]) == 0
    assert "0 of them to do" in capsys.readouterr().out


def test_missing_parts_are_said(tmp_path, finished, capsys) -> None:
    out = tmp_path / "out"
    out.mkdir()
    manifest = (finished / "out" / "grid.json").read_text()
    (out / "grid.json").write_text(manifest)
    assert main(["table1", "fig13", "fig4", *flags(out), "--no-run"]) == 0
    table = (out / "reproduce" / "table1" / "table1.md").read_text()
    assert table.count("planned") >= 6


def test_figures_of_the_second_source_run_what_they_need(tmp_path, capsys) -> None:
    settings = {"toy_iterations": 2, "toy_batch_size": 4, "toy_width": 4, "toy_grid": 8}
    sets = [f"--set={key}={value}" for key, value in settings.items()]
    more = ["--device", "cpu", "--threads", "1", "--executor", "inline", "--seeds", "1"]
    assert main(["fd-d", "--out", str(tmp_path / "out"), *more, *sets]) == 0
    assert "fd-d:" in capsys.readouterr().out
    names = {path.name for path in (tmp_path / "out" / "reproduce" / "fd-d").iterdir()}
    assert {"caption.md", "toy.csv"} <= names
    assert any(name.endswith(".png") for name in names)
    # What the folder was begun with it says itself.
    before = (tmp_path / "out" / "finite-difference.json").read_bytes()
    for more in (["--executor", "inline"], ["--no-run"]):
        assert main(["fd-d", "--out", str(tmp_path / "out"), "--device", "cpu", *more]) == 0
    assert (tmp_path / "out" / "finite-difference.json").read_bytes() == before
