"""Drawing: each setting of a row reaches the sampler that draws it."""

import dataclasses

import numpy as np
import pytest
import torch
from resolved import context

from ablations.pipeline.jobs import EvaluateJob
from ablations.pipeline.manifest import load_manifest
from ablations.pipeline.sampling import Drawing
from scorekit.checkpoints.store import snapshot_path
from scorekit.data.pixels import to_uint8
from scorekit.files import load_array
from scorekit.sampling.corrector import PredictorCorrector
from scorekit.sampling.heun import Heun
from scorekit.sampling.langevin import AnnealedLangevin
from scorekit.sampling.reverse import Ancestral, ReverseDiffusion
from scorekit.techniques.noise_scales import geometric_sigmas, rho_sigmas
from scorekit.training.networks import load_snapshot

#: What a row sets, and the sampler that it means, of (score of sigma, sigmas) and common options.
ROWS = {
    "annealed": ({"step_size": 2e-5}, AnnealedLangevin, {"step_size": 2e-5, "n_steps_each": 3}),
    "gaussian": (
        {"step_size": 2e-5, "start": "gaussian"},
        AnnealedLangevin,
        {"step_size": 2e-5, "n_steps_each": 3, "start": "gaussian"},
    ),
    "snr": (
        {"step_size": 0.0, "step_rule": "snr", "snr": 0.2},
        AnnealedLangevin,
        {"n_steps_each": 3, "snr": 0.2},
    ),
    "consistent": (
        {"sampler": "consistent", "step_size": 9e-5},
        AnnealedLangevin,
        {"step_size": 9e-5, "n_steps_each": 3, "consistent": True},
    ),
    "reverse": ({"sampler": "reverse_diffusion"}, ReverseDiffusion, {"n_steps_each": 3}),
    "rho": (
        {"sampler": "reverse_diffusion", "schedule": "rho"},
        ReverseDiffusion,
        {"n_steps_each": 3},
    ),
    "ancestral": ({"sampler": "ancestral"}, Ancestral, {"n_steps_each": 3}),
    "corrector": (
        {"sampler": "predictor_corrector", "snr": 0.3},
        PredictorCorrector,
        {"n_steps_each": 3, "snr": 0.3},
    ),
    "heun": ({"sampler": "heun"}, Heun, {"n_steps_each": 3}),
    "churn": ({"sampler": "heun", "churn": 3.0}, Heun, {"n_steps_each": 3, "churn": 3.0}),
}


@pytest.mark.parametrize("row", ROWS)
def test_a_row_is_drawn_by_the_sampler_that_it_sets(finished, tmp_path, row):
    settings, kind, options = ROWS[row]
    where = context(tmp_path)
    done = load_manifest(finished / "out").units
    cell = next(cell for cell in done if cell.variant.name == "NCSNv2")
    cell = dataclasses.replace(cell, sampling_levels=5, n_steps_each=3, seed=4, **settings)
    folder = where.store.directory(cell.train_stage())
    folder.parent.mkdir(parents=True)
    folder.symlink_to(finished / "out" / "stages" / "train" / folder.name)
    (stage,) = cell.sample_stages(6, final=False)
    Drawing(where, lambda *_: None, lambda cell: None).sample(EvaluateJob(cell=cell), stage, 0)
    drawn = load_array(where.store.directory(stage) / "denoised.npy")

    network = load_snapshot(snapshot_path(folder, 6), cell.train, 1, "ema")
    scales = rho_sigmas if row == "rho" else geometric_sigmas
    sampler = kind(
        network.score,
        scales(cell.train.sigma_begin, cell.train.sigma_end, 5),
        takes_sigma=True,
        seed=4,
        **options,
    )
    with torch.no_grad():
        wanted = to_uint8(sampler.sample(torch.arange(cell.n_selection), (1, 8, 8)).denoised)
    off = np.abs(drawn.astype(int) - wanted.numpy().astype(int))
    assert off.max() <= 1 and wanted.numpy().std() > 10
    found = where.store.result(stage)["score_evaluations_per_sample"]
    assert found == sampler.score_evaluations == cell.score_evaluations
