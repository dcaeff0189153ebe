import pytest
import torch
from tiny_training import SETTINGS

from kernels.philox import Stream, philox_key, philox_normal
from scorekit.objectives.dsm import keyed_dsm_loss
from scorekit.objectives.score_matching import WAYS
from scorekit.training.loss import ScoreLoss
from scorekit.training.objectives import (
    TRAINING_OBJECTIVES,
    check_objective,
    register_objective,
)


@pytest.fixture
def registered():
    before = dict(TRAINING_OBJECTIVES)
    yield register_objective
    TRAINING_OBJECTIVES.clear()
    TRAINING_OBJECTIVES.update(before)


def test_an_objective_of_ones_own_gets_what_the_others_get(registered):
    """DSM, written once more."""
    import dataclasses

    def mine(settings, score, x, sigmas, noise_index, key, index, step):
        assert settings.objective == "mine"
        return keyed_dsm_loss(score, x, sigmas, noise_index, key, index, step)

    registered("mine", mine, compiles=False)
    settings = dataclasses.replace(SETTINGS, objective="mine")
    images = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    given = (images, torch.arange(4), torch.tensor(3), philox_key(1))

    def network(x, noise_index):
        return -x

    own = ScoreLoss(settings, "cpu", augmented=True)
    dsm = ScoreLoss(SETTINGS, "cpu", augmented=True)
    assert torch.equal(own(network, *given), dsm(network, *given))
    assert (own.compiles, dsm.compiles) == (False, True)


def test_every_objective_of_score_networks_is_registered_and_has_the_same_noise():
    assert set(TRAINING_OBJECTIVES) == {name for name, kind in WAYS if kind == "score"}
    x, key, index = torch.rand(2, 1, 4, 4), philox_key(0), torch.arange(2)
    sigmas, level, step = torch.tensor([1.0, 0.5]), torch.tensor([0, 1]), torch.tensor(0)
    seen = {}
    for name, objective in TRAINING_OBJECTIVES.items():
        noisy = []

        def score(x, noise_index, noisy=noisy):
            noisy.append(x.detach())
            return -x

        objective.loss(SETTINGS, score, x, sigmas, level, key, index, step)
        seen[name] = noisy[0]
    z = philox_normal(key, index, step, (1, 4, 4), Stream.PERTURBATION)
    for name in ("dsm", "ssm", "exact_sm"):
        expected = x + sigmas[level].reshape(-1, 1, 1, 1) * z
        torch.testing.assert_close(seen[name], expected)


def test_names_that_are_taken_unknown_or_of_energies_are_refused(registered):
    with pytest.raises(ValueError, match="objective = 'ssm' is registered already"):
        registered("ssm", lambda *given: None)
    registered("mine", lambda *given: None)
    check_objective("mine")
    with pytest.raises(ValueError, match=r"'minne' is unknown; known: dsm, .*mine"):
        check_objective("minne")
    with pytest.raises(ValueError, match="'fd_dsm' is not defined for a score network"):
        check_objective("fd_dsm")
