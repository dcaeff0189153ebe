"""Networks of one's own: by the base class, or any module that takes a noise index."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from scorekit.models.conditioning import CONDITIONINGS
from scorekit.models.noise_conditional import NoiseConditionalNetwork, sampled_along
from scorekit.models.score_network import (
    ARCHITECTURES,
    PAPER_ARCHITECTURES,
    Architecture,
    ScoreNetwork,
    check_image_size,
    forward_flops,
    make_network,
    parameter_count,
    register_architecture,
    takes_any_scale,
)
from scorekit.sampling.registry import SAMPLERS, make_sampler
from scorekit.techniques.ladder import Ladder

LADDER = Ladder(sigma_begin=1.0, sigma_end=0.1, n_levels=4, n_steps_each=1, step_size=0.005)
SIGMAS = LADDER.sigmas


class Small(NoiseConditionalNetwork):
    """Two layers, of which the first is told the noise index."""

    def __init__(self, sigmas, *, channels, width, conditional, conditioning):
        super().__init__(sigmas, conditional=conditional, conditioning=conditioning)
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.last = nn.Conv2d(width, channels, 3, padding=1)

    def body(self, y, noise_index):
        h = self.first(y)
        if noise_index is not None:
            h = h + noise_index.reshape(-1, 1, 1, 1)
        return self.last(torch.tanh(h))


class Plain(nn.Module):
    """Any module: scores by the index."""

    def __init__(self, sigmas, *, channels, width, **others):
        super().__init__()
        self.scales = sigmas
        self.layer = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x, noise_index):
        return self.layer(x) / self.scales[noise_index].reshape(-1, 1, 1, 1)


@pytest.fixture
def registered():
    before = dict(ARCHITECTURES)
    yield register_architecture
    ARCHITECTURES.clear()
    ARCHITECTURES.update(before)


def small(conditioning=None):
    told = conditioning is not None and CONDITIONINGS[conditioning].told
    return Small(SIGMAS, channels=1, width=4, conditional=told, conditioning=conditioning)


@pytest.mark.parametrize("conditioning", list(CONDITIONINGS))
def test_scores_of_a_body_are_those_that_the_conditioning_makes_of_it(conditioning):
    network, way = small(conditioning), CONDITIONINGS[conditioning]
    x, index = torch.rand(3, 1, 4, 4), torch.tensor([0, 2, 3])
    sigma, y = SIGMAS[index].reshape(-1, 1, 1, 1), 2 * x - 1
    body = network.body(y if way.c_in is None else way.c_in(sigma) * y, index if way.told else None)
    expected = way.output(body, y, sigma)
    if way.times_sigma:
        expected = expected / sigma
    assert torch.equal(network(x, index), expected)
    torch.testing.assert_close(network.score(x, SIGMAS[index]), expected)


@pytest.mark.parametrize("sampler", list(SAMPLERS))
@pytest.mark.parametrize("conditioning", ["normalisation", "inverse_sigma", "edm"])
def test_every_sampler_takes_it(sampler, conditioning):
    network = small(conditioning).requires_grad_(False)
    score, options = sampled_along(network, SIGMAS)
    ladder = LADDER.by_rule("consistent") if sampler == "consistent" else LADDER
    drawn = make_sampler(sampler, score, ladder, **options).sample(torch.arange(2), (1, 4, 4))
    assert drawn.denoised.shape == (2, 1, 4, 4)
    assert bool(drawn.denoised.isfinite().all())


def test_any_module_is_sampled_by_the_indices_of_its_own_scales(registered):
    network = Plain(SIGMAS, channels=1, width=4).requires_grad_(False)
    score, options = sampled_along(network, SIGMAS)
    assert (score, options) == (network, {})
    with pytest.raises(ValueError, match=r"Plain has no score\(x, sigma\)"):
        sampled_along(network, SIGMAS, between=True)
    # One that knows any scale gives the same samples by sigma as by the index.
    network.score = lambda x, sigma: network.layer(x) / sigma.reshape(-1, 1, 1, 1)
    at, told = sampled_along(network, SIGMAS, between=True)
    assert told == {"takes_sigma": True}
    place = torch.arange(2)
    by_index = make_sampler("annealed", score, LADDER).sample(place, (1, 4, 4)).last
    by_sigma = make_sampler("annealed", at, LADDER, **told).sample(place, (1, 4, 4)).last
    torch.testing.assert_close(by_index, by_sigma)


def test_a_registered_network_is_made_by_its_name_and_counted(registered):
    registered("small", Small, divisor=4)
    registered("plain", Plain)
    how = {"conditional": False, "channels": 1, "width": 4, "conditioning": "edm"}
    with pytest.raises(ValueError, match="conditioning = 'edm' is told"):
        make_network("small", SIGMAS, **how)
    network = make_network("small", SIGMAS, **how | {"conditioning": "none"})
    assert isinstance(network, Small)
    assert network.conditioning == "none"
    assert takes_any_scale("small")
    assert not takes_any_scale("plain")
    assert takes_any_scale("32-64")
    settings = {"architecture": "small", "sigmas": SIGMAS, "channels": 1, "width": 4}
    # 3 x 3 filters: 1 to 4 and back, with biases; 2 operations of each at 8 x 8 pixels.
    assert parameter_count(settings) == (9 * 4 + 4) + (9 * 4 + 1)
    assert forward_flops(settings, 8) == 2 * 64 * 2 * 36
    with pytest.raises(ValueError, match=r"image_size = 6 .*multiple of 4"):
        check_image_size("small", 6)
    state = torch.random.get_rng_state()
    parameter_count(settings)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_count_is_torchs_for_products_that_are_no_convolutions(registered):
    class Attention(Small):
        def body(self, y, noise_index):
            flat = y.flatten(2)
            return (flat.transpose(1, 2) @ flat).sum(-1).reshape(y.shape)

    registered("small", Attention)
    settings = {"architecture": "small", "sigmas": SIGMAS, "channels": 1, "width": 4}
    assert forward_flops(settings, 8) == 2 * 64 * 64
    with FlopCounterMode(display=False) as counter:
        make_network(**settings)(torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.int64))
    assert counter.get_total_flops() == 2 * 64 * 64


def test_a_table_of_stages_can_be_registered_too(registered):
    table = PAPER_ARCHITECTURES["32-64"]
    registered(
        "small", Architecture(stages=table.stages[:2], refine=(("refine1", 2), ("refine2", 1)))
    )
    network = make_network("small", SIGMAS, channels=1, width=2)
    assert isinstance(network, ScoreNetwork)
    assert network(torch.zeros(1, 1, 4, 4), torch.zeros(1, dtype=torch.int64)).shape[-1] == 4


def test_names_that_are_taken_or_unknown_and_no_modules_are_refused(registered):
    with pytest.raises(ValueError, match="architecture = '256' is registered already"):
        registered("256", Small)
    registered("small", Small)
    with pytest.raises(ValueError, match="'smal' is unknown; known: 32-64, 96-128, 256, small"):
        make_network("smal", SIGMAS)
    with pytest.raises(ValueError, match="'small' has no table of stages"):
        ScoreNetwork("small", SIGMAS)
    registered("plain", lambda sigmas, **how: "no module")
    with pytest.raises(TypeError, match="made 'no module', which is no nn"):
        make_network("plain", SIGMAS)
