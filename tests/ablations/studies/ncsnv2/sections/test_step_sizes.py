"""The table of published distances against the step size."""

from dataclasses import replace

import fake_results
import numpy as np
import pytest
from places import SHARED

from ablations.studies.ncsnv2 import quoted
from ablations.studies.ncsnv2.sections.step_sizes import step_size_table

CURVES = SHARED / "data" / "acsm-fids"


def of(dataset, tmp_path):
    run = fake_results.fake_run(datasets=[dataset])
    return step_size_table(replace(fake_results.complete(tmp_path), run=run))


def test_rules_stand_among_the_published_distances(tmp_path):
    raw = of("cifar10-jpeg", tmp_path).raw
    published = raw[raw["source"] == quoted.STEP_SIZE_SOURCE]
    assert published["step_rule"].isna().all()
    assert set(published["kind"]) == {"paper"}
    rules = raw[raw["source"] == "computed"]
    assert rules["fid"].isna().all()
    langevin = rules[rules["sampler"] == "annealed"].set_index("step_rule")["epsilon"]
    assert langevin["Technique 4"] == pytest.approx(7.11e-6, rel=2e-3)
    assert langevin["steady state"] == pytest.approx(2.67e-5, rel=2e-3)
    for _, rows in raw.groupby(["sampler", "n_steps_each"]):
        assert rows["epsilon"].is_monotonic_increasing
        # The rule made for the sampler lies within the measured range, near the best of them.
        made = rows[rows["step_rule"].isin(["steady state", "consistent"])]["epsilon"].item()
        measured = rows.dropna(subset=["fid_denoised"])
        at = np.abs(np.log(measured["epsilon"] / made)).to_numpy().argmin()
        assert measured["fid_denoised"].iloc[at] < 1.5 * measured["fid_denoised"].min()


def test_other_data_sets_have_no_such_table(tmp_path):
    assert step_size_table(fake_results.complete(tmp_path)) is None


@pytest.mark.skipif(not CURVES.is_dir(), reason="the published curves are not beside the project")
def test_every_number_is_the_published_one():
    for (sampler, n, adversarial), points in quoted.STEP_SIZE_CURVES.items():
        kind = f"{'c' if sampler == 'consistent' else 'nc'}_{'adv' if adversarial else 'nadv'}"
        curve = np.load(CURVES / f"cifar10_ncsnv2_{kind}_n{n}_5k.npy")
        for point in points:
            nearest = curve[np.abs(curve[:, 0] - point[0]).argmin()]
            assert point == pytest.approx(tuple(nearest), rel=6e-3)
        best = curve[:, 2].min()
        assert min(denoised for _, _, denoised in points) == pytest.approx(best, abs=0.06)
