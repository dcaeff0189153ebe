"""The benchmark report: what it says of made-up measurements."""

import pytest

from bench.comparisons import Comparison, Fidelity, FidelitySettings
from bench.machine import Peaks
from bench.measurements import Measurement, Session
from bench.report import (
    main,
    plot,
    plot_fidelity,
    render,
    roofline_share,
    seconds,
    table_text,
)
from scorekit.runtime.timing import Timing

PEAKS = Peaks(copy={10**6: 1e9, 10**9: 1e8}, fp32=1e10, bf16=2e10)


def timing(candidate_s: float, ratio: float | None, *, cold: bool = False) -> Timing:
    paired = {}
    if ratio is not None:
        paired = {
            "ratio": ratio,
            "ratio_low": 0.9 * ratio,
            "ratio_high": 1.1 * ratio,
            "reference_s": candidate_s / ratio,
            "reference_calls": 1,
            "first_reference_s": 0.5,
        }
    return Timing(
        candidate_s=candidate_s,
        rounds=6,
        candidate_calls=1,
        first_candidate_s=12.5,
        cold=cold,
        **paired,
    )


def session(device: str = "cpu: made up, 2 threads") -> Session:
    cases = {
        "moving bytes": Measurement(
            group="kernel", timing=timing(2e-3, 0.25, cold=True), bytes_moved=10**6
        ),
        "products": Measurement(
            group="network", timing=timing(0.1, 1.5), flops=5 * 10**8, images=32
        ),
        "planning": Measurement(group="launcher", timing=timing(1.75, None)),
    }
    facts = {"device": device, "torch": "2.15.0", "commit": "abc", "triton": None}
    return Session(conditions=facts, peaks=PEAKS, cases=cases)


def rows(text: str) -> dict[str, list[str]]:
    lines = [line.strip("| ").split(" | ") for line in text.splitlines()]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines}


def test_the_roofline_share_is_its_time_over_the_candidates():
    found = session().cases
    assert roofline_share(found["moving bytes"], PEAKS) == pytest.approx(1e-3 / 2e-3)
    assert roofline_share(found["products"], PEAKS) == pytest.approx(0.05 / 0.1)
    assert roofline_share(found["planning"], PEAKS) is None


def test_the_table_holds_times_ratios_rates_and_shares():
    found = rows(table_text(session(), "presto"))
    assert found["products"][:6] == [
        *("100 ms", "66.7 ms", "1.5", "1.35 to 1.65", "12.5 s", "320"),
    ]
    assert found["products"][6:] == ["—", "5e+08", "—", "5", "50 %"]
    assert found["planning"] == ["1.75 s", *["—"] * 3, "12.5 s", *["—"] * 6]
    assert "12.5 s (cold)" in table_text(session())


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((1.234e-7, "0.123 µs"), (12.34e-6, "12.3 µs"), (9.996e-4, "1 ms"), (0.99949, "999 ms")),
        *((0.9996, "1 s"), (75.0, "75 s"), (None, "—")),
    ],
)
def test_times_are_written_for_reading(value, text):
    assert seconds(value) == text


def test_the_report_names_conditions_and_peaks_and_is_the_same_each_time(tmp_path):
    page = render([session(), session("cuda: another")], tmp_path / "one")
    text = page.read_text()
    assert "## cpu: made up, 2 threads" in text
    assert "## cuda: another" in text
    assert "torch 2.15.0, commit abc." in text
    assert "triton" not in text
    assert "10 GFLOP/s in float32, 20 in bfloat16" in text
    render([session(), session("cuda: another")], tmp_path / "two")
    names = {"report.md", "ratios.png", "ratios.svg"}
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert {path.name for path in (tmp_path / "one").iterdir()} == names
    assert (tmp_path / "one" / "ratios.svg").stat().st_size > 1000


def test_the_plot_shows_each_ratio_with_its_interval_and_each_share():
    left, right = plot([session()]).axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["moving bytes", "products"]
    points = [line.get_xdata()[0] for line in left.lines if line.get_marker() == "o"]
    assert points == [0.25, 1.5]
    low, high = left.get_xlim()
    assert low < 0.225
    assert high > 1.65
    assert [bar.get_width() for bar in right.patches] == pytest.approx([50, 50])


def test_a_session_without_cases_is_drawn(tmp_path):
    empty = Session(conditions={"device": "cpu: none"}, peaks=PEAKS, cases={})
    assert "cpu: none" in render([empty], tmp_path).read_text()


def test_the_command_line_renders_files_and_refuses_others(tmp_path, capsys):
    path = tmp_path / "results.json"
    session().save(path)
    assert main([str(path), "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out" / "report.md")
    path.write_text("{}")
    assert main([str(path), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def fidelity() -> Fidelity:
    comparisons = [
        Comparison(
            quantity=f"score at sigma = {sigma}",
            way="bf16",
            value=0.01,
            reference=1e-6,
            difference=0.01,
            spread=0.4,
            sigma=sigma,
        )
        for sigma in (5.0, 0.1)
    ] + [
        Comparison(
            quantity="training loss",
            way="bf16",
            value=12.5,
            reference=12.0,
            difference=0.75,
            spread=0.5,
        )
    ]
    return Fidelity(
        conditions={"device": "cpu: made up, 2 threads", "torch": "2.15.0", "triton": None},
        settings=FidelitySettings(iterations=1000, seeds=2),
        comparisons=comparisons,
        curves={"fp32": [[30.0, 10.0], [34.0, 14.0]], "bf16": [[31.0, 11.0], [35.0, 15.0]]},
        seconds=60.0,
    )


def test_precisions_have_a_section_of_the_report(tmp_path):
    text = render([session()], tmp_path, [fidelity()]).read_text()
    before, after = text.split("# Precisions and compilation")
    assert "score at sigma" not in before
    assert "torch 2.15.0.\n\n1,000 iterations at width 16, 2 seeds, 256 samples a set." in after
    found = rows(after)
    assert found["training loss"] == [
        *("bf16", "12.5", "12", "0.75", "0.5", "1.5", "outside the seed-to-seed spread"),
    ]
    assert found["score at sigma = 0.1"][5:] == ["0.025", "within the seed-to-seed spread"]
    render([session()], tmp_path / "again", [fidelity()])
    for name in ("fidelity.png", "fidelity.svg"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_the_plot_of_precisions_shows_losses_over_seeds_and_scores_over_noise_scales():
    left, right = plot_fidelity([fidelity()]).axes
    curves = {line.get_label(): line for line in left.lines}
    assert list(curves["fp32"].get_xdata()) == [500, 1000]
    assert list(curves["fp32"].get_ydata()) == [32, 12]
    assert list(curves["bf16"].get_ydata()) == [33, 13]
    drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in right.lines]
    for height in (0.01, 1e-6, 0.4):
        assert ([5.0, 0.1], [height, height]) in drawn


def test_the_command_line_knows_comparisons_of_precisions_by_their_name(tmp_path, capsys):
    path = fidelity().save(tmp_path)
    assert main([str(path), "--out", str(tmp_path / "out")]) == 0
    names = {"report.md", "fidelity.png", "fidelity.svg"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    path.write_text("{}")
    assert main([str(path), "--out", str(tmp_path / "out")]) == 2
    assert "holds no fidelity results" in capsys.readouterr().err
