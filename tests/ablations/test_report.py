"""The report's page: one file that stands alone, says its conditions, and escapes what it shows."""

from __future__ import annotations

import base64
import hashlib
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import fake_results
import pytest

from ablations.report import main
from ablations.reporting.page import Collapsed, Section, Words, rich, table_groups, write_page
from ablations.reporting.pictures import Picture
from ablations.reporting.table import Column, Table
from ablations.studies.ncsnv2.report import build_report, sections
from ablations.studies.ncsnv2.results import Results
from ablations.studies.ncsnv2.sections.ablation import ablation_table
from ablations.studies.ncsnv2.sections.settings_and_times import (
    hyperparameter_table,
    quoted_scores_table,
    timing_table,
)

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
    images = ("data:image/png;base64,", "data:image/svg+xml;base64,")
    assert all(link.startswith(("#", *images)) or link == "data:," for link in page.links)
    assert 'src="http' not in page.source and 'href="http' not in page.source
    assert "url(" not in page.source and "@import" not in page.source
    assert page.tags.count("script") == 1
    assert len(page.ids) == len(set(page.ids))
    anchors = [link[1:] for link in page.links if link.startswith("#")]
    assert anchors and set(anchors) <= set(page.ids)
    # Nine pictures, four grids of samples, and the one that is enlarged.
    assert page.tags.count("img") == page.attributes.count("alt") == 9 + 4 + 1


def test_a_browser_may_run_the_pages_own_script_only(whole: Path) -> None:
    source = whole.read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', source)
    script = re.search(r"<script>(.*?)</script>", source, re.DOTALL)
    assert policy is not None and script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    rules = dict(rule.strip().split(" ", 1) for rule in policy[1].split(";"))
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data:"
    assert rules["script-src"] == f"'sha256-{digest}'"
    assert script[1].count("\n") < 100


def test_the_ablation_table_comes_first_and_contents_lead_to_every_section(whole: Path) -> None:
    page = _Page(whole)
    contents = [link[1:] for link in page.links if link.startswith("#")]
    assert contents[:5] == ["ablation", "samples", "quality", "curves", "ema"]
    assert contents == [name for name in page.ids if name in contents]
    assert page.source.index("<table>") < page.source.index("<figure")


def test_sections_are_a_list_that_a_page_is_made_of(tmp_path: Path) -> None:
    results = fake_results.complete(tmp_path / "data")
    table, picture = ablation_table(results), _picture(results)
    other = replace(table, name="other", title="Another & table")
    made = [
        Section(id="none", title="Nothing measured", blocks=[None]),
        Section(id="some", title="Some", blocks=(block for block in (picture, None, other))),
        Section(
            id="more",
            title=table.title,
            blocks=[Collapsed(summary="Behind a line", blocks=[table], note="A note.")],
            only_files=[replace(picture, name="beside")],
        ),
    ]
    words = Words(
        title="A title",
        eyebrow="Report",
        heading="A heading",
        lead="What <it> is.",
        budget="quick",
        budget_note="Few iterations.",
        facts=[("State", "1 of 1 done")],
        footer="A source.",
    )
    path = write_page(tmp_path / "report", made, words)
    page = _Page(path)
    assert page.open == []
    assert "Nothing measured" not in page.text and "none" not in page.ids
    assert [link for link in page.links if link.startswith("#")] == ["#some", "#more"]
    figure = f"figure-{picture.name}"
    assert page.ids == ["some", figure, "table-other", "more", "table-ablation", "enlarged"]
    # A table is not headed twice by the same words.
    assert "<h3>Another &amp; table</h3>" in page.source
    assert f"<h3>{table.title}</h3>" not in page.source
    assert page.tags.count("details") == 1 and "A note." in page.text
    assert (tmp_path / "report" / "figures" / "beside.svg").is_file()
    assert "beside" not in page.text
    assert "What <it> is." in page.text and "Few iterations." in page.text
    assert "<dt>State</dt><dd>1 of 1 done</dd>" in page.source
    # Neither a run still going on nor problems: nothing is said of either.
    assert 'class="notice"' not in page.source


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_the_contrast_of_wcag_aa(whole: Path, scheme: str) -> None:
    source = whole.read_text(encoding="utf-8")
    light, dark = re.findall(r":root \{(.*?)\}", source, re.DOTALL)[:2]
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", light))
    if scheme == "dark":
        assert "prefers-color-scheme: dark" in source
        colours |= dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", dark))
    for ink in ("ink", "soft", "accent", "bad"):
        for paper in ("paper", "faint"):
            assert _contrast(colours[ink], colours[paper]) >= 4.5, (ink, paper)
    for ink in ("ink", "warn"):
        assert _contrast(colours[ink], colours["warn-paper"]) >= 4.5, ink


def _contrast(a: str, b: str) -> float:
    """Contrast of two hex colours, 1 to 21 (WCAG 2.2, "contrast ratio")."""

    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def _picture(results: Results) -> Picture:
    blocks = next(section for section in sections(results) if section.id == "loss").blocks
    return next(block for block in blocks if isinstance(block, Picture))


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


def test_the_page_warns_of_results_of_other_code_and_names_every_version(tmp_path: Path) -> None:
    results = fake_results.empty()
    assert "--rerun changed" not in _Page(build_report(results, tmp_path / "one")).text
    run = results.run | {"codes": ["0123456789ab", "aaaaaaaaaaaa", "bbbbbbbbbbbb"]}
    run |= {"outdated": "results are older than the code that makes them (2 sample)"}
    text = _Page(build_report(replace(results, run=run), tmp_path / "two")).text
    assert "Results are older than the code that makes them (2 sample), which may give" in text
    assert "--rerun changed" in text
    assert "3 versions of the code: 0123456789ab, aaaaaaaaaaaa, bbbbbbbbbbbb" in text


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
    assert not {"b", "i"} & set(page.tags) and page.tags.count("script") == 1
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
    assert cells[0][0] == ("CIFAR-10, NCSNv2", None)


def _sorted_by(table: Table, heading: str) -> dict[str, list[str | None]]:
    column = [column.heading for column in table.columns[1:]].index(heading)
    return {name: [cells[column][1] for _, cells in rows] for name, rows in table_groups(table)}


def test_numbers_sort_by_their_raw_values(tmp_path: Path) -> None:
    results = fake_results.complete(tmp_path, datasets=("cifar10-jpeg",), n_seeds=2)
    ablation = ablation_table(results)
    (distances,) = _sorted_by(ablation, "Distance ↓").values()
    assert [float(value or "nan") for value in distances] == list(ablation.raw["distance_mean"])
    (n,) = _sorted_by(ablation, "n").values()
    assert set(n) == {"1000"}
    assert set(_sorted_by(ablation, "Status")["cifar10-jpeg"]) == {None}
    assert _sorted_by(ablation, "Checkpoint")["cifar10-jpeg"] == ["5000"] * 8 + [""] * 3
    times = _sorted_by(timing_table(results), "Training")
    assert set(times["cifar10-jpeg"]) == {"754.0"}
    assert times["Quoted from the paper"][0] == str(22 * 3600.0)
    epsilon = _sorted_by(hyperparameter_table(results), "ε")["cifar10-jpeg"]
    assert [float(value or "nan") for value in epsilon] == [2e-5, 2e-5, 6.2e-6, 6.2e-6]
    quoted = quoted_scores_table(results)
    assert quoted is not None
    assert _sorted_by(quoted, "Inception ↑")["CIFAR-10"][-1] == "8.40"


def test_shown_numbers_serve_where_a_table_has_no_raw_column_of_them(tmp_path: Path) -> None:
    table = ablation_table(fake_results.complete(tmp_path))

    def sorted_by(column: Column) -> list[str | None]:
        shown = replace(table, columns=(*table.columns, column))
        (values,) = _sorted_by(shown, column.heading).values()
        return values

    more = len(table.rows) - 3
    texts = ["FID 1,234.5", "KID 3.1e-3 ± 2e-4", "—", *["failed"] * more]
    assert sorted_by(Column("Score", texts, number=True))[:4] == ["1234.5", "3.1e-3", "", ""]
    assert set(sorted_by(Column("Score", texts))) == {None}
    # Numbers with units do not compare as numbers.
    units = ["3 min", *["40 s"] * (more + 2)]
    assert set(sorted_by(Column("Time", units, number=True))) == {None}
    raw = sorted_by(Column("Time", units, by="distance_mean"))
    assert raw == _sorted_by(table, "Distance ↓")["digits"]


def test_a_table_has_a_cell_for_each_row_in_each_column(tmp_path: Path) -> None:
    table = ablation_table(fake_results.complete(tmp_path))
    with pytest.raises(ValueError, match="table ablation: raw rows, kinds and columns differ"):
        replace(table, columns=(*table.columns, Column("n", ["1"])))


def test_rich_text_is_escaped_before_it_is_marked() -> None:
    assert rich("NCSN_1,2 <b>") == "NCSN<sub>1,2</sub> &lt;b&gt;"
    assert rich("FID 3.1") == '<span class="measure">FID</span> 3.1'
    assert "<i>" not in rich("FD[<i>] 3.1")


def _fake_collect(monkeypatch: pytest.MonkeyPatch, collect: Callable[[Path], Results]) -> None:
    module = ModuleType("ablations.studies.ncsnv2.collect")
    module.__dict__["collect"] = collect
    monkeypatch.setitem(sys.modules, "ablations.studies.ncsnv2.collect", module)


def test_main_prints_the_page_and_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "grid.json").write_text("{}")  # says whose report it is
    _fake_collect(monkeypatch, lambda out: replace(fake_results.partial(out), samples=[]))
    assert main([str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(tmp_path / "report" / "index.html")
    assert Path(lines[0]).is_file()
    assert any("NCSN" in line and r"FD\[digits-cnn\] 41.00" in line for line in lines)


def test_main_says_in_one_line_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path} holds no grid; give the --out of a launch\n"
    )
    (tmp_path / "grid.json").write_text("{}")
    assert main([str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path} was written by an incompatible version")
    assert not (tmp_path / "report").exists()


def test_a_user_s_matplotlibrc_changes_no_figure(tmp_path):
    import matplotlib

    results = fake_results.partial(tmp_path / "data")
    pages = [build_report(results, tmp_path / "plain")]
    with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9, "svg.fonttype": "none"}):
        pages.append(build_report(results, tmp_path / "styled"))
        assert matplotlib.rcParams["font.size"] == 30
    assert pages[0].read_bytes() == pages[1].read_bytes()
