"""What the grid finite-difference says, against the same computed from its trials' files."""

import json

import oracle
import pytest
import trials_oracle
from trials_oracle import NAMES, Trials

from ablations.studies.finite_difference.results import collect_trials
from ablations.studies.finite_difference.sections.comparisons import comparison_table

pytestmark = pytest.mark.slow

PARTS = ("toy", "loss", "distance", "flow", "implicit", "epsilon")


@pytest.fixture(scope="module")
def out(finished_trials):
    return finished_trials / "out"


@pytest.fixture(scope="module")
def trials(out):
    return Trials(out)


def approximately(value):
    return pytest.approx(value, rel=1e-5, abs=1e-7, nan_ok=True)


def test_fields_of_the_toy(trials):
    for _, result, folder in trials.of("toy"):
        for key, value in trials_oracle.toy(folder).items():
            assert result[key] == pytest.approx(value, rel=1e-4), key


def test_distances_are_those_of_the_samples_at_every_snapshot(trials):
    assert len(trials.of("distance")) == 6
    for objective in ("dsm", "ssm_vr", "fd_ssm_vr"):
        curves = trials_oracle.distances(trials, objective)
        for (_, result, _), (seconds, distances) in zip(
            trials.of("distance", objective=objective), curves, strict=True
        ):
            assert result["curve"]["distance"] == approximately(distances)
            assert result["curve"]["seconds"] == seconds


def test_distances_of_decoded_samples(trials):
    held_out = oracle.features(trials_oracle.digits("test")[:6], "digits-cnn")[0]
    real = oracle.features(trials_oracle.digits("train"), "digits-cnn")[0]
    for _, result, folder in trials.of("implicit"):
        assert result["distance"] == approximately(trials_oracle.decoded_distance(folder))
        assert result["held_out_distance"] == approximately(oracle.frechet(held_out, real))


@pytest.mark.parametrize("part", PARTS)
def test_comparisons_are_of_the_same_seeds(out, trials, part):
    raw = comparison_table(collect_trials(out), part).raw
    columns = ["group", "quantity"]
    if part == "epsilon":
        raw["epsilon"] = [float(name.split("= ")[1]) for name in raw["second"]]
        columns.append("epsilon")
    found = raw.set_index(columns)[["mean", "low", "high", "n"]]
    expected = trials_oracle.comparisons(trials, part)
    assert set(found.index) == set(expected)
    for key, values in expected.items():
        assert found.loc[key].tolist() == approximately(list(values)), key


def test_a_step_costs_what_its_rounds_say(out, trials):
    raw = comparison_table(collect_trials(out), "cost").raw
    titles = {
        **{"mlp": "MLP energy", "conv": "Convolutional energy", "score": "NCSNv2 score network"},
        "ncsn": "NCSN, whole training step",
    }
    counted = 0
    for settings, result, _ in trials.of("cost"):
        for (objective, way), values in trials_oracle.cost(result).items():
            name = f"{NAMES[objective]}, {way.replace('_', ' ')}"
            of = (raw["group"] == titles[settings["model"]]) & (raw["second"] == name)
            (row,) = raw[of & (raw["quantity"] == "seconds of a step")].to_dict("records")
            assert [row["mean"], row["low"], row["high"]] == approximately(list(values))
            counted += 1
    assert counted == (raw["quantity"] == "seconds of a step").sum() > 0


def test_every_pair_is_of_two_seeds(out, trials):
    plan = json.loads((out / "finite-difference.json").read_text())
    assert len(trials.all) == len(plan["trials"])
    assert {len(trials.of(t, objective="ssm")) for t in ("loss", "flow")} == {2}
