"""Trials of implicit encoders: paired, complete, and honest about divergence."""

import numpy as np
import pytest
from fake_results import finished_trials

from ablations.studies.finite_difference.experiments.implicit import implicit
from ablations.studies.finite_difference.sections.implicit import (
    IMPLICIT_COLUMNS,
    implicit_picture,
    implicit_table,
)

SETTINGS = {
    **{"dataset": "digits", "device": "cpu", "seed": 0, "iterations": 3, "warm_up": 1},
    **{"batch_size": 8, "latent_dim": 2, "width": 8, "score_steps": 2, "learning_rate": 1e-3},
    **{"score_learning_rate": 1e-3, "epsilon": 0.05, "n_held_out": 12, "n_bound": 2},
    **{"samples": 20, "objective": "ssm"},
}
TIMES = ("seconds", "score_seconds")


def train(directory, **changes):
    directory.mkdir(exist_ok=True)
    found, (path,) = implicit(SETTINGS | changes, directory, lambda *_: None, directory)
    return found, np.load(path)


def test_the_vae_has_a_likelihood_bound_and_the_wae_none(tmp_path):
    vae, samples = train(tmp_path, model="vae")
    wae, _ = train(tmp_path, model="wae")
    assert vae["bound"] > 0 and 1 <= vae["effective_sample_size"] <= 512
    assert wae["bound"] is None
    assert vae["n_held_out"] == 12
    assert vae["held_out_distance"] == wae["held_out_distance"] > 0
    assert samples.shape == (20, 1, 8, 8) and samples.dtype == np.uint8


@pytest.mark.parametrize("model", ["vae", "wae"])
def test_a_trial_is_a_function_of_its_settings(tmp_path, model):
    first, images = train(tmp_path / "a", model=model)
    again, same = train(tmp_path / "b", model=model)
    assert np.array_equal(images, same)
    assert {k: v for k, v in first.items() if k not in TIMES} == {
        k: v for k, v in again.items() if k not in TIMES
    }
    other, _ = train(tmp_path / "c", model=model, seed=1)
    assert other["reconstruction"] != first["reconstruction"]


@pytest.mark.parametrize("model", ["vae", "wae"])
def test_a_small_epsilon_trains_as_sliced_score_matching(tmp_path, model):
    exact, _ = train(tmp_path, model=model)
    finite, _ = train(tmp_path, model=model, objective="fd_ssm")
    # RMSProp's first steps have the size of the rate and the sign of the gradient.
    assert finite["reconstruction"] == pytest.approx(exact["reconstruction"], rel=1e-3)
    assert finite["latent_distance"] == pytest.approx(exact["latent_distance"], rel=0.02)


def test_during_the_warm_up_only_the_score_is_trained(tmp_path):
    found, _ = train(tmp_path, model="wae", iterations=2, warm_up=2)
    longer, _ = train(tmp_path, model="wae", iterations=3, warm_up=3)
    assert found["reconstruction"] == longer["reconstruction"]
    assert found["seconds"] == found["score_seconds"]


def test_an_absurd_rate_is_said_to_diverge(tmp_path):
    with pytest.raises(FloatingPointError, match="diverged"):
        train(tmp_path, model="vae", score_learning_rate=1e30, learning_rate=1e30)


def finished(directory, **held_out):
    """Results of the first seed by SSM, of the second by both objectives, by data set."""
    trials = []
    for dataset, (n, distance) in held_out.items():
        for objective, seed in (("ssm", 0), ("ssm", 1), ("fd_ssm", 1)):
            folder = directory / f"{dataset}-{objective}-{seed}"
            folder.mkdir()
            np.save(folder / "samples.npy", np.full((2, 1, 8, 8), 50 * seed, np.uint8))
            result = dict.fromkeys(IMPLICIT_COLUMNS, 1.0)
            result |= {"held_out_distance": distance, "n_held_out": n}
            settings = SETTINGS | {"dataset": dataset, "model": "vae", "objective": objective}
            trials.append((settings | {"seed": seed}, result, folder))
    return finished_trials("implicit", trials)


def test_the_caption_gives_each_data_set_its_own_held_out_distance_and_all_settings(tmp_path):
    caption = implicit_table(finished(tmp_path, digits=(297, 12.5), mnist=(1000, 3.25))).caption
    assert "the 297 held-out images of digits, 8×8 have 12.5" in caption
    assert "the 1,000 held-out images of MNIST, 28×28 have 3.25" in caption
    assert "begins after 1 rounds; RMSProp at 0.001 and 0.001" in caption


def test_panels_of_one_row_show_the_same_latents_where_a_seed_has_both(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "ablations.studies.finite_difference.sections.implicit.draw_panels",
        lambda rows, note, what: drawn.extend(rows),
    )
    implicit_picture(finished(tmp_path, digits=(297, 12.5)))
    ((first, second),) = drawn
    assert first.note == second.note == "seed 1"


@pytest.mark.slow
def test_training_reconstructs(tmp_path):
    changes = {"width": 32, "latent_dim": 4, "batch_size": 32, "score_learning_rate": 3e-3}
    before, _ = train(tmp_path, model="wae", iterations=1, **changes)
    after, _ = train(tmp_path, model="wae", iterations=300, **changes)
    assert after["reconstruction"] < 0.7 * before["reconstruction"]
    assert after["distance"] < before["distance"]
