"""Training a DKEF: what it reaches on a density that is known, and what it refuses."""

import math
from dataclasses import replace

import pytest
import torch

from scorekit.models.dkef import DKEF
from scorekit.models.normaliser import log_normaliser
from scorekit.training.dkef import DKEFSettings, best_ridge, fit_dkef

MEANS = torch.tensor([[1.0, 1.0], [-1.0, -0.5], [1.0, -1.2]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
STD = 0.4
SMALL = DKEFSettings(n_inducing=10, hidden=8, batch_size=40, max_steps=20, interval=5)


def mixture(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    component = torch.multinomial(WEIGHTS, n, replacement=True, generator=generator)
    return MEANS[component] + STD * torch.randn(n, 2, dtype=torch.float64, generator=generator)


def mixture_log_density(x):
    squared = ((x[:, None] - MEANS) / STD).square().sum(2)
    return torch.logsumexp(WEIGHTS.log() - 0.5 * squared, 1) - math.log(2 * math.pi * STD**2)


def sliced(log_density, x, step):
    """Sliced score matching with its variance reduced, by double backward."""
    x = x.detach().requires_grad_()
    generator = torch.Generator().manual_seed(step)
    v = torch.randint(0, 2, x.shape, generator=generator).to(x) * 2 - 1
    (score,) = torch.autograd.grad(log_density(x).sum(), x, create_graph=True)
    (hv,) = torch.autograd.grad((score * v).sum(), x, create_graph=True)
    return (hv * v).sum(1) + 0.5 * score.square().sum(1)


@pytest.mark.slow
def test_the_likelihood_approaches_the_truth_on_a_gaussian_mixture():
    rows, test = mixture(2000), mixture(1000, seed=1)
    settings = DKEFSettings(n_inducing=50, batch_size=100, max_steps=200)
    fit = fit_dkef(rows[:1600], rows[1600:], sliced, settings)
    z = log_normaliser(fit.model, 2, n=30_000, dtype=torch.float64)
    assert z.effective_sample_size > 3_000
    nll = z.value - fit.model(test).mean().item()
    truth = -float(mixture_log_density(test).mean())
    normal = torch.distributions.MultivariateNormal(rows.mean(0), rows.T.cov())
    gaussian = -float(normal.log_prob(test).mean())
    assert gaussian - truth > 0.7  # there is something to learn
    assert nll - truth < 0.1
    assert fit.valid_loss < fit.valid_losses[0] - 0.3


def test_a_seed_determines_the_fit():
    rows = mixture(300)
    fits = [fit_dkef(rows[:200], rows[200:], sliced, SMALL, seed=s) for s in (0, 0, 1)]
    first, again, other = (fit.model.state_dict() for fit in fits)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["alpha"], other["alpha"])


def test_losses_are_exact_score_matching_on_the_validation_rows():
    rows, seen = mixture(300), []
    fit = fit_dkef(
        rows[:200], rows[200:], sliced, SMALL, on_evaluation=lambda *pair: seen.append(pair)
    )
    assert fit.steps == [5, 10, 15, 20]
    assert seen == list(zip(fit.steps, fit.valid_losses, strict=True))
    assert fit.best_step == fit.steps[fit.valid_losses.index(min(fit.valid_losses))]
    quadratic = fit.model.quadratic_over(rows[200:])
    assert fit.valid_loss == pytest.approx(float(quadratic.value(fit.model.alpha)))


def test_the_ridge_and_every_other_parameter_is_trained():
    rows = mixture(300)
    start, end = (
        fit_dkef(rows[:200], rows[200:], sliced, settings)
        for settings in (replace(SMALL, max_steps=1, learning_rate=1e-9), SMALL)
    )
    before = dict(start.model.named_parameters())
    for name, parameter in end.model.named_parameters():
        assert float((parameter - before[name]).detach().abs().max()) > 1e-4, name
    assert start.ridges[0] == pytest.approx(1e-3)
    assert abs(end.ridges[-1] / 1e-3 - 1) > 1e-2


def test_training_stops_when_patience_ends_and_returns_the_best_model():
    rows = mixture(300)
    calls = []

    def climbing(log_density, x, step):
        calls.append(step)
        return -sliced(log_density, x, step)

    settings = replace(SMALL, patience=10, max_steps=500)
    fit = fit_dkef(rows[:200], rows[200:], climbing, settings)
    assert len(calls) == fit.steps[-1] < 500
    assert fit.steps[-1] - fit.best_step >= 10


def test_the_last_ridge_is_the_best_for_the_validation_rows():
    rows = mixture(120)
    torch.manual_seed(0)
    model = DKEF(rows[:20], hidden=8)
    train, valid = model.quadratic_over(rows[:40]), model.quadratic_over(rows[40:])

    def loss(ridge):
        return float(valid.value(train.minimiser(torch.tensor(ridge))))

    ridge = best_ridge(train, valid)
    assert 1e-9 < ridge < 1e2
    for factor in (1e-3, 0.5, 2, 1e3):
        assert loss(ridge) <= loss(ridge * factor) + 1e-9


def test_the_objective_sees_the_other_half_of_the_batch_and_the_step():
    rows, seen = mixture(300), []

    def watching(log_density, x, step):
        seen.append((step, len(x), log_density(torch.cat([x, x, x])).shape))
        return sliced(log_density, x, step)

    fit_dkef(rows[:200], rows[200:], watching, SMALL)
    assert seen == [(step, 20, (60,)) for step in range(1, 21)]


def test_divergence_is_said():
    rows = mixture(300)
    with pytest.raises(FloatingPointError, match="training diverged at step 3: loss nan"):
        fit_dkef(
            rows[:200],
            rows[200:],
            lambda f, x, step: f(x) * (math.nan if step == 3 else 1),
            SMALL,
        )


def test_bad_rows_are_refused():
    rows = mixture(300)
    with pytest.raises(ValueError, match="train has 30 rows; at least 40 are needed"):
        fit_dkef(rows[:30], rows[200:], sliced, SMALL)
    with pytest.raises(ValueError, match=r"valid \(0, 2\)"):
        fit_dkef(rows, rows[:0], sliced, SMALL)
    bad = rows.clone()
    bad[7, 1] = math.nan
    with pytest.raises(ValueError, match="train has NaN or infinity in 1 of 300 rows"):
        fit_dkef(bad, rows, sliced, SMALL)


@pytest.mark.parametrize(
    "setting", [{"batch_size": 1}, {"patience": 0}, {"learning_rate": math.nan}, {"clip": 0.0}]
)
def test_settings_out_of_range_are_refused(setting):
    name, value = next(iter(setting.items()))
    with pytest.raises(ValueError, match=f"{name} = {value} must be"):
        DKEFSettings(**setting)


def test_the_default_settings_are_the_authors():
    settings = DKEFSettings()
    assert (settings.n_inducing, settings.n_kernels, settings.hidden) == (200, 3, 30)
    assert (settings.batch_size, settings.learning_rate) == (200, 1e-2)
    assert (settings.clip, settings.patience) == (1.0, 200)
