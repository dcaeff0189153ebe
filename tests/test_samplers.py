"""Annealed Langevin dynamics: Algorithm 1, independent of batches, in bounded memory."""

import math

import pytest
import torch
from kernel_device import DEVICE, needs_kernel
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode

from kernels.dispatch import IMPL_VARIABLE
from kernels.mixture_score import mixture_score
from kernels.philox import Stream, philox_key, philox_normal
from scorekit.compilation import compile_unavailable_reason
from scorekit.layers import InstanceNormPlus
from scorekit.networks import ScoreNetwork
from scorekit.samplers import AnnealedLangevin
from scorekit.techniques import (
    geometric_sigmas,
    ladder_ratio,
    langevin_step_size,
    langevin_variance_ratio,
)

SHAPE = (1, 4, 4)


class Mixture:
    """The score of a Gaussian mixture around fixed images, which counts what it is asked."""

    def __init__(self, sigmas: torch.Tensor, n_centres: int = 5, shape=SHAPE) -> None:
        generator = torch.Generator().manual_seed(0)
        self.sigmas, self.evaluations = sigmas, 0
        self.centres = torch.rand(n_centres, math.prod(shape), generator=generator)

    def __call__(self, x: torch.Tensor, noise_index: torch.Tensor) -> torch.Tensor:
        self.evaluations += len(x)
        assert x.shape[0] == noise_index.shape[0]
        assert len(noise_index.unique()) == 1
        sigma = float(self.sigmas[noise_index[0]])
        return mixture_score(x.flatten(1), self.centres, sigma).reshape(x.shape)


def sampler(score=None, *, sigmas=None, n_steps_each=3, seed=0, step_size=None, **options):
    sigmas = geometric_sigmas(5, 0.05, 8) if sigmas is None else sigmas
    if step_size is None:
        step_size = langevin_step_size(ladder_ratio(sigmas), float(sigmas[-1]), n_steps_each)
    return AnnealedLangevin(
        Mixture(sigmas) if score is None else score,
        sigmas,
        step_size=step_size,
        n_steps_each=n_steps_each,
        seed=seed,
        **options,
    )


def network(conditional: bool = False, sigmas: torch.Tensor | None = None) -> ScoreNetwork:
    sigmas = geometric_sigmas(5, 0.05, 8) if sigmas is None else sigmas
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ScoreNetwork("32-64", sigmas, conditional=conditional, channels=1, width=4).eval()


def in_batches(drawer: AnnealedLangevin, n: int, batch: int, shape=SHAPE):
    parts = [drawer.sample(index, shape) for index in torch.arange(n).split(batch)]
    return (
        torch.cat([part.last for part in parts]),
        torch.cat([part.denoised for part in parts]),
    )


@pytest.mark.parametrize(
    "score", ["mixture", "network", pytest.param("conditional", marks=pytest.mark.slow)]
)
def test_samples_do_not_depend_on_the_batch_size(score):
    if score == "mixture":
        make, shape = sampler, SHAPE
    else:
        sigmas = geometric_sigmas(1, 0.1, 4)
        net = network(conditional=score == "conditional", sigmas=sigmas)
        shape = (1, 8, 8)

        def make():
            return sampler(net, sigmas=sigmas, n_steps_each=2)

    whole = in_batches(make(), 64, 64, shape)
    for batch in (1, 7):
        for ours, theirs in zip(in_batches(make(), 64, batch, shape), whole, strict=True):
            difference = (ours.clamp(0, 1) - theirs.clamp(0, 1)).abs().max()
            assert float(difference) < 1e-4


def test_samples_do_not_depend_on_order_or_on_other_samples():
    drawer = sampler()
    whole = drawer.sample(torch.arange(10), SHAPE).denoised
    chosen = torch.tensor([8, 3, 2**31])
    part = drawer.sample(chosen, SHAPE).denoised
    torch.testing.assert_close(part[:2], whole[chosen[:2]], rtol=0, atol=1e-5)


def test_the_trajectory_is_algorithm_1():
    sigmas, n_steps_each, step_size = geometric_sigmas(2, 0.1, 4), 3, 1e-3
    score = Mixture(sigmas)
    index, key = torch.tensor([3, 17]), philox_key(5)
    drawer = sampler(score, sigmas=sigmas, n_steps_each=n_steps_each, step_size=step_size, seed=5)
    samples = drawer.sample(index, SHAPE)
    x, step = drawer.initial(index, SHAPE).double(), 0
    score.centres = score.centres.double()
    for i, sigma in enumerate(sigmas.double()):
        alpha = step_size * float(sigma**2 / sigmas[-1].double() ** 2)
        for _ in range(n_steps_each):
            z = philox_normal(key, index, torch.tensor(step), SHAPE, Stream.LANGEVIN).double()
            x = x + alpha * score(x, torch.tensor([i, i])) + (2 * alpha) ** 0.5 * z
            step += 1
    torch.testing.assert_close(samples.last.double(), x, rtol=1e-4, atol=1e-5)
    denoised = x + float(sigmas[-1]) ** 2 * score(x, torch.tensor([3, 3]))
    torch.testing.assert_close(samples.denoised.double(), denoised, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("score", ["mixture", "network"])
def test_both_results_come_from_one_trajectory(score):
    sigmas = geometric_sigmas(5, 0.05, 8)
    function = Mixture(sigmas) if score == "mixture" else network()
    shape = SHAPE if score == "mixture" else (1, 8, 8)
    samples = sampler(function).sample(torch.arange(5), shape)
    with torch.no_grad():
        last_score = function(samples.last, torch.full((5,), 7))
    expected = samples.last + sigmas[-1] ** 2 * last_score
    torch.testing.assert_close(samples.denoised, expected, rtol=1e-5, atol=1e-6)
    assert not torch.equal(samples.denoised, samples.last)


@pytest.mark.parametrize(("n_levels", "n_steps_each"), [(2, 1), (8, 3), (20, 5)])
def test_score_evaluations_per_sample(n_levels, n_steps_each):
    sigmas = geometric_sigmas(5, 0.05, n_levels)
    score = Mixture(sigmas)
    drawer = sampler(score, sigmas=sigmas, n_steps_each=n_steps_each)
    drawer.sample(torch.arange(6), SHAPE)
    assert score.evaluations == 6 * drawer.score_evaluations
    assert drawer.score_evaluations == n_levels * n_steps_each + 1


def test_score_evaluations_of_the_paper():
    sigmas = geometric_sigmas(50, 0.01, 232)
    drawer = sampler(sigmas=sigmas, n_steps_each=5, step_size=6.2e-6)
    assert drawer.score_evaluations == 1161


@pytest.mark.parametrize("n_steps_each", [1, 5])
def test_the_final_variance_on_one_data_point_is_that_of_proposition_3(n_steps_each):
    sigmas = geometric_sigmas(50, 0.01, 60)
    gamma = ladder_ratio(sigmas)
    epsilon = langevin_step_size(gamma, 0.01, n_steps_each)
    centre = 0.3

    def score(x, noise_index):
        return (centre - x) / sigmas[noise_index].reshape(-1, 1, 1, 1) ** 2

    drawer = sampler(score, sigmas=sigmas, n_steps_each=n_steps_each, step_size=epsilon)
    shape, n = (3, 16, 16), 200
    first = centre + sigmas[0] * philox_normal(
        philox_key(99), torch.arange(n), torch.tensor(0), shape, Stream.LANGEVIN
    )
    samples = drawer.sample(torch.arange(n), shape, initial=first)
    # Eq. (4) level by level: each starts with the variance the one before it left.
    ratio = 1.0 / gamma**2
    for _ in range(60):
        start = math.sqrt(ratio) * gamma
        ratio = langevin_variance_ratio(epsilon, start, 0.01, n_steps_each)
    error = (samples.last - centre).double() / 0.01
    assert float(error.square().mean()) == pytest.approx(
        ratio, rel=4 * math.sqrt(2 / error.numel())
    )
    assert float(error.mean()) == pytest.approx(0, abs=4 * ratio**0.5 / error.numel() ** 0.5)
    # On one data point the denoising step removes all the noise.
    torch.testing.assert_close(samples.denoised, torch.full_like(first, centre), rtol=0, atol=1e-5)


def test_the_initial_noise_is_uniform_and_belongs_to_the_sample():
    drawer = sampler()
    initial = drawer.initial(torch.arange(200), (3, 8, 8))
    assert initial.shape == (200, 3, 8, 8)
    assert stats.kstest(initial.flatten().double().numpy(), "uniform").pvalue > 1e-3
    assert torch.equal(drawer.initial(torch.tensor([50, 3]), (3, 8, 8)), initial[[50, 3]])


def test_a_custom_start_replaces_the_uniform_one_and_is_not_changed():
    drawer, index = sampler(), torch.arange(3)
    start = drawer.initial(index, SHAPE)
    same = drawer.sample(index, SHAPE, initial=start)
    assert torch.equal(same.last, drawer.sample(index, SHAPE).last)
    assert torch.equal(start, drawer.initial(index, SHAPE))
    assert not torch.equal(drawer.sample(index, SHAPE, initial=start + 1).last, same.last)


def test_noise_scales_asked_for_are_kept():
    drawer, index = sampler(), torch.arange(3)
    finished = []
    samples = drawer.sample(index, SHAPE, keep_levels=[0, 5, 7], progress=finished.append)
    assert list(samples.levels) == [0, 5, 7]
    assert torch.equal(samples.levels[7], samples.last)
    assert all(x.shape == (3, *SHAPE) and x.device.type == "cpu" for x in samples.levels.values())
    assert not torch.equal(samples.levels[0], samples.levels[5])
    assert finished == list(range(8))
    plain = drawer.sample(index, SHAPE)
    assert plain.levels == {}
    assert torch.equal(plain.last, samples.last)
    # What is kept is what the shorter ladder would have ended with.
    sigmas = geometric_sigmas(5, 0.05, 8)
    epsilon = langevin_step_size(ladder_ratio(sigmas), 0.05, 3)
    shorter = sampler(
        Mixture(sigmas),
        sigmas=sigmas[:6],
        step_size=epsilon * float(sigmas[5] ** 2 / sigmas[-1] ** 2),
    )
    torch.testing.assert_close(
        shorter.sample(index, SHAPE).last, samples.levels[5], rtol=1e-4, atol=1e-4
    )


def test_a_seed_is_a_set_of_samples():
    index = torch.arange(4)
    first, again, other = (sampler(seed=s).sample(index, SHAPE) for s in (1, 1, 2))
    assert torch.equal(first.denoised, again.denoised)
    assert (first.denoised - other.denoised).abs().max() > 1e-2
    drawer = sampler(seed=1)
    drawer.sample(torch.arange(9), SHAPE)
    assert torch.equal(drawer.sample(index, SHAPE).denoised, first.denoised)


def test_a_mixture_is_sampled_at_its_centres():
    sigmas = geometric_sigmas(5, 0.01, 60)
    score = Mixture(sigmas, n_centres=3)
    samples = sampler(score, sigmas=sigmas, n_steps_each=5).sample(torch.arange(300), SHAPE)
    distance = torch.cdist(samples.denoised.flatten(1), score.centres)
    nearest = distance.min(dim=1)
    assert float(nearest.values.max()) < 0.02
    counts = torch.bincount(nearest.indices, minlength=3)
    # sigma_1 above the largest distance between centres: none of them is missed.
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4


def test_no_gradients_are_recorded():
    samples = sampler(network()).sample(torch.arange(2), (1, 8, 8))
    assert not samples.last.requires_grad
    assert not samples.denoised.requires_grad


@pytest.mark.parametrize("n_steps_each", [0, -1])
def test_fewer_than_one_step_is_refused(n_steps_each):
    with pytest.raises(ValueError, match=f"n_steps_each = {n_steps_each} must be at least 1"):
        sampler(n_steps_each=n_steps_each, step_size=1e-4)


@pytest.mark.parametrize("step_size", [0.0, -1e-5, 2 * 0.05**2 * 1.01, 1.0, math.nan])
def test_a_step_size_that_diverges_is_refused(step_size):
    with pytest.raises(ValueError, match=r"step_size = .* diverge"):
        sampler(step_size=step_size)


@pytest.mark.parametrize("level", [-1, 8, 99])
def test_a_noise_scale_that_is_not_there_is_refused(level):
    with pytest.raises(ValueError, match=f"{level}"):
        sampler().sample(torch.arange(2), SHAPE, keep_levels=[level])


def test_a_score_times_sigma_gives_the_same_samples():
    sigmas = geometric_sigmas(1, 0.1, 4)
    net, options = network(sigmas=sigmas), {"sigmas": sigmas, "n_steps_each": 2}
    index, shape = torch.arange(4), (1, 8, 8)
    divided = sampler(net, **options).sample(index, shape)
    folded = sampler(net.features, times_sigma=True, **options).sample(index, shape)
    torch.testing.assert_close(folded.last, divided.last, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(folded.denoised, divided.denoised, rtol=1e-4, atol=1e-4)


def test_steps_beyond_the_last_stay_at_the_smallest_noise_scale():
    sigmas = geometric_sigmas(1, 0.1, 3)
    levels = []

    def score(x, noise_index):
        levels.append(noise_index.tolist())
        return torch.zeros_like(x)

    drawer, index = sampler(score, sigmas=sigmas, n_steps_each=2), torch.arange(2)
    state = drawer.start(drawer.initial(index, SHAPE), index)
    for _ in range(8):
        state.advance()
    assert levels == [[i, i] for i in (0, 0, 1, 1, 2, 2, 2, 2)]
    assert int(state.step) == 8


class HostReads(TorchDispatchMode):
    """Counts the operations that make the host wait for a device's value."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        waiting = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "unique")
        self.count += any(name in str(function) for name in waiting)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("conditional", [False, True])
def test_the_loop_never_waits_for_the_device(conditional):
    sigmas = geometric_sigmas(1, 0.1, 3)
    score = network(conditional=conditional, sigmas=sigmas)
    drawer, index = sampler(score, sigmas=sigmas, n_steps_each=2), torch.arange(3)
    with HostReads() as reads:
        drawer.sample(index, (1, 8, 8))
    assert reads.count == 0
    with HostReads() as reads:
        float(index[0])
    assert reads.count == 1


def compare_compiled(score, sigmas: torch.Tensor, shape, **options) -> None:
    """Compiled and eager samples agree, and two graphs serve all noise scales and batches."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    batches = [torch.tensor([0, 1, 2]), torch.tensor([3, 4, 4])]  # a short last batch is filled up
    drawer = sampler(score, sigmas=sigmas, compile=True, **options)
    fast = [drawer.sample(index, shape) for index in batches]
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 2  # a step and the denoising step
    assert not counters["graph_break"]
    eager = sampler(score, sigmas=sigmas, **options)
    for index, ours in zip(batches, fast, strict=True):
        theirs = eager.sample(index, shape)
        for a, b in ((ours.last, theirs.last), (ours.denoised, theirs.denoised)):
            assert float((a.clamp(0, 1) - b.clamp(0, 1)).abs().max()) < 1e-4


@pytest.mark.skipif(compile_unavailable_reason() is not None, reason="torch.compile does not work")
def test_a_compiled_sampler_gives_the_eager_ones_samples():
    sigmas = geometric_sigmas(5, 0.05, 8)
    norm = InstanceNormPlus(2)
    convs = [torch.nn.Conv2d(1, 2, 3, padding=1), torch.nn.Conv2d(2, 1, 3, padding=1)]

    def net(x, noise_index):
        h = torch.nn.functional.elu(norm(convs[0](2 * x - 1), noise_index))
        return convs[1](h) / sigmas[noise_index].reshape(-1, 1, 1, 1)

    compare_compiled(net, sigmas, (1, 8, 8))


@pytest.mark.slow
@pytest.mark.skipif(compile_unavailable_reason() is not None, reason="torch.compile does not work")
@pytest.mark.parametrize("conditional", [False, True])
def test_a_compiled_network_gives_the_eager_ones_samples(conditional):
    sigmas = geometric_sigmas(1, 0.1, 4)
    net = network(conditional=conditional, sigmas=sigmas)
    score = net if conditional else net.features
    options = {"n_steps_each": 2, "times_sigma": not conditional}
    compare_compiled(score, sigmas, (1, 8, 8), **options)


@pytest.mark.slow
@needs_kernel
@pytest.mark.parametrize("conditional", [False, True])
def test_kernels_and_plain_torch_give_the_same_samples(conditional, monkeypatch):
    sigmas = geometric_sigmas(1, 0.5, 2)
    net = network(conditional=conditional, sigmas=sigmas).to(DEVICE)
    score = net if conditional else net.features
    options = {"sigmas": net.sigmas, "n_steps_each": 1, "times_sigma": not conditional}
    index, shape = torch.tensor([3, 2**31], device=DEVICE), (1, 8, 8)
    results = {}
    for impl in ("torch", "triton"):
        monkeypatch.setenv(IMPL_VARIABLE, impl)
        results[impl] = sampler(score, **options).sample(index, shape)
    # Not equal to the bit: it really was another implementation.
    assert not torch.equal(results["triton"].last, results["torch"].last)
    torch.testing.assert_close(
        results["triton"].denoised, results["torch"].denoised, rtol=1e-4, atol=1e-4
    )
