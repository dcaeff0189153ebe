"""The comparison of precisions: paired, deterministic, and against a spread that is one."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from ablations.pipeline.data import data_facts
from bench.comparisons import (
    REFERENCE,
    Comparison,
    Fidelity,
    FidelitySettings,
    Way,
    fidelity_table,
    load_fidelity,
    ways,
)
from bench.fidelity import _Study, main, run
from scorekit.data.registry import prepare
from scorekit.techniques.noise_scales import geometric_sigmas

CPU = torch.device("cpu")
BF16 = Way(precision="bf16")
TINY = FidelitySettings(iterations=8, seeds=2, samples=6, width=2, n_steps_each=1)
QUANTITIES = ["training loss", "sample RMS", "FD[digits-cnn]", "FD[digits-cnn] after training"]


class Again(Way):
    """The reference under another name: what it gives must not differ from the reference."""

    @property
    def name(self) -> str:
        return "again"


@pytest.fixture(scope="module")
def fidelity() -> Fidelity:
    return run(TINY, CPU, [BF16, Again(precision="fp32")])


def rows(fidelity: Fidelity, way: str) -> list[Comparison]:
    return [row for row in fidelity.comparisons if row.way == way]


def test_every_quantity_is_compared_in_every_way(fidelity):
    for way in ("bf16", "again"):
        found = rows(fidelity, way)
        assert [row.quantity for row in found if row.sigma is None] == QUANTITIES
        sigmas = [row.sigma for row in found if row.sigma is not None]
        assert len(sigmas) == 4
        assert sigmas == sorted(sigmas, reverse=True)
        assert sigmas[-1] == pytest.approx(0.01)
    assert len(fidelity.comparisons) == 2 * 8
    assert list(fidelity.curves) == ["fp32", "bf16", "again"]
    assert {len(curves) for curves in fidelity.curves.values()} == {TINY.seeds}


def test_the_same_seeds_give_the_same_results(fidelity):
    """Training, scores and samples alike, to the last bit."""
    for row in rows(fidelity, "again"):
        assert row.difference == 0
        assert row.ratio == 0
        assert row.value == row.reference
    assert fidelity.curves["again"] == fidelity.curves["fp32"]


def test_another_seed_gives_other_results(fidelity):
    assert all(row.spread > 1e-3 for row in fidelity.comparisons)
    first, second = fidelity.curves["fp32"]
    assert first != second


def test_scores_in_float32_are_exact_to_its_rounding_and_bfloat16_to_its_own(fidelity):
    for row in rows(fidelity, "bf16"):
        if row.sigma is not None:
            # Units of the last place are 2^-24 and 2^-9; a network has some tens of layers.
            assert 2**-26 < row.reference < 2**-24 * 100
            assert 2**-11 < row.value < 2**-9 * 100
            assert row.value > 100 * row.reference
            assert row.difference == pytest.approx(row.value, rel=0.01)


def test_bfloat16_differs_and_stays_finite(fidelity):
    for row in rows(fidelity, "bf16"):
        assert 0 < row.difference < np.inf
        assert 0 < row.ratio < np.inf
    curves = np.array([fidelity.curves["fp32"], fidelity.curves["bf16"]])
    assert np.isfinite(curves).all()
    # Eight iterations apart by rounding, not by another batch or other noise.
    np.testing.assert_allclose(curves[1], curves[0], rtol=0.02)
    assert (curves[1] != curves[0]).any()


def test_the_loss_is_that_of_the_last_quarter(fidelity):
    (loss,) = [row for row in rows(fidelity, "bf16") if row.quantity == "training loss"]
    last = {way: np.mean(np.array(c)[:, -2:], axis=1) for way, c in fidelity.curves.items()}
    assert loss.value == pytest.approx(last["bf16"].mean())
    assert loss.reference == pytest.approx(last["fp32"].mean())
    assert loss.difference == pytest.approx(np.abs(last["bf16"] - last["fp32"]).mean())
    assert loss.spread == pytest.approx(abs(last["fp32"][0] - last["fp32"][1]) / 2**0.5)


def test_the_verdict_follows_from_difference_and_spread():
    row = Comparison(quantity="x", way="bf16", value=2.0, reference=1.0, difference=3.0, spread=2.0)
    assert row.ratio == 1.5
    assert row.verdict == "outside the seed-to-seed spread"
    assert replace(row, difference=2.0).verdict == "within the seed-to-seed spread"
    assert replace(row, spread=0.0).verdict == "outside the seed-to-seed spread"
    assert replace(row, spread=0.0, difference=0.0).ratio == 0


def test_the_table_has_a_line_for_each_comparison(fidelity):
    lines = fidelity_table(fidelity, "presto").splitlines()[2:]
    assert len(lines) == len(fidelity.comparisons)
    for line, row in zip(lines, fidelity.comparisons, strict=True):
        cells = [cell.strip() for cell in line.strip("| ").split("|")]
        assert cells[:2] == [row.quantity, row.way]
        assert cells[-2:] == [f"{row.ratio:.3g}", row.verdict]


def test_tf32_is_compared_where_it_exists_and_compilation_where_asked_for():
    assert [way.name for way in ways(CPU, False)] == ["fp32", "bf16"]
    assert [way.name for way in ways(CPU, True)][2:] == ["fp32 compiled", "bf16 compiled"]
    cuda = torch.device("cuda")
    assert [way.name for way in ways(cuda, False)] == ["fp32", "tf32", "bf16"]
    assert len(ways(cuda, True)) == 6
    assert ways(CPU, True)[0] == REFERENCE


def test_compilation_that_does_not_work_is_said_before_anything_is_trained(monkeypatch):
    monkeypatch.setattr("bench.fidelity.compile_unavailable_reason", lambda: "no compiler")
    with pytest.raises(ValueError, match="does not work here: no compiler"):
        run(replace(TINY, compile=True), CPU)


class Small(torch.nn.Module):
    """Two layers in a score network's place, whose hundred take a minute to compile."""

    n_levels = 5

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.register_buffer("sigmas", geometric_sigmas(10, 0.01, self.n_levels))
        torch.manual_seed(seed)
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.ELU(), torch.nn.Conv2d(4, 1, 3, padding=1)
        )

    def forward(self, x, noise_index):
        return self.layers(x) / self.sigmas[noise_index].reshape(-1, 1, 1, 1)


@pytest.mark.slow
def test_compiled_scores_are_rounded_elsewhere_and_no_less_exact(tmp_path):
    facts = data_facts("digits", tmp_path, image_size=None, inception_weights=None)
    study = _Study(TINY, CPU, facts, prepare("digits", tmp_path), tmp_path, print)
    networks = [Small(seed).eval() for seed in range(2)]
    found = study.compare_scores(networks, [Way(precision="fp32", compile=True)])
    assert {row.way for row in found} == {"fp32 compiled"}
    assert len(found) == 4
    for row in found:
        assert 0 < row.difference < 2**-24 * 100
        assert row.value < 2**-24 * 100
        assert row.spread > 1e-3


@pytest.mark.parametrize(("name", "value"), [("iterations", 3), ("seeds", 1), ("samples", 1)])
def test_settings_without_a_spread_are_refused(name, value, capsys):
    with pytest.raises(ValueError, match=f"{name} = {value} must be at least {value + 1}"):
        FidelitySettings(**{name: value})
    assert main([f"--{name}", str(value)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {name} = {value} must be")


def test_results_are_read_back_as_they_were_written(fidelity, tmp_path):
    path = fidelity.save(tmp_path / "new folder")
    assert path.name.startswith("fidelity-cpu-")
    assert load_fidelity(path) == fidelity


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"kind": "fidelity", "format": 2}'])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "fidelity-x.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="holds no fidelity results"):
        load_fidelity(path)
    with pytest.raises(ValueError, match="no such file"):
        load_fidelity(tmp_path / "absent.json")


def test_a_file_with_a_missing_field_is_refused(fidelity, tmp_path):
    path = fidelity.save(tmp_path)
    record = json.loads(path.read_text())
    del record["comparisons"][0]["spread"]
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="holds no fidelity results"):
        load_fidelity(path)


def test_the_command_line_measures_saves_and_prints(monkeypatch, fidelity, tmp_path, capsys):
    seen = []

    def recorded(settings, device, progress):
        seen.append((settings, device))
        return fidelity

    monkeypatch.setattr("bench.fidelity.run", recorded)
    assert main(["--iterations", "9", "--compile", "--out", str(tmp_path)]) == 0
    assert seen[0][0] == FidelitySettings(iterations=9, compile=True)
    (path,) = tmp_path.iterdir()
    assert load_fidelity(path) == fidelity
    assert str(path) in capsys.readouterr().out
