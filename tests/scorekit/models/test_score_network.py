"""The score networks: sizes and costs of the paper's, Technique 3, and the norm's formula."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from scorekit.models.conditioning import CONDITIONINGS, Conditioning, register_conditioning
from scorekit.models.layers import CondInstanceNormPlus, InstanceNormPlus, RefineBlock
from scorekit.models.score_network import (
    ARCHITECTURES,
    ScoreNetwork,
    architecture_for,
    check_image_size,
    forward_flops,
    parameter_count,
)
from scorekit.techniques.noise_scales import geometric_sigmas


def small(
    architecture: str = "32-64",
    *,
    conditional: bool = False,
    channels: int = 3,
    width: int = 4,
    n_levels: int = 10,
    seed: int = 0,
    conditioning: str | None = None,
) -> ScoreNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ScoreNetwork(
            architecture,
            geometric_sigmas(50, 0.01, n_levels),
            conditional=conditional,
            channels=channels,
            width=width,
            conditioning=conditioning,
        ).eval()


def images(batch: int, channels: int, size: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, channels, size, size, generator=generator)


@pytest.mark.parametrize(
    ("architecture", "n_levels", "conditional", "expected"),
    [
        ("32-64", 232, False, 29_694_083),
        ("32-64", 500, False, 29_694_083),
        ("96-128", 788, False, 83_445_379),
        ("256", 2311, False, 94_132_611),
        ("32-64", 10, True, 30_117_635),
        ("32-64", 232, True, 39_750_659),
        ("32-64", 500, True, 51_379_715),
        ("96-128", 10, True, 84_183_811),
    ],
)
def test_parameter_counts(architecture, n_levels, conditional, expected):
    network_settings = {
        "architecture": architecture,
        "sigmas": geometric_sigmas(50, 0.01, n_levels),
        "conditional": conditional,
    }
    assert parameter_count(network_settings) == expected


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_parameters_are_counted_as_the_network_has_them(architecture, conditional):
    network = small(architecture, conditional=conditional, channels=1, n_levels=7)
    assert network.n_levels == 7
    network_settings = {
        "architecture": architecture,
        "sigmas": network.sigmas,
        "conditional": conditional,
        "channels": 1,
        "width": 4,
    }
    assert parameter_count(network_settings) == network.n_parameters()


@pytest.mark.parametrize(
    ("architecture", "size", "conditional", "gflop"),
    [
        ("32-64", 32, False, 19.8),
        ("32-64", 64, False, 79.1),
        ("96-128", 96, False, 169.9),
        ("96-128", 128, False, 302),
        ("256", 256, False, 839),
        ("32-64", 32, True, 19.8),
    ],
)
def test_forward_flops(architecture, size, conditional, gflop):
    network_settings = {
        "architecture": architecture,
        "sigmas": geometric_sigmas(1, 0.01, 10),
        "conditional": conditional,
    }
    flops = forward_flops(network_settings, size) / 1e9
    assert round(flops, 0 if gflop > 200 else 1) == gflop


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_forward_flops_are_those_that_torch_counts(architecture, conditional):
    size = 2 * ARCHITECTURES[architecture].divisor
    network = small(architecture, conditional=conditional, channels=1)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.features(images(1, 1, size), torch.tensor([0]))
    network_settings = dict(
        architecture=architecture,
        sigmas=network.sigmas,
        conditional=conditional,
        channels=1,
        width=4,
    )
    assert forward_flops(network_settings, size) == counter.get_total_flops()


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 28, 32])
@pytest.mark.parametrize("width", [2, 5])
def test_scores_have_the_shape_of_the_images(conditional, channels, size, width):
    network = small(conditional=conditional, channels=channels, width=width)
    score = network(images(2, channels, size), torch.tensor([0, 9]))
    assert score.shape == (2, channels, size, size)
    assert score.isfinite().all()


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_every_parameter_takes_part(architecture, conditional):
    network = small(architecture, conditional=conditional, width=2)
    size = 2 * ARCHITECTURES[architecture].divisor
    x = images(10, 3, size)
    network(x, torch.arange(10)).square().sum().backward()
    unused = [name for name, p in network.named_parameters() if p.grad is None]
    assert unused == []


@pytest.mark.parametrize(("architecture", "coarsest"), [("32-64", 16), ("96-128", 32), ("256", 32)])
def test_the_lowest_resolution_of_each_architecture(architecture, coarsest):
    size = {"32-64": 32, "96-128": 128, "256": 256}[architecture]
    assert size // ARCHITECTURES[architecture].divisor == coarsest
    sides = set()
    with torch.device("meta"):
        network = ScoreNetwork(architecture, geometric_sigmas(1, 0.01, 2).cpu(), width=2)
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.register_forward_hook(lambda m, i, out: sides.add(out.shape[-1]))
        network.features(torch.empty(1, 3, size, size), None)
    assert min(sides) == coarsest
    assert max(sides) == size


@pytest.mark.parametrize("conditional", [False, True])
def test_refine_blocks_run_from_coarse_to_fine_each_on_its_stage(conditional):
    network = small("256", conditional=conditional, width=2)
    outputs, calls = {}, []

    def keep(name):
        return lambda module, given, out: outputs.update({name: out})

    def note(name):
        return lambda module, given: calls.append((name, given[0][0]))

    for stage in ARCHITECTURES["256"].stages:
        network.get_submodule(stage.name)[-1].register_forward_hook(keep(stage.name))
    for name, _ in ARCHITECTURES["256"].refine:
        network.get_submodule(name).register_forward_pre_hook(note(name))
    network(images(1, 3, 16), torch.tensor([3]))
    laterals = {"refine1": "res5", "refine2": "res4", "refine31": "res31"}
    laterals |= {"refine3": "res3", "refine4": "res2", "refine5": "res1"}
    assert [name for name, _ in calls] == list(laterals)
    assert all(lateral is outputs[laterals[name]] for name, lateral in calls)


# Technique 3


def test_the_score_times_sigma_does_not_depend_on_sigma():
    network = small().double()
    x = images(1, 3, 8).double()
    scaled = [network.score(x, sigma) * sigma for sigma in (0.01, 0.3, 1.0, 50.0)]
    for other in scaled[1:]:
        torch.testing.assert_close(other, scaled[0], rtol=1e-12, atol=0)
    assert scaled[0].abs().max() > 1e-3


def test_forward_is_the_score_at_the_ladders_sigmas():
    network = small()
    x = images(10, 3, 8)
    index = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    by_index = network(x, index)
    assert torch.equal(by_index, network.score(x, network.sigmas[index]))
    one_by_one = [network.score(x[i : i + 1], float(network.sigmas[index[i]])) for i in range(10)]
    for ours, batched in zip(torch.cat(one_by_one), by_index, strict=True):
        assert (ours - batched).abs().max() < 1e-4 * batched.abs().max()


def test_any_sigma_is_accepted_between_and_beyond_the_ladder():
    network = small(n_levels=3)
    x = images(4, 3, 8)
    sigma = torch.tensor([0.004, 0.5, 7.0, 400.0])
    expected = network.score(x, 1.0) / sigma.reshape(-1, 1, 1, 1)
    torch.testing.assert_close(network.score(x, sigma), expected)


@pytest.mark.parametrize("conditioning", ["normalisation", "edm"])
def test_a_told_network_takes_scales_between_and_beyond_its_own(conditioning):
    network = small(conditional=True, conditioning=conditioning, n_levels=5).double()
    x, index = images(5, 3, 8).double(), torch.arange(5)
    # Its own scales are told by index or by value.
    torch.testing.assert_close(network.score(x, network.sigmas[index]), network(x, index))
    assert network.place(network.sigmas[index]).tolist() == pytest.approx([0, 1, 2, 3, 4])
    assert network.place(torch.tensor([1e9, 1e-9])).tolist() == [0, 4]
    halfway = (network.sigmas[1] * network.sigmas[2]).sqrt()
    assert float(network.place(halfway.reshape(1))) == pytest.approx(1.5, abs=1e-5)
    # Halfway in the logarithm is halfway between two rows of every normalisation.
    own = {name: p.detach().clone() for name, p in network.named_parameters()}
    found = network.score(x, halfway.expand(5))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("embed.weight"):
                parameter[2] = (own[name][1] + own[name][2]) / 2
    network.sigmas[2] = halfway
    expected = network(x, torch.full((5,), 2))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def straight_line(network, x, sigma, index):
    """sigma s(x, sigma), as each source writes it, from the network's layers alone."""
    if network.conditioning == "normalisation":
        return sigma * network.features(x, index)
    if network.conditioning == "inverse_sigma":
        return network.features(x, None)
    if network.conditioning == "none":
        return sigma * network.features(x, None)
    # Karras et al. 2022, Table 1 and Eq. 7, for y = 2 x - 1, whose noise is 2 sigma.
    y, noise, sd = 2 * x - 1, 2 * sigma, 0.5
    c_skip, c_out = sd**2 / (noise**2 + sd**2), noise * sd / (noise**2 + sd**2) ** 0.5
    c_in = 1 / (noise**2 + sd**2) ** 0.5
    denoised = c_skip * y + c_out * network.features((c_in * y + 1) / 2, index)
    return (denoised - y) / noise


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_scores_are_those_of_their_conditioning(conditioning):
    told = CONDITIONINGS[conditioning].told
    network = small(conditional=told, conditioning=conditioning).double()
    x, index = images(4, 3, 8).double(), torch.tensor([0, 1, 1, 2])
    sigma = network.sigmas[index].double().reshape(-1, 1, 1, 1)
    expected = straight_line(network, x, sigma, index)
    torch.testing.assert_close(network(x, index) * sigma, expected)
    torch.testing.assert_close(network.score(x, sigma.flatten()) * sigma, expected)
    torch.testing.assert_close(network.scaled_score(x, sigma.flatten()), expected)
    one_by_one = [network.score(x[i : i + 1], float(sigma[i])) for i in range(4)]
    torch.testing.assert_close(torch.cat(one_by_one) * sigma, expected)


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@pytest.mark.parametrize("between", [False, True])
@pytest.mark.parametrize("other_ladder", [False, True])
def test_samplers_are_given_a_score_and_how_to_ask_it(conditioning, between, other_ladder):
    told = CONDITIONINGS[conditioning].told
    network = small(conditional=told, conditioning=conditioning)
    sigmas = torch.linspace(2, 0.5, 4) if other_ladder else network.sigmas
    score, how = network.sampled_along(sigmas, between=between)
    x, sigma = images(2, 3, 8), sigmas[1].expand(2)
    with torch.no_grad():
        found = score(x, sigma if how.get("takes_sigma") else torch.tensor([1, 1]))
        expected = network.score(x, sigma)
    if how.get("times_sigma"):
        found = found / sigmas[1]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    if conditioning == "inverse_sigma" or (told and not between and not other_ladder):
        assert "takes_sigma" not in how
    else:
        assert how == {"times_sigma": True, "takes_sigma": True}


def test_a_conditioning_that_does_not_fit_the_network_is_refused():
    with pytest.raises(ValueError, match=r"conditioning = 'edm' is told .* conditional = True"):
        small(conditioning="edm")
    with pytest.raises(ValueError, match=r"conditioning = 'none' is blind .* conditional = False"):
        small(conditional=True, conditioning="none")
    with pytest.raises(ValueError, match=r"conditioning = 'film': one of normalisation, .*edm"):
        small(conditioning="film")


def test_a_conditioning_of_ones_own_is_taken_by_its_name():
    own = Conditioning(told=False, times_sigma=False, output=lambda f, y, sigma: f - y / sigma)
    register_conditioning("skip", own)
    try:
        network, x = small(conditioning="skip"), images(2, 3, 8)
        expected = network.features(x, None) - (2 * x - 1) / 0.5
        torch.testing.assert_close(network.score(x, 0.5), expected)
        with pytest.raises(ValueError, match="conditioning = 'skip' is registered already"):
            register_conditioning("skip", own)
    finally:
        del CONDITIONINGS["skip"]


def test_a_conditional_network_depends_on_its_noise_index():
    network = small(conditional=True)
    x = images(1, 3, 8).expand(10, -1, -1, -1)
    with torch.no_grad():
        scores = network(x, torch.arange(10))
    ratio = scores[0] / scores[1:]
    assert float(ratio.std()) > 1e-3  # not a mere rescaling


def test_ladders_in_checkpoints():
    assert "sigmas" in small().state_dict()
    assert "sigmas" not in small(conditional=True).state_dict()


# InstanceNorm++


def norm_by_the_book(x: np.ndarray, gamma, alpha, beta) -> np.ndarray:
    result = np.empty_like(x)
    for b, sample in enumerate(x):
        mu = sample.mean(axis=(1, 2))
        m, v = mu.mean(), mu.var(ddof=1)
        for c, channel in enumerate(sample):
            inner = (channel - mu[c]) / np.sqrt(channel.var() + 1e-5)
            inner = inner + alpha[b][c] * (mu[c] - m) / np.sqrt(v + 1e-5)
            result[b, c] = gamma[b][c] * inner + beta[b][c]
    return result


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(2, 6), st.integers(1, 7), st.integers(1, 7)),
    conditional=st.booleans(),
    offset=st.floats(-10, 10),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=50, deadline=None)
def test_instance_norm_plus_equals_its_formula(shape, conditional, offset, seed):
    batch, channels = shape[:2]
    rng = np.random.Generator(np.random.Philox(seed))
    x = offset + rng.normal(size=shape)
    gamma, alpha, beta = (rng.normal(size=(4, channels)) for _ in range(3))
    index = rng.integers(0, 4, batch)
    layer: torch.nn.Module
    if conditional:
        layer = CondInstanceNormPlus(channels, 4)
        state = {"embed.weight": torch.from_numpy(np.concatenate([gamma, alpha, beta], axis=1))}
    else:
        layer = InstanceNormPlus(channels)
        index[:] = 0
        state = {
            name: torch.from_numpy(value[0])
            for name, value in (("gamma", gamma), ("alpha", alpha), ("beta", beta))
        }
    layer.double().load_state_dict(state)
    result = layer(torch.from_numpy(x), torch.from_numpy(index)).detach().numpy()
    expected = norm_by_the_book(x, gamma[index], alpha[index], beta[index])
    np.testing.assert_allclose(result, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("make", [InstanceNormPlus, lambda c: CondInstanceNormPlus(c, 50)])
def test_instance_norm_plus_starts_near_one_and_at_zero(make):
    torch.manual_seed(0)
    layer = make(4000)
    if isinstance(layer, CondInstanceNormPlus):
        gamma, alpha, beta = layer.embed.weight.detach().chunk(3, dim=1)
    else:
        gamma, alpha, beta = layer.gamma.detach(), layer.alpha.detach(), layer.beta.detach()
    for value in (gamma, alpha):
        assert float(value.mean()) == pytest.approx(1, abs=2e-3)
        assert float(value.std()) == pytest.approx(0.02, rel=0.1)
    assert not beta.any()


# What users rely on


@pytest.mark.parametrize("conditional", [False, True])
def test_a_samples_score_does_not_depend_on_its_batch(conditional):
    network = small(conditional=conditional).double()
    x, index = images(6, 3, 8).double(), torch.arange(6)
    whole = network(x, index)
    order = torch.tensor([4, 0, 5])
    torch.testing.assert_close(network(x[order], index[order]), whole[order], rtol=1e-9, atol=1e-9)
    others = x.clone()
    others[1:] = 0
    torch.testing.assert_close(network(others, index)[0], whole[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_float32_agrees_with_float64(architecture, conditional):
    network = small(architecture, conditional=conditional, width=8)
    x, index = images(2, 3, 32), torch.tensor([0, 9])
    with torch.no_grad():
        single = network(x, index)
        double = network.double()(x.double(), index)
    for ours, exact in zip(single, double, strict=True):
        assert (ours - exact).abs().max() < 1e-4 * exact.abs().max()


def test_channels_last_changes_nothing_but_rounding():
    network = small(width=8)
    x, index = images(2, 3, 16), torch.tensor([3, 9])
    with torch.no_grad():
        plain = network(x, index)
        fast = network.to(memory_format=torch.channels_last)(
            x.to(memory_format=torch.channels_last), index
        )
    assert (plain - fast).abs().max() < 1e-4 * plain.abs().max()


@pytest.mark.parametrize(
    ("size", "name"),
    [(8, "32-64"), (32, "32-64"), (64, "32-64"), (96, "96-128"), (128, "96-128"), (256, "256")],
)
def test_the_papers_architecture_for_each_resolution(size, name):
    assert architecture_for(size) == name
    check_image_size(name, size)


@pytest.mark.parametrize(
    ("architecture", "size"),
    [("32-64", 7), ("32-64", 2), ("32-64", 0), ("96-128", 30), ("96-128", 4), ("256", 100)],
)
def test_sizes_that_do_not_fit_are_refused(architecture, size):
    divisor = ARCHITECTURES[architecture].divisor
    with pytest.raises(ValueError, match=f"image_size = {size} .* multiple of {divisor}"):
        check_image_size(architecture, size)


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_the_smallest_size_that_is_accepted_works(architecture):
    size = 2 * ARCHITECTURES[architecture].divisor
    check_image_size(architecture, size)
    assert small(architecture, width=2)(images(1, 3, size), torch.zeros(1, dtype=torch.long)).any()


def test_bad_arguments_are_refused():
    sigmas = geometric_sigmas(1, 0.01, 4)
    for check in (lambda: ScoreNetwork("512", sigmas), lambda: check_image_size("512", 32)):
        with pytest.raises(ValueError, match="architecture = '512' is unknown; known: 32-64"):
            check()
    with pytest.raises(ValueError, match="width = 1"):
        ScoreNetwork("32-64", sigmas, width=1)
    with pytest.raises(ValueError, match="channels = 0"):
        ScoreNetwork("32-64", sigmas, channels=0, width=4)
    for bad in ([], [[1.0]], [1.0, 0.0], [1.0, -1.0], [float("nan")]):
        with pytest.raises(ValueError, match="vector of positive noise scales"):
            ScoreNetwork("32-64", torch.tensor(bad), width=4)
    with pytest.raises(ValueError, match=r"keeps its width,? 4, not 8"):
        RefineBlock([4], 8, 1, None)
