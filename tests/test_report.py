"""The report's page: one file that stands alone, says its conditions, and escapes what it shows."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import fake_results
import pytest

from ablations.context_tables import timing_table
from ablations.report import build_report, main, rich, table_groups
from ablations.results import Results

_VOID = {"meta", "img", "br", "hr", "link", "input"}


class _Page(HTMLParser):
    """Checks that tags nest, and keeps what the tests ask for."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.attributes: list[str] = []
        self.text = ""
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in _VOID:
            self.open.append(tag)
        for name, value in attrs:
            self.attributes.append(name)
            if name == "id":
                self.ids.append(str(value))
            if name in ("src", "href"):
                self.links.append(str(value))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whole")
    results = fake_results.complete(directory / "data", datasets=("digits", "cifar10-jpeg"))
    results = replace(results, samples=[s for s in results.samples if s.dataset == "digits"])
    return build_report(results, directory / "report")


def test_the_page_stands_alone(whole: Path) -> None:
    page = _Page(whole)
    assert page.open == []
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.links)
    assert 'src="http' not in page.source and 'href="http' not in page.source
    assert "url(" not in page.source and "@import" not in page.source
    assert "script" not in page.tags
    assert len(page.ids) == len(set(page.ids))
    anchors = [link[1:] for link in page.links if link.startswith("#")]
    assert anchors and set(anchors) <= set(page.ids)
    assert page.tags.count("img") == page.attributes.count("alt") == 7 + 4


def test_the_page_says_its_conditions(whole: Path) -> None:
    text = _Page(whole).text
    for words in (
        *("Budget: quick.", "not the paper's numbers", "8 of 8 cells done", "AMD EPYC, 2 cores"),
        *("python 3.12.4", "torch 2.11.0", "digits, cifar10-jpeg", "paper (Table 6)"),
        *("paper (Table 1)", "FID 10.87", "uniform noise", "1,437 train"),
    ):
        assert words in text
    assert "Still running" not in text
    assert "FD[digits-cnn] 17.00" in " ".join(text.split())


def test_tables_and_figures_lie_beside_the_page(whole: Path) -> None:
    tables = {path.name for path in (whole.parent / "tables").iterdir()}
    for name in ("ablation", "hyperparameters", "timings", "paper_scores"):
        assert {f"{name}.csv", f"{name}.md", f"{name}.tex"} <= tables
    figures = {path.name for path in (whole.parent / "figures").iterdir()}
    for name in ("distance_curves", "ema_curves", "samples"):
        for setting in ("denoised", "not_denoised"):
            assert {f"{name}_{setting}.png", f"{name}_{setting}.svg"} <= figures
    assert {"loss_curves.png", "samples_digits_ncsn-1-2-4-5_denoised.svg"} <= figures
    assert not list(whole.parent.rglob(".*"))


def test_a_running_grid_says_what_is_missing(tmp_path: Path) -> None:
    page = _Page(build_report(fake_results.partial(tmp_path / "data"), tmp_path / "report"))
    assert "Still running: 1 of 4 cells done." in page.text
    assert "1 done, 1 running, 1 failed, 1 diverged" in page.text
    assert "2 cells without a full result" in page.text
    assert "failed: out of memory at batch 128" in page.text
    assert page.source.count('<tr class="problem">') == 4
    assert page.source.count('<tr class="pending">') == 2


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    page = _Page(build_report(fake_results.hostile(tmp_path / "data"), tmp_path / "report"))
    assert page.open == []
    assert not {"script", "b", "i"} & set(page.tags)
    assert not [name for name in page.attributes if name.startswith("on")]
    assert '<script>alert("x")</script>' in page.text
    assert "<img src=x onerror=alert(1)>" in page.text
    written = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert all(
        (tmp_path / "data") in p.parents or (tmp_path / "report") in p.parents for p in written
    )


def test_a_grid_that_just_began_has_a_page(tmp_path: Path) -> None:
    page = _Page(build_report(fake_results.empty(), tmp_path))
    assert page.open == []
    assert "Still running: 0 of 0 cells done." in page.text
    assert "No rows yet." in page.text


def test_building_again_replaces_the_page(tmp_path: Path) -> None:
    empty = fake_results.empty()
    first = build_report(empty, tmp_path / "report")
    before = first.read_text(encoding="utf-8")
    second = build_report(replace(empty, run=fake_results.fake_run()), tmp_path / "report")
    assert first == second
    assert second.read_text(encoding="utf-8") != before


def test_quoted_rows_of_other_data_sets_make_one_group(tmp_path: Path) -> None:
    groups = table_groups(timing_table(fake_results.complete(tmp_path)))
    assert [name for name, _ in groups] == ["digits", "Quoted from the paper"]
    kinds, cells = zip(*groups[1][1], strict=True)
    assert kinds == ("paper",) * 6
    assert cells[0][0] == "CIFAR-10, NCSNv2"


def test_rich_text_is_escaped_before_it_is_marked() -> None:
    assert rich("NCSN_1,2 <b>") == "NCSN<sub>1,2</sub> &lt;b&gt;"
    assert rich("FID 3.1") == '<span class="measure">FID</span> 3.1'
    assert "<i>" not in rich("FD[<i>] 3.1")


def _fake_collect(monkeypatch: pytest.MonkeyPatch, collect: Callable[[Path], Results]) -> None:
    module = ModuleType("ablations.collect")
    module.__dict__["collect"] = collect
    monkeypatch.setitem(sys.modules, "ablations.collect", module)


def test_main_prints_the_page_and_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _fake_collect(monkeypatch, lambda out: replace(fake_results.partial(out), samples=[]))
    assert main([str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(tmp_path / "report" / "index.html")
    assert Path(lines[0]).is_file()
    assert any("NCSN" in line and r"FD\[digits-cnn\] 41.00" in line for line in lines)


def test_main_says_in_one_line_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def collect(out: Path) -> Results:
        raise ValueError(f"{out}: no grid.json")

    _fake_collect(monkeypatch, collect)
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}: no grid.json\n"
    assert not (tmp_path / "report").exists()
