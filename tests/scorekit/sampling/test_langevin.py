"""Annealed Langevin dynamics: Algorithm 1, independent of batches, in bounded memory."""

import math

import pytest
import torch
from kernel_device import DEVICE, needs_kernel
from scipy import stats
from tiny_training import FEW_BLOCKS
from torch.utils._python_dispatch import TorchDispatchMode

from kernels.dispatch import IMPL_VARIABLE
from kernels.mixture_score import mixture_score
from kernels.philox import Stream, philox_key, philox_normal
from scorekit.models.layers import InstanceNormPlus
from scorekit.models.score_network import ARCHITECTURES, ScoreNetwork
from scorekit.runtime.compilation import compile_unavailable_reason
from scorekit.sampling import trajectory
from scorekit.sampling.consistent import refined_sigmas
from scorekit.sampling.langevin import AnnealedLangevin, interpolation_angles
from scorekit.techniques.noise_scales import geometric_sigmas, ladder_ratio
from scorekit.techniques.step_size import langevin_step_size, langevin_variance_ratio

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


def network(
    conditional: bool = False, sigmas: torch.Tensor | None = None, architecture: str = "32-64"
) -> ScoreNetwork:
    sigmas = geometric_sigmas(5, 0.05, 8) if sigmas is None else sigmas
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ScoreNetwork(architecture, sigmas, conditional=conditional, channels=1, width=4)
    return network.eval()


MODES = ["annealed", "consistent", "interpolation", "inpainting"]


def asked(mode: str, index: torch.Tensor, shape: tuple[int, ...]) -> dict:
    """What a mode has :meth:`AnnealedLangevin.sample` be given, as a function of the indices."""
    if mode == "interpolation":
        return {"mix_seed": 99, "mix_angle": (1 + index % 7) / 5}
    if mode == "inpainting":
        zero = torch.zeros((), dtype=torch.int64, device=index.device)
        known, mask = (
            philox_normal(philox_key(k, index.device), index, zero, shape, Stream.LANGEVIN)
            for k in (7, 8)
        )
        return {"known": known.sigmoid(), "mask": mask[:, :1] > 0}
    return {}


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

    whole = in_batches(make(), 7, 7, shape)
    for batch in (1, 3):
        for ours, theirs in zip(in_batches(make(), 7, batch, shape), whole, strict=True):
            difference = (ours.clamp(0, 1) - theirs.clamp(0, 1)).abs().max()
            assert float(difference) < 1e-4


@pytest.mark.parametrize("mode", MODES[1:])
def test_samples_of_no_mode_depend_on_the_batch(mode):
    drawer, index = sampler(n_steps_each=1, consistent=mode == "consistent"), torch.arange(12)
    whole = drawer.sample(index, SHAPE, **asked(mode, index, SHAPE))
    for part in (index[5:6], index[[8, 2, 11]]):
        samples = drawer.sample(part, SHAPE, **asked(mode, part, SHAPE))
        for ours, theirs in ((samples.last, whole.last), (samples.denoised, whole.denoised)):
            torch.testing.assert_close(ours, theirs[part], rtol=0, atol=1e-5)


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


def test_float32_trajectories_are_algorithm_1_to_the_last_bit():
    sigmas, n_steps_each, step_size = geometric_sigmas(2, 0.1, 4), 3, 1e-3
    score = Mixture(sigmas)
    index, key = torch.tensor([3, 17]), philox_key(5)
    drawer = sampler(score, sigmas=sigmas, n_steps_each=n_steps_each, step_size=step_size, seed=5)
    samples = drawer.sample(index, SHAPE)
    alphas = (step_size * (sigmas.double() / sigmas[-1].double()) ** 2).float()
    x = drawer.initial(index, SHAPE)
    for step in range(4 * n_steps_each):
        i = step // n_steps_each
        z = philox_normal(key, index, torch.tensor(step), SHAPE, Stream.LANGEVIN)
        x = x + alphas[i] * score(x, torch.tensor([i, i])) + torch.sqrt(2 * alphas[i]) * z
    assert torch.equal(samples.last, x)
    denoised = x + sigmas[-1].square() * score(x, torch.tensor([3, 3]))
    assert torch.equal(samples.denoised, denoised)


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


@pytest.mark.parametrize(
    ("n_levels", "n_steps_each", "consistent"),
    [(60, 5, False), (25, 5, False), (60, 1, True), (25, 5, True)],
)
def test_a_mixture_is_sampled_at_its_centres(n_levels, n_steps_each, consistent):
    # The exact score is that of any noise scale, as an unconditional network's is meant to be.
    sigmas = geometric_sigmas(5, 0.01, n_levels)
    ladder = refined_sigmas(sigmas, n_steps_each) if consistent else sigmas
    mixture = Mixture(ladder, n_centres=3)

    def score(x, noise_index):
        return ladder[noise_index].reshape(-1, 1, 1, 1) * mixture(x, noise_index)

    steps_per_sigma = 1 if consistent else n_steps_each
    drawer = sampler(
        score,
        sigmas=sigmas,
        n_steps_each=n_steps_each,
        step_size=langevin_step_size(ladder_ratio(ladder), 0.01, steps_per_sigma),
        times_sigma=True,
        consistent=consistent,
    )
    samples = drawer.sample(torch.arange(300), SHAPE)
    distance = torch.cdist(samples.denoised.flatten(1), mixture.centres)
    nearest = distance.min(dim=1)
    assert float(nearest.values.max()) < 0.02
    counts = torch.bincount(nearest.indices, minlength=3)
    # sigma_1 above the largest distance between centres: none of them is missed.
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4


@pytest.mark.parametrize("n_levels", [3, 12])
@pytest.mark.parametrize("consistent", [False, True])
def test_an_unconditional_network_is_sampled_along_any_ladder(n_levels, consistent):
    trained, other = geometric_sigmas(1, 0.1, 8), geometric_sigmas(2, 0.1, n_levels)
    index, shape = torch.arange(2), (1, 8, 8)
    options = {"sigmas": other, "step_size": 0.009, "times_sigma": True, "consistent": consistent}
    ours, theirs = (
        sampler(network(sigmas=sigmas).features, **options).sample(index, shape)
        for sigmas in (trained, other)
    )
    assert torch.equal(ours.denoised, theirs.denoised)


def test_interpolation_goes_from_one_seed_to_another_with_one_start():
    drawer, index = sampler(seed=1), torch.arange(4)
    quarter = math.pi / 2
    angles = torch.tensor([0.0, 0.0, quarter, quarter])
    mixed = drawer.sample(index, SHAPE, mix_seed=2, mix_angle=angles)
    own = drawer.sample(index, SHAPE)
    other = sampler(seed=2).sample(index, SHAPE, initial=drawer.initial(index, SHAPE))
    assert torch.equal(mixed.last[:2], own.last[:2])
    assert torch.equal(mixed.denoised[:2], own.denoised[:2])
    torch.testing.assert_close(mixed.last[2:], other.last[2:], rtol=0, atol=1e-4)
    torch.testing.assert_close(mixed.denoised[2:], other.denoised[2:], rtol=0, atol=1e-4)
    assert (own.last - other.last).abs().max() > 0.1


@pytest.mark.parametrize("consistent", [False, True])
def test_mixed_noise_has_the_variance_of_either(consistent):
    sigmas, n = geometric_sigmas(1, 0.1, 4), 2000
    index, angle = torch.arange(n), 0.6

    def no_score(x, noise_index):
        return torch.zeros_like(x)

    drawer = sampler(
        no_score,
        sigmas=sigmas,
        n_steps_each=1,
        step_size=0.008,
        consistent=consistent,
    )
    start = drawer.initial(index, SHAPE)
    own = (drawer.sample(index, SHAPE).last - start).double()
    mixed = drawer.sample(index, SHAPE, mix_seed=2, mix_angle=torch.full((n,), angle))
    mixed = (mixed.last - start).double()
    rate = 0.008 / float(sigmas[-1]) ** 2
    squares = sigmas.double().square()
    added = squares[1:] - (1 - rate) ** 2 * squares[:-1] if consistent else 2 * rate * squares
    variance = float(added.sum())
    five_sigma = 5 * math.sqrt(2 / mixed.numel())
    assert float(own.square().mean()) == pytest.approx(variance, rel=five_sigma)
    assert float(mixed.square().mean()) == pytest.approx(variance, rel=five_sigma)
    covariance = float((own * mixed).mean()) / variance
    assert covariance == pytest.approx(math.cos(angle), abs=five_sigma)


def test_the_angles_of_the_paper():
    angles = interpolation_angles(3)
    torch.testing.assert_close(angles, torch.tensor([1, 2, 3]) * math.pi / 8)
    with pytest.raises(ValueError, match="n = 0 must be at least 1"):
        interpolation_angles(0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mix_seed": 3}, "mix_seed and mix_angle are needed together"),
        ({"mix_angle": torch.zeros(2)}, "mix_seed and mix_angle are needed together"),
        ({"mix_seed": 0, "mix_angle": torch.zeros(2)}, "mix_seed = 0 is the sampler's own seed"),
        (
            {"mix_seed": 2**64, "mix_angle": torch.zeros(2)},
            r"seed = 18446744073709551616 .*2\*\*64",
        ),
        ({"mix_seed": 3, "mix_angle": torch.zeros(3)}, r"mix_angle has shape \(3,\).*\(2,\)"),
        ({"known": torch.zeros(2, *SHAPE)}, "known and mask are needed together"),
        ({"mask": torch.ones(2, *SHAPE, dtype=torch.bool)}, "known and mask are needed together"),
        (
            {"known": torch.zeros(1, *SHAPE), "mask": torch.ones(2, *SHAPE, dtype=torch.bool)},
            r"known is torch.float32 of shape \(1, 1, 4, 4\); floating point \(2, 1, 4, 4\)",
        ),
        (
            {
                "known": torch.zeros(2, *SHAPE, dtype=torch.uint8),
                "mask": torch.ones(2, *SHAPE, dtype=torch.bool),
            },
            "known is torch.uint8",
        ),
        (
            {"known": torch.zeros(2, *SHAPE), "mask": torch.ones(2, *SHAPE)},
            r"mask is torch.float32 of shape \(2, 1, 4, 4\); torch.bool",
        ),
        (
            {"known": torch.zeros(2, *SHAPE), "mask": torch.ones(4, 4, dtype=torch.bool)},
            r"mask is torch.bool of shape \(4, 4\); torch.bool",
        ),
        (
            {
                "known": torch.full((2, *SHAPE), 1.5),
                "mask": torch.ones(2, *SHAPE, dtype=torch.bool),
            },
            r"known pixels must lie in \[0, 1\]",
        ),
    ],
)
def test_mixing_and_inpainting_of_the_wrong_kind_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        sampler().sample(torch.arange(2), SHAPE, **given)


@pytest.mark.parametrize("consistent", [False, True])
def test_known_pixels_carry_the_noise_of_their_scale_until_the_end(consistent):
    sigmas, index = geometric_sigmas(1, 0.1, 4), torch.tensor([3, 17])
    drawer = sampler(
        sigmas=sigmas, step_size=0.009, n_steps_each=1 if consistent else 3, consistent=consistent
    )
    given = asked("inpainting", index, SHAPE)
    known, mask = given["known"], given["mask"].expand(2, *SHAPE)
    # What is not known is not looked at.
    given["known"] = torch.where(mask, known, math.nan)
    samples = drawer.sample(index, SHAPE, keep_levels=range(4), **given)
    assert mask.any() and not mask.all()
    assert torch.equal(samples.last[mask], known[mask])
    assert torch.equal(samples.denoised[mask], known[mask])
    assert samples.denoised.isfinite().all()
    for level in range(3):
        reached = level + 1 if consistent else level
        step = torch.tensor(reached)
        z = philox_normal(philox_key(0), index, step, SHAPE, Stream.INPAINTING)
        expected = known + sigmas[reached] * z
        torch.testing.assert_close(samples.levels[level][mask], expected[mask])
    plain = drawer.sample(index, SHAPE)
    assert not torch.equal(plain.denoised[~mask], samples.denoised[~mask])


def test_nothing_known_is_plain_sampling():
    drawer, index = sampler(), torch.arange(3)
    nothing = torch.zeros(3, *SHAPE, dtype=torch.bool)
    samples = drawer.sample(index, SHAPE, known=torch.zeros(3, *SHAPE), mask=nothing)
    assert torch.equal(samples.denoised, drawer.sample(index, SHAPE).denoised)


def test_inpainting_a_gaussian_draws_from_its_conditional():
    mean, variance, correlation, known = 0.5, 0.04, 0.8, 0.8
    covariance = variance * torch.tensor([[1.0, correlation], [correlation, 1.0]])
    sigmas, n = geometric_sigmas(1, 0.02, 8), 1000

    precisions = torch.linalg.inv(covariance + sigmas.square().reshape(-1, 1, 1) * torch.eye(2))

    def score(x, noise_index):
        return (mean - x) @ precisions[noise_index[0]]

    drawer = sampler(score, sigmas=sigmas, n_steps_each=80, step_size=0.5 * 0.02**2)
    samples = drawer.sample(
        torch.arange(n),
        (1, 1, 2),
        known=torch.full((n, 1, 1, 2), known),
        mask=torch.tensor([True, False]).expand(n, 1, 1, 2),
    )
    other = samples.denoised[..., 1].double()
    expected = mean + correlation * (known - mean)
    conditional = variance * (1 - correlation**2)
    # The noise of the smallest scales, and mixing that slows down at them, leave a few per cent.
    assert float(other.mean()) == pytest.approx(expected, abs=0.01)
    assert float(other.var()) == pytest.approx(conditional, rel=0.15)


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


def test_a_captured_step_serves_one_mode_and_takes_new_conditions(monkeypatch):
    captured = []

    def stand_in(step, device):
        for _ in range(3):  # the warm-up before a capture
            step()
        captured.append(step)
        return step

    monkeypatch.setattr(trajectory, "cuda_graph", stand_in)
    drawer, index = sampler(seed=1), torch.arange(3)
    monkeypatch.setattr(drawer, "_graphed", True)
    for part in (index, index + 3):
        for mode in ("annealed", "interpolation", "inpainting"):
            given = asked(mode, part, SHAPE)
            ours = drawer.sample(part, SHAPE, **given)
            theirs = sampler(seed=1).sample(part, SHAPE, **given)
            assert torch.equal(ours.last, theirs.last)
            assert torch.equal(ours.denoised, theirs.denoised)
    assert len(captured) == 3


class HostReads(TorchDispatchMode):
    """Counts the operations that make the host wait for a device's value."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        waiting = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "unique")
        self.count += any(name in str(function) for name in waiting)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("conditional", "mode"), [(False, "annealed"), *((True, mode) for mode in MODES)]
)
def test_the_loop_never_waits_for_the_device(conditional, mode):
    sigmas = geometric_sigmas(1, 0.1, 3)
    score = network(conditional=conditional, sigmas=sigmas)
    drawer = sampler(
        score,
        sigmas=sigmas,
        n_steps_each=1,
        step_size=0.01,
        consistent=mode == "consistent",
    )
    index, shape = torch.arange(3), (1, 8, 8)
    given = asked(mode, index, shape)
    with HostReads() as reads:
        drawer.sample(index, shape, **given)
    # Known pixels are looked at once, before the loop.
    assert reads.count == (mode == "inpainting")
    with HostReads() as reads:
        float(index[0])
    assert reads.count == 1


def compare_compiled(score, sigmas: torch.Tensor, shape, mode="annealed", **options) -> None:
    """Compiled and eager samples agree, and two graphs serve all noise scales and batches."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    batches = [torch.tensor([0, 1, 2]), torch.tensor([3, 4, 4])]  # a short last batch is filled up
    drawer = sampler(score, sigmas=sigmas, compile=True, **options)
    fast = [drawer.sample(index, shape, **asked(mode, index, shape)) for index in batches]
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 2  # a step and the denoising step
    assert not counters["graph_break"]
    eager = sampler(score, sigmas=sigmas, **options)
    for index, ours in zip(batches, fast, strict=True):
        theirs = eager.sample(index, shape, **asked(mode, index, shape))
        for a, b in ((ours.last, theirs.last), (ours.denoised, theirs.denoised)):
            assert float((a.clamp(0, 1) - b.clamp(0, 1)).abs().max()) < 1e-4


@pytest.mark.skipif(compile_unavailable_reason() is not None, reason="torch.compile does not work")
@pytest.mark.parametrize(
    "mode", ["annealed", *(pytest.param(mode, marks=pytest.mark.slow) for mode in MODES[1:])]
)
def test_a_compiled_sampler_gives_the_eager_ones_samples(mode):
    sigmas = geometric_sigmas(5, 0.05, 8)
    norm = InstanceNormPlus(2)
    convs = [torch.nn.Conv2d(1, 2, 3, padding=1), torch.nn.Conv2d(2, 1, 3, padding=1)]

    def net(x, noise_index):
        h = torch.nn.functional.elu(norm(convs[0](2 * x - 1), noise_index))
        return convs[1](h) / sigmas[noise_index].reshape(-1, 1, 1, 1)

    options = {"consistent": True, "n_steps_each": 1} if mode == "consistent" else {}
    compare_compiled(net, sigmas, (1, 8, 8), mode, **options)


@pytest.mark.slow
@pytest.mark.skipif(compile_unavailable_reason() is not None, reason="torch.compile does not work")
@pytest.mark.parametrize("blocks", ["few", "all, traced"])
def test_a_compiled_network_gives_the_eager_ones_samples(monkeypatch, request, blocks):
    sigmas = geometric_sigmas(1, 0.1, 4)
    if blocks == "few":
        monkeypatch.setitem(ARCHITECTURES, "few", FEW_BLOCKS)
        score = network(sigmas=sigmas, architecture="few").features
    else:
        request.getfixturevalue("traced")
        score = network(sigmas=sigmas).features
    compare_compiled(score, sigmas, (1, 8, 8), n_steps_each=2, times_sigma=True)


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


@needs_kernel
@pytest.mark.parametrize("mode", MODES[1:])
def test_kernels_and_plain_torch_agree_in_every_mode(mode, monkeypatch):
    sigmas = geometric_sigmas(1, 0.5, 2).to(DEVICE)
    options = {"sigmas": sigmas, "n_steps_each": 1, "step_size": 0.2, "times_sigma": True}
    index, shape = torch.tensor([3, 2**31], device=DEVICE), (1, 8, 8)
    given = asked(mode, index, shape)
    results = {}
    for impl in ("torch", "triton"):
        monkeypatch.setenv(IMPL_VARIABLE, impl)
        drawer = sampler(lambda x, _: 0.5 - x, consistent=mode == "consistent", **options)
        results[impl] = drawer.sample(index, shape, **given)
    assert not torch.equal(results["triton"].last, results["torch"].last)
    for ours, theirs in zip(
        *((result.last, result.denoised) for result in results.values()), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
