"""Implicit encoders: the entropy's gradient from the score, exact and learned."""

import pytest
import torch

from scorekit.data.embedded import digits_split
from scorekit.data.pixels import to_float
from scorekit.models.implicit_encoders import (
    Decoder,
    ImplicitEncoder,
    LatentScore,
    entropy_gradient_surrogate,
    implicit_autoencoder_loss,
    likelihood_bound,
)


def sliced(score, z):
    """Sliced score matching with its variance reduced, for a score network."""
    z = z.detach().requires_grad_()
    v = torch.randint(0, 2, z.shape).to(z) * 2 - 1
    s = score(z)
    (jv,) = torch.autograd.grad((s * v).sum(), z, create_graph=True)
    return ((jv * v).sum(1) + 0.5 * s.square().sum(1)).mean()


def white_noise(dim):
    """2 dim vectors whose mean is 0 and whose second moment is I: averages without error."""
    basis = dim**0.5 * torch.eye(dim, dtype=torch.float64)
    return torch.cat([basis, -basis])


@pytest.mark.parametrize("dim", [1, 4])
def test_the_surrogate_has_the_gradient_of_a_gaussian_s_entropy(dim):
    generator = torch.Generator().manual_seed(0)
    factor = torch.eye(dim).double() + 0.3 * torch.randn(
        dim, dim, dtype=torch.float64, generator=generator
    )
    factor.requires_grad_()
    shift = torch.ones(dim, dtype=torch.float64, requires_grad=True)
    z = white_noise(dim) @ factor.T + shift
    score = -torch.linalg.solve(factor @ factor.T, (z - shift).T).T
    entropy = torch.linalg.slogdet(factor).logabsdet  # + D/2 log(2 pi e)
    (expected,) = torch.autograd.grad(entropy, factor, retain_graph=True)
    surrogate = entropy_gradient_surrogate(z, score)
    assert surrogate.shape == (2 * dim,)
    gradient, of_shift = torch.autograd.grad(surrogate.mean(), (factor, shift))
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(of_shift, torch.zeros_like(of_shift), rtol=0, atol=1e-12)


def test_no_gradient_reaches_the_score():
    z = torch.randn(3, 2, requires_grad=True)
    score = torch.randn(3, 2, requires_grad=True)
    entropy_gradient_surrogate(z, score).sum().backward()
    assert score.grad is None
    torch.testing.assert_close(z.grad, -score.detach())


def test_the_loss_has_the_gradient_of_the_evidence_bound_of_a_gaussian_encoder():
    # q(z|x) = N(mean, std^2 I), whose KL from N(0, I) is known.
    torch.manual_seed(0)
    mean = torch.tensor([0.5, -1.0], dtype=torch.float64, requires_grad=True)
    log_std = torch.tensor([0.2, -0.4], dtype=torch.float64, requires_grad=True)
    noise, images = white_noise(2), torch.rand(4, 1, 2, 2, dtype=torch.float64)
    weight = torch.randn(2, 4, dtype=torch.float64)

    def decoder(z):
        return (z @ weight).reshape(-1, 1, 2, 2)

    def encoder(images, noise):
        return mean + log_std.exp() * noise

    def score(z):
        return -(z - mean) / (2 * log_std).exp()

    loss = implicit_autoencoder_loss(encoder, decoder, score, images, noise, kl_weight=3.0)
    gradient = torch.autograd.grad(loss.surrogate.mean(), (mean, log_std))
    kl = (0.5 * (mean.square() + (2 * log_std).exp()) - log_std).sum()
    bernoulli = torch.distributions.Bernoulli(
        logits=decoder(encoder(images, noise)), validate_args=False
    )
    reconstruction = -bernoulli.log_prob(images).flatten(1).sum(1)
    expected = torch.autograd.grad(reconstruction.mean() + 3 * kl, (mean, log_std))
    for a, b in zip(gradient, expected, strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(loss.reconstruction, reconstruction.detach())
    assert not loss.z.requires_grad


def test_a_learned_score_takes_latents_to_the_prior():
    torch.manual_seed(0)
    log_std = torch.full((2,), -0.7, requires_grad=True)
    mean = torch.full((2,), 1.5, requires_grad=True)
    score = LatentScore(2, width=32, n_hidden=1)
    of_score = torch.optim.Adam(score.parameters(), 1e-2)
    of_latents = torch.optim.Adam([log_std, mean], 2e-2)
    for step in range(250):
        z = mean + log_std.exp() * torch.randn(128, 2)
        of_score.zero_grad()
        sliced(score, z).backward()
        of_score.step()
        if step < 100:
            continue
        divergence = 0.5 * z.square().sum(1) - entropy_gradient_surrogate(z, score(z))
        of_latents.zero_grad()
        divergence.mean().backward()
        of_latents.step()
    assert float(mean.detach().abs().max()) < 0.25
    torch.testing.assert_close(log_std.detach(), torch.zeros(2), rtol=0, atol=0.25)


def train_on_digits(conditional, entropy):
    """Return the reconstruction, and the latents' spread given an image and over all images."""
    torch.manual_seed(0)
    images = to_float(digits_split("train")[0])
    shape = (1, 8, 8)
    encoder = ImplicitEncoder(shape, 8, 8, width=64)
    decoder = Decoder(shape, 8, width=64)
    network = LatentScore(8, 64 if conditional else 0, width=64)
    of_score = torch.optim.Adam(network.parameters(), 3e-3)
    of_rest = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], 1e-3)
    losses = []
    for step in range(400):
        x = images[torch.randint(len(images), (64,))]

        def score(z, x=x):
            return network(z, x if conditional else None)

        for _ in range(2):
            of_score.zero_grad()
            sliced(score, encoder(x, torch.randn(64, 8)).detach()).backward()
            of_score.step()
        if step < 50:
            continue
        used = score if entropy else torch.zeros_like
        loss = implicit_autoencoder_loss(encoder, decoder, used, x, torch.randn(64, 8))
        of_rest.zero_grad()
        loss.surrogate.mean().backward()
        of_rest.step()
        losses.append(float(loss.reconstruction.mean()))
    with torch.no_grad():
        z = encoder(images[:50].repeat_interleave(50, 0), torch.randn(2500, 8)).reshape(50, 50, 8)
    within, over_all = float(z.std(1).mean()), float(z.flatten(0, 1).std(0).mean())
    return sum(losses[-50:]) / 50, within, over_all


@pytest.mark.slow
@pytest.mark.parametrize("conditional", [True, False], ids=["vae", "wae"])
def test_the_entropy_keeps_encoders_of_digits_from_collapsing(conditional):
    reconstruction, within, over_all = train_on_digits(conditional, entropy=True)
    _, collapsed, contracted = train_on_digits(conditional, entropy=False)
    images = to_float(digits_split("train")[0])
    # Independent pixels of the mean image are what a decoder without latents can reach.
    mean = images.mean(0).clamp(1e-4, 1 - 1e-4).expand_as(images)
    blind = torch.nn.functional.binary_cross_entropy(mean, images, reduction="sum") / len(images)
    assert reconstruction < float(blind) - 2
    assert within > 5 * collapsed
    assert over_all > 1.3 * contracted


def one_dimensional():
    """An encoder and a decoder of one latent, images, and log p(x) by quadrature."""
    torch.manual_seed(0)
    encoder = ImplicitEncoder((1, 2, 2), 1, 3, width=8).double()
    decoder = Decoder((1, 2, 2), 1, width=8).double()
    with torch.no_grad():
        decoder.network.last.weight *= 8
    images = torch.rand(5, 1, 2, 2, dtype=torch.float64)
    z = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    prior = torch.distributions.Normal(0, 1).log_prob(z)
    bernoulli = torch.distributions.Bernoulli(logits=decoder(z[:, None]), validate_args=False)
    exact = [
        (bernoulli.log_prob(image).flatten(1).sum(1) + prior).logsumexp(0) + torch.log(z[1] - z[0])
        for image in images
    ]
    return encoder, decoder, images, torch.stack(exact).detach()


class Widened(ImplicitEncoder):
    """Samples far enough apart for a proposal that covers the prior."""

    def forward(self, images, noise):
        return noise[:, :1] * 1.5 + 0.3


def test_the_likelihood_bound_tends_to_the_likelihood():
    _, decoder, images, exact = one_dimensional()
    encoder = Widened((1, 2, 2), 1, 3).double()
    found = likelihood_bound(encoder, decoder, images, n_importance=20_000)
    torch.testing.assert_close(found.log_likelihood, exact, rtol=0, atol=0.02)
    assert (found.effective_sample_size > 5000).all()


@pytest.mark.parametrize("n_importance", [1, 20])
def test_the_likelihood_bound_lies_below_the_likelihood_on_average(n_importance):
    encoder, decoder, images, exact = one_dimensional()
    found = [
        likelihood_bound(encoder, decoder, images, seed=seed, n_importance=n_importance)
        for seed in range(30)
    ]
    means = torch.stack([bound.log_likelihood for bound in found]).mean(0)
    assert (means < exact + 0.02).all()
    sizes = torch.stack([bound.effective_sample_size for bound in found])
    assert bool(((sizes > 1 - 1e-9) & (sizes < n_importance + 1e-6)).all())


def test_an_encoder_without_noise_has_a_bound_too():
    _, decoder, images, exact = one_dimensional()

    class Point(ImplicitEncoder):
        def forward(self, images, noise):
            return torch.zeros(len(images), 1).to(images)

    found = likelihood_bound(Point((1, 2, 2), 1, 3), decoder, images)
    assert found.log_likelihood.isfinite().all()
    assert (found.log_likelihood < exact).all()


def test_shapes_for_digits_and_mnist():
    for shape in ((1, 8, 8), (1, 28, 28)):
        z = ImplicitEncoder(shape)(torch.rand(3, *shape), torch.randn(3, 32))
        assert z.shape == (3, 32)
        assert Decoder(shape)(z).shape == (3, *shape)
        assert LatentScore()(z).shape == z.shape


def test_the_noise_changes_the_latents():
    encoder, x = ImplicitEncoder((1, 8, 8)), torch.rand(1, 1, 8, 8).expand(5, -1, -1, -1)
    assert float(encoder(x, torch.randn(5, 32)).std(0).min().detach()) > 1e-3


def test_a_condition_is_repeated_for_copies():
    score, z, x = LatentScore(4, 9), torch.randn(3, 4), torch.randn(3, 1, 3, 3)
    torch.testing.assert_close(score(torch.cat([z, z]), x), score(z, x).repeat(2, 1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: ImplicitEncoder((1, 8, 8))(torch.rand(3, 1, 8, 8), torch.randn(3, 5)),
            r"noise \(3, 5\); \(B, 1, 8, 8\) and \(B, 32\) are needed",
        ),
        (lambda: ImplicitEncoder((1, 8, 8), noise_dim=0), "noise_dim = 0"),
        (lambda: Decoder((1, 8, 8), width=0), "width = 0 must be at least 1"),
        (lambda: LatentScore(4, 9)(torch.zeros(3, 4)), "condition has 0 numbers; 9 are needed"),
        (
            lambda: LatentScore(4, 9)(torch.zeros(4, 4), torch.zeros(3, 9)),
            "z has 4 rows, no multiple of the condition's 3",
        ),
        (
            lambda: entropy_gradient_surrogate(torch.zeros(3, 4), torch.zeros(3, 5)),
            r"score has shape \(3, 5\); z's \(3, 4\) is needed",
        ),
        (
            lambda: likelihood_bound(
                ImplicitEncoder((1, 8, 8)), Decoder((1, 8, 8)), torch.rand(2, 1, 8, 8), n_fitted=32
            ),
            "n_fitted = 32 and n_importance = 512: more than 32",
        ),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
