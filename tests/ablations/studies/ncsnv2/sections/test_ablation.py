"""The report's tables: their numbers are the inputs, and every cell has its row."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import fake_results
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ablations.engine.frames import make_frame
from ablations.reporting.table import Column, Table
from ablations.reporting.table_files import (
    csv_text,
    latex_text,
    markdown,
    markdown_text,
    save_table,
)
from ablations.reporting.wording import distance_text, duration, number
from ablations.studies.ncsnv2 import quoted
from ablations.studies.ncsnv2.report import build_report
from ablations.studies.ncsnv2.results import CELL_COLUMNS, DISTANCE_COLUMNS, empty_results
from ablations.studies.ncsnv2.sections.ablation import ablation_table
from ablations.studies.ncsnv2.sections.settings_and_times import (
    hyperparameter_table,
    quoted_scores_table,
    settings_table,
    timing_table,
)
from ablations.studies.ncsnv2.sections.style import variant_order, without_ema


def _rows(frame: pd.DataFrame, **where: object) -> pd.DataFrame:
    for column, value in where.items():
        frame = frame[frame[column] == value]
    return frame


def test_csv_holds_the_inputs_as_raw_numbers(tmp_path: Path) -> None:
    results = fake_results.complete(tmp_path)
    csv, _, _ = save_table(ablation_table(results), tmp_path / "tables")
    read = pd.read_csv(csv)
    ours = _rows(read, kind="ours")
    assert len(ours) == 4 * 2
    for row in ours.to_dict("records"):
        expected = fake_results.final_distance(row["variant"], 0, row["denoise"] in (True, "True"))
        assert row["distance_mean"] == expected
        assert (row["n"], row["n_reference"], row["reference"]) == (1000, 1437, "train")
        assert (row["feature_space"], row["label"]) == ("digits-cnn", "FD[digits-cnn]")
        assert (int(row["iteration"]), row["n_seeds"], row["budget"]) == (5000, 1, "quick")
    assert ours["distance_std"].isna().all()


def test_several_seeds_give_mean_and_sample_deviation(tmp_path: Path) -> None:
    results = fake_results.complete(tmp_path, n_seeds=3)
    table = ablation_table(results)
    row = _rows(table.raw, variant="NCSNv2", denoise=True).iloc[0]
    values = [fake_results.final_distance("NCSNv2", seed, True) for seed in range(3)]
    assert row["distance_mean"] == pytest.approx(np.mean(values))
    assert row["distance_std"] == pytest.approx(np.std(values, ddof=1))
    assert row["n_seeds"] == row["n_seeds_planned"] == 3
    shown = _rows(table.display, Variant="NCSNv2", Denoised="yes").iloc[0]
    assert shown["Distance ↓"] == "FD[digits-cnn] 18.50 ± 1.50 (3 seeds)"


def test_a_missing_seed_is_counted_and_named(tmp_path: Path) -> None:
    results = fake_results.complete(tmp_path, n_seeds=3)
    cells, distances = results.cells.copy(), results.distances
    lost = (cells["variant"] == "NCSN") & (cells["seed"] == 1)
    cells.loc[lost, ["status", "message"]] = ["failed", "killed"]
    gone = (distances["variant"] == "NCSN") & (distances["seed"] == 1)
    table = ablation_table(replace(results, cells=cells, distances=distances[~gone]))
    row = _rows(table.raw, variant="NCSN", denoise=True).iloc[0]
    assert (row["n_seeds"], row["n_seeds_planned"], row["kind"]) == (2, 3, "problem")
    assert row["status"] == "2 of 3 seeds done; seed 1 failed: killed"
    assert row["distance_mean"] == pytest.approx((41.0 + 44.0) / 2)


def test_cells_without_a_number_keep_their_rows_and_say_why(tmp_path: Path) -> None:
    table = ablation_table(fake_results.partial(tmp_path))
    for variant, kind, status in [
        ("NCSN_5", "pending", "running"),
        ("NCSN_1,2,4,5", "problem", "failed: out of memory at batch 128"),
        ("NCSNv2", "problem", "diverged: loss NaN at iteration 3400"),
    ]:
        rows = _rows(table.raw, variant=variant)
        assert list(rows["denoise"]) == [False, True]
        assert list(rows["kind"]) == [kind] * 2
        assert list(rows["status"]) == [status] * 2
        assert rows["distance_mean"].isna().all()
        shown = _rows(table.display, Variant=variant)
        assert list(shown["Distance ↓"]) == [status.split(":")[0]] * 2
    assert "1 of 4 cells done" in table.caption


def test_a_done_cell_without_a_final_distance_says_so(tmp_path: Path) -> None:
    results = fake_results.complete(tmp_path)
    none = results.distances.assign(distance=np.nan)
    table = ablation_table(replace(results, distances=none))
    rows = _rows(table.raw, kind="ours")
    assert len(rows) == 8
    assert set(rows["status"]) == {"done, but no final distance"}


def test_references_close_each_data_set(tmp_path: Path) -> None:
    table = ablation_table(fake_results.complete(tmp_path, datasets=("digits", "cifar10-jpeg")))
    for _, group in table.raw.groupby("dataset", sort=False):
        assert list(group["kind"])[-3:] == ["reference"] * 3
        assert list(group["distance_mean"])[-3:] == [412.5, 88.25, 2.125]
        assert "reference" not in list(group["kind"])[:-3]


def test_a_distance_is_never_without_its_space_n_and_budget(tmp_path: Path) -> None:
    table = ablation_table(fake_results.complete(tmp_path))
    assert table.display["Distance ↓"].str.startswith("FD[digits-cnn] ").all()
    assert (table.display["n"] == "1,000").all()
    assert "Budget “quick” (not the paper's)" in table.caption
    assert "Budget “quick” (not the paper's)" in markdown(table)


def test_other_subsets_of_techniques_are_rows_in_order(tmp_path: Path) -> None:
    results = fake_results.complete(tmp_path)
    cells = results.cells.copy()
    cells.loc[cells["variant"] == "NCSN_5", ["variant", "base"]] = "NCSN_1,2"
    order = list(dict.fromkeys(ablation_table(replace(results, cells=cells)).raw["variant"]))
    assert order[:5] == ["NCSN", "NCSN_5", "NCSN_1,2,4,5", "NCSN_1,2", "NCSNv2"]
    assert variant_order(results, ["NCSNv2", "NCSN", "NCSN"]) == ["NCSN", "NCSNv2"]


def test_paper_rows_are_marked_and_only_for_its_data_sets(tmp_path: Path) -> None:
    assert quoted_scores_table(fake_results.complete(tmp_path / "a")) is None
    assert quoted.family("cifar100") is None
    table = quoted_scores_table(
        fake_results.complete(tmp_path / "b", datasets=("digits", "cifar10-jpeg"))
    )
    assert table is not None
    row = _rows(table.raw, variant="NCSNv2", denoise=True).iloc[0]
    assert (row["fid"], row["inception_score"]) == (10.87, "8.40 ± .07")
    assert set(table.raw["source"]) == {"paper (Table 1)"}
    assert set(table.raw["dataset"]) == {"CIFAR-10"}
    assert set(table.kinds) == {"paper"}


def test_timings_keep_inputs_cells_without_times_and_the_papers_rows(tmp_path: Path) -> None:
    table = timing_table(fake_results.partial(tmp_path))
    ours = table.raw[[kind == "ours" for kind in table.kinds]]
    assert list(ours["training_s"].dropna()) == [754.0]
    assert list(table.display["Status"])[:4] == ["done", "running", "failed", "diverged"]
    paper = table.raw[[kind == "paper" for kind in table.kinds]]
    assert list(paper["training_s"] / 3600) == [22, 29, 52, 52, 52, 41]
    assert set(paper["source"]) == {"paper (Table 6)"}
    assert set(paper["budget"]) == {"paper's own"}


def test_the_caption_says_how_the_times_of_several_devices_count(tmp_path: Path) -> None:
    results = fake_results.complete(tmp_path)
    assert "several devices" not in timing_table(results).caption
    timings = results.timings.assign(device="2 × " + results.timings["device"])
    caption = timing_table(replace(results, timings=timings)).caption
    assert "sampling the sum of their times" in caption


def test_the_papers_timings_are_not_given_twice(tmp_path: Path) -> None:
    results = fake_results.complete(tmp_path)
    paper = results.timings.iloc[:1].assign(source="paper (Table 6)")
    table = timing_table(replace(results, timings=pd.concat([results.timings, paper])))
    assert table.kinds.count("paper") == 1


def test_hyperparameters_keep_their_values_and_every_variant(tmp_path: Path) -> None:
    results = fake_results.complete(tmp_path)
    some = results.hyperparameters[results.hyperparameters["variant"] != "NCSN_5"]
    table = hyperparameter_table(replace(results, hyperparameters=some))
    row = _rows(table.display, Variant="NCSNv2").iloc[0]
    assert (row["σ₁"], row["L"], row["T"], row["ε"]) == ("6.4", "58", "5", "6.2e-6")
    assert _rows(table.raw, variant="NCSNv2").iloc[0]["epsilon"] == 6.2e-6
    assert _rows(table.display, Variant="NCSN_5").iloc[0]["Note"] == "settings not known yet"


def test_loosely_typed_frames_are_cast(tmp_path: Path) -> None:
    results = fake_results.complete(tmp_path)
    loose = replace(
        results,
        cells=results.cells.astype({"seed": float}),
        distances=results.distances.astype({"seed": float, "iteration": float, "n": object}),
    )
    assert ablation_table(loose).display.equals(ablation_table(results).display)


def test_latex_and_markdown_are_escaped(tmp_path: Path) -> None:
    results = fake_results.hostile(tmp_path)
    _, md, tex = save_table(ablation_table(results), tmp_path)
    latex, marked = tex.read_text(), md.read_text()
    assert r"50\% of \$a\_b\$ \& \{c\}\textbackslash{}d \textbar{}" in latex
    assert "<script>" not in latex
    assert r"\toprule" in latex and r"\bottomrule" in latex
    assert r"\<script\>" in marked and r"\| ../../etc" in marked
    columns = len(ablation_table(results).display.columns)
    body = [line for line in latex.splitlines() if line.endswith(r" \\")]
    assert {line.count(" & ") for line in body} == {columns - 1}
    assert latex_text("NCSN_1,2") == r"NCSN\textsubscript{1,2}"


# Every name a user may give, at its worst.
HOSTILE = (
    *("50% of $a_b$ & {c}\\d", "~tilde ^caret #hash", "[x] at the start", "*star", "| pipe |"),
    *(
        "two\nlines\r\nand\ttab",
        "σ₁ ε ± ∞ ↑ ↓ ² 10⁻³ λ Σ × ≤",
        "Łódź, Ångström, naïve ő",
        "中文 \x07 🙂",
    ),
    *(
        "\\input{/etc/passwd}",
        "`code` *bold* _it_ ~~no~~",
        "<b onclick=x>&copy;</b> [l](http://x)",
        "",
    ),
)


def _hostile_table() -> Table:
    names = pd.Series(HOSTILE, dtype="str")
    return Table(
        name="hostile",
        title="50% of $x_1$ & <b>",
        caption=" / ".join(HOSTILE),
        raw=pd.DataFrame({"name": names}),
        columns=(
            Column("Dataset", names),
            Column("A_b% | $c$ ↑", names),
            Column("n", names, number=True),
        ),
        kinds=("ours",) * len(names),
    )


def _parse_markdown(text: str) -> tuple[str, list[list[str]], str]:
    """Title, rows and caption of a table as GitHub's Markdown has them (GFM 4.10, 2.4)."""
    heading, body, caption = text.rstrip("\n").split("\n\n")
    rows = []
    for line in body.split("\n"):
        assert line.startswith("| ") and line.endswith(" |"), line
        rows.append([_plain(cell.strip()) for cell in re.findall(r"((?:\\.|[^\\|])*)\|", line[1:])])
    assert heading.startswith("## ")
    return _plain(heading[3:]), rows, _plain(caption)


def _plain(text: str) -> str:
    """Markdown without any markup as plain text; fails where something would be markup."""
    escape = r"\\([!-/:-@\[-`{-~])"
    assert not re.search(r"[\\`*|<>\[\]$&~\n]|(?<!\w)_|_(?!\w)", re.sub(escape, "x", text))
    return re.sub(escape, r"\1", text)


def test_markdown_reads_back_as_the_table() -> None:
    table = _hostile_table()
    title, (headings, rules, *rows), caption = _parse_markdown(markdown(table))
    one_line = [" ".join(text.split()) for text in HOSTILE]
    assert title == table.title
    assert caption == " ".join(table.caption.split())
    assert headings == list(table.display.columns)
    assert rules == [":--", ":--", "--:"]
    assert rows == [[text] * 3 for text in one_line]


@given(st.text())
def test_markdown_text_is_one_line_without_markup(text: str) -> None:
    assert _plain(markdown_text(text)) == " ".join(text.split())


@given(st.text())
def test_latex_text_is_ascii_with_nothing_left_open(text: str) -> None:
    written = latex_text(text)
    assert written.isascii() and written.isprintable()
    bare = re.sub(r"\\([&%$#_{}]|[A-Za-z]+|['`^~=.\"])", "", written)
    assert not set(bare) & set("\\%#&~")
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0


@pytest.mark.slow
def test_latex_compiles_whatever_the_names_are(tmp_path: Path) -> None:
    pdflatex = shutil.which("pdflatex")
    if pdflatex is None:
        if os.environ.get("SCOREKIT_REQUIRE_LATEX") == "1":
            pytest.fail("SCOREKIT_REQUIRE_LATEX=1, and there is no pdflatex")
        pytest.skip("no pdflatex (Debian: texlive-latex-recommended)")
    results = {
        "complete": fake_results.complete(tmp_path / "a", datasets=("digits", "cifar10-jpeg")),
        "hostile": fake_results.hostile(tmp_path / "b"),
        "empty": fake_results.empty(),
    }
    for name, given_results in results.items():
        build_report(replace(given_results, samples=[], real={}), tmp_path / name)
    save_table(_hostile_table(), tmp_path / "names" / "tables")
    tables = sorted(tmp_path.glob("*/tables/*.tex"))
    every = {path.with_suffix(".tex") for path in tmp_path.glob("*/tables/*.csv")}
    assert every <= set(tables) and len(tables) > 15
    blocks = (range(0x20, 0x250), range(0x370, 0x400), range(0x2000, 0x2300))
    characters = [latex_text(chr(code)) for block in blocks for code in block]
    document = [
        r"\documentclass{article}\usepackage{booktabs}\usepackage{graphicx}\begin{document}",
        # Floats that wait for a page are limited in number.
        *(rf"\input{{{table.relative_to(tmp_path)}}}\clearpage" for table in tables),
        " ".join(characters),
        r"\end{document}",
    ]
    (tmp_path / "report.tex").write_text("\n".join(document), encoding="utf-8")
    command = [pdflatex, "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape"]
    done = subprocess.run(
        [*command, "report.tex"], cwd=tmp_path, capture_output=True, timeout=120, check=False
    )
    log = done.stdout.decode("utf-8", "replace")
    assert done.returncode == 0, log[-3000:]
    assert "Missing character" not in log
    assert "root:" not in log


def test_empty_results_give_empty_tables_that_can_be_saved(tmp_path: Path) -> None:
    results = fake_results.empty()
    table = ablation_table(results)
    assert len(table.raw) == 0 and table.kinds == ()
    paths = save_table(table, tmp_path)
    assert "no rows yet" in paths[2].read_text()
    assert list(pd.read_csv(paths[0]).columns) == list(table.raw.columns)
    assert len(hyperparameter_table(results).raw) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in paths)


def test_the_contract_is_checked_with_clear_words() -> None:
    whole = empty_results(fake_results.fake_run())
    with pytest.raises(ValueError, match="distances: missing column n_reference"):
        replace(whole, distances=whole.distances.drop(columns="n_reference"))
    with pytest.raises(ValueError, match="run: missing budget"):
        replace(whole, run={k: v for k, v in whole.run.items() if k != "budget"})
    with pytest.raises(ValueError, match=r"cells\.status: 'finished' is not one of"):
        replace(whole, cells=make_frame(CELL_COLUMNS, [{"status": "finished"}]))
    with pytest.raises(ValueError, match=r"distances\.denoise: a value is missing"):
        replace(whole, distances=pd.DataFrame([dict.fromkeys(whole.distances.columns)]))
    with pytest.raises(ValueError, match=r"cells: .*seed"):
        replace(whole, cells=pd.DataFrame([dict.fromkeys(whole.cells.columns) | {"seed": "first"}]))
    with pytest.raises(ValueError, match="unknown column 'distnace'"):
        make_frame(DISTANCE_COLUMNS, [{"distnace": 1.0}])
    with pytest.raises(ValueError, match="denoise: None is not True or False"):
        make_frame(DISTANCE_COLUMNS, [{"distance": 1.0}])


@pytest.mark.parametrize(
    ("value", "text"),
    [(50000, "50,000"), (6.2e-6, "6.2e-6"), (0.999, "0.999"), (1e-3, "0.001"), (None, "—")],
)
def test_numbers_are_written_as_the_paper_does(value: float | None, text: str) -> None:
    assert number(value) == text


def test_times_and_distances_are_readable() -> None:
    assert [duration(s) for s in (0.84, 42.5, 120, 754, 79200)] == [
        *("0.84 s", "42.5 s", "2 min", "12 min 34 s", "22 h")
    ]
    assert distance_text(10.874, 0.126) == "10.87 ± 0.13"
    assert without_ema("NCSNv2") == "NCSN_1,2,3,4"
    assert without_ema("NCSN_5") == "NCSN"
    assert without_ema("NCSN_3") is None


def test_a_spreadsheet_takes_no_text_of_a_csv_for_a_formula() -> None:
    texts = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "a=b", None]
    frame = pd.DataFrame({"name": texts, "value": [-1.5, 2, 3, 4, 5, 6, float("nan")]})
    for kind in ("string", "object"):
        read = pd.read_csv(io.StringIO(csv_text(frame.astype({"name": kind}))))
        assert list(read["name"][:6]) == [*(f"'{text}" for text in texts[:5]), "a=b"]
        assert read["name"].isna().tolist() == [False] * 6 + [True]
        assert read["value"][0] == -1.5


def test_settings_of_rows_share_a_line_where_they_agree(tmp_path: Path) -> None:
    table = settings_table(fake_results.complete(tmp_path))
    lines = table.raw[["setting", "value", "variants"]].to_numpy().tolist()
    assert lines == [
        ["sigma_begin", "1.0", "NCSN; NCSN_5"],
        ["sigma_begin", "6.4", "NCSN_1,2,4,5; NCSNv2"],
        ["objective", "dsm", "all"],
    ]
