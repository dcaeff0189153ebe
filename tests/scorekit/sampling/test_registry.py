"""Every sampler by name: what holds for all of them, on the exact score of a mixture."""

import math

import pytest
import torch
from scipy import stats

from kernels.mixture_score import mixture_score
from kernels.philox import Stream, philox_key, philox_normal
from scorekit.models.score_network import ScoreNetwork
from scorekit.runtime.compilation import compile_unavailable_reason
from scorekit.sampling import registry, trajectory
from scorekit.sampling.langevin import AnnealedLangevin
from scorekit.sampling.registry import (
    SAMPLERS,
    affordable_steps_of,
    make_sampler,
    register_sampler,
    sampler_evaluations,
)
from scorekit.techniques.ladder import Ladder

SHAPE = (1, 4, 4)
CENTRES = torch.rand(3, 16, generator=torch.Generator().manual_seed(0))


def ladder(n_levels=12, n_steps_each=2, name="annealed", **options) -> Ladder:
    made = Ladder(
        sigma_begin=5, n_levels=n_levels, n_steps_each=n_steps_each, step_size=0.0, **options
    )
    return made.by_rule("consistent" if name == "consistent" else "Technique 4")


class Mixture:
    """The exact score of a mixture, told its sigma, which remembers what it is asked."""

    def __init__(self) -> None:
        self.asked = []

    def __call__(self, x, sigma):
        assert sigma.shape == (len(x),) and len(sigma.unique()) == 1
        self.asked.append((len(x), float(sigma[0])))
        return mixture_score(x.flatten(1), CENTRES, sigma).reshape(x.shape)


#: Every sampler, and those that an option makes another.
WAYS = {
    **{name: {} for name in SAMPLERS},
    "heun, churn": {"churn": 3.0},
    "annealed, snr": {},
    "annealed, rho": {},
}


def sampler(way: str, *, seed=0, n_levels=12, n_steps_each=2, score=None, **options):
    name = way.split(",")[0]
    rungs = ladder(n_levels, n_steps_each, name, schedule="rho" if "rho" in way else "geometric")
    if way == "annealed, snr":
        rungs = rungs.by_rule("snr")
    if not {"times_sigma", "takes_sigma"} & set(options):
        options["takes_sigma"] = True
    score = Mixture() if score is None else score
    return make_sampler(name, score, rungs, seed=seed, **WAYS[way], **options)


@pytest.mark.parametrize("way", WAYS)
def test_samples_are_functions_of_seed_and_index_alone(way):
    index = torch.arange(12)
    whole = sampler(way).sample(index, SHAPE)
    for part in (index[5:6], index[[8, 2, 11]]):
        ours = sampler(way).sample(part, SHAPE)
        torch.testing.assert_close(ours.last, whole.last[part], rtol=0, atol=2e-5)
        torch.testing.assert_close(ours.denoised, whole.denoised[part], rtol=0, atol=2e-5)
    drawer = sampler(way)
    for _ in range(2):  # and not of what was drawn before
        assert torch.equal(drawer.sample(index, SHAPE).denoised, whole.denoised)
    other = sampler(way, seed=1).sample(index, SHAPE)
    assert (other.last - whole.last).abs().amax(dim=(1, 2, 3)).min() > 1e-3


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("n_levels", "n_steps_each"), [(2, 1), (9, 3)])
def test_score_evaluations_are_counted(way, n_levels, n_steps_each):
    score, finished = Mixture(), []
    drawer = sampler(way, score=score, n_levels=n_levels, n_steps_each=n_steps_each)
    samples = drawer.sample(
        torch.arange(3), SHAPE, keep_levels=range(n_levels), progress=finished.append
    )
    assert drawer.score_evaluations == len(score.asked)
    name = way.split(",")[0]
    assert sampler_evaluations(name, n_levels, n_steps_each) == len(score.asked)
    # Each scale is finished once, in order, and the last evaluation is the denoising one.
    assert finished == list(range(n_levels)) == list(samples.levels)
    assert torch.equal(samples.levels[n_levels - 1], samples.last)
    assert score.asked[-1] == (3, pytest.approx(0.01))
    expected = samples.last + 0.01**2 * Mixture()(samples.last, torch.full((3,), 0.01))
    if name != "consistent":  # whose last step is of the same evaluation
        torch.testing.assert_close(samples.denoised, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_a_mixture_is_sampled_at_its_centres_as_often_as_they_are(way):
    drawer = sampler(
        way, n_levels=60, n_steps_each=2, start="gaussian", start_mean=CENTRES.mean(0).view(SHAPE)
    )
    samples = drawer.sample(torch.arange(300), SHAPE)
    nearest = torch.cdist(samples.denoised.flatten(1), CENTRES).min(dim=1)
    assert float(nearest.values.max()) < 0.02
    counts = torch.bincount(nearest.indices, minlength=3)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4


@pytest.mark.parametrize("way", WAYS)
def test_a_score_times_sigma_gives_the_same_samples(way):
    def multiplied(x, sigma):
        return sigma.reshape(-1, 1, 1, 1) * mixture_score(x.flatten(1), CENTRES, sigma).reshape(
            x.shape
        )

    index = torch.arange(4)
    plain = sampler(way).sample(index, SHAPE)
    folded = sampler(way, score=multiplied, takes_sigma=True, times_sigma=True)
    folded = folded.sample(index, SHAPE)
    torch.testing.assert_close(folded.last, plain.last, rtol=0, atol=1e-4)
    torch.testing.assert_close(folded.denoised, plain.denoised, rtol=0, atol=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_an_index_names_the_scale_that_is_told_otherwise(way):
    told, scales = Mixture(), []
    drawer = sampler(way, score=told, n_steps_each=1)

    def by_index(x, noise_index):
        assert noise_index.dtype == torch.int64
        scales.append(float(drawer._sigmas[noise_index[0]]))
        return torch.zeros_like(x) + 1e-3

    drawer.sample(torch.arange(2), SHAPE)
    again = sampler(way, score=by_index, n_steps_each=1, times_sigma=True)
    again.sample(torch.arange(2), SHAPE)
    assert scales == [sigma for _, sigma in told.asked]


@pytest.mark.parametrize("way", WAYS)
def test_known_pixels_carry_the_noise_of_the_scale_reached(way):
    index = torch.tensor([3, 17])
    generator = torch.Generator().manual_seed(1)
    known, mask = (torch.rand(2, *SHAPE, generator=generator) for _ in range(2))
    mask = mask > 0.5
    drawer = sampler(way)
    samples = drawer.sample(index, SHAPE, keep_levels=range(12), known=known, mask=mask)
    assert torch.equal(samples.last[mask], known[mask])
    assert torch.equal(samples.denoised[mask], known[mask])
    sigmas = ladder(schedule="rho" if "rho" in way else "geometric").sigmas
    stays = way.startswith("annealed")  # at a scale, where others lead to the next
    for level in range(11):
        error = (samples.levels[level] - known)[mask]
        sigma = float(sigmas[level if stays else level + 1])
        # Of all draws, keyed by place in the ladder, one is it.
        steps = range(2 * 22 + 1)
        draws = torch.stack(
            [
                philox_normal(philox_key(0), index, torch.tensor(k), SHAPE, Stream.INPAINTING)[mask]
                for k in steps
            ]
        )
        assert (draws * sigma - error).abs().amax(dim=1).min() < 1e-5 * max(1, sigma)
    plain = drawer.sample(index, SHAPE, keep_levels=[3])
    assert not torch.equal(plain.levels[3][~mask], samples.levels[3][~mask])


@pytest.mark.parametrize("way", [way for way in WAYS if way != "heun"])
def test_interpolation_goes_from_one_seed_to_another_with_one_start(way):
    drawer, index = sampler(way, seed=1), torch.arange(4)
    angles = torch.tensor([0.0, 0.0, math.pi / 2, math.pi / 2])
    mixed = drawer.sample(index, SHAPE, mix_seed=2, mix_angle=angles)
    own = drawer.sample(index, SHAPE)
    other = sampler(way, seed=2).sample(index, SHAPE, initial=drawer.initial(index, SHAPE))
    torch.testing.assert_close(mixed.last[:2], own.last[:2], rtol=0, atol=1e-5)
    torch.testing.assert_close(mixed.last[2:], other.last[2:], rtol=0, atol=1e-4)
    assert (own.last - other.last).abs().max() > 1e-3


def test_the_flow_has_no_noise_to_mix():
    with pytest.raises(ValueError, match=r"mix_seed = 2: Heun's method without churn has no noise"):
        sampler("heun").sample(torch.arange(2), SHAPE, mix_seed=2, mix_angle=torch.zeros(2))


@pytest.mark.parametrize("way", ["annealed", "heun, churn"])
def test_a_gaussian_start_has_the_largest_scale_around_its_mean(way):
    mean = torch.linspace(0, 1, 16).view(SHAPE)
    drawer = sampler(way, start="gaussian", start_mean=mean)
    x = drawer.initial(torch.arange(2000), SHAPE)
    z = (x - mean).double() / 5
    assert stats.kstest(z.flatten().numpy(), "norm").pvalue > 1e-3
    assert (z.mean(0).abs() < 5 / 2000**0.5).all()
    assert torch.equal(drawer.initial(torch.tensor([50, 3]), SHAPE), x[[50, 3]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": "normal"}, "start = 'normal': one of uniform, gaussian"),
        (
            {"start": "gaussian", "start_mean": torch.zeros(3, 4, 4)},
            r"start_mean has shape \(3, 4, 4\); a number or \(1, 4, 4\)",
        ),
    ],
)
def test_a_start_that_is_none_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sampler("annealed", **options).sample(torch.arange(2), SHAPE)


@pytest.mark.skipif(compile_unavailable_reason() is not None, reason="torch.compile does not work")
@pytest.mark.parametrize(
    "way",
    [
        pytest.param(way, marks=() if way == "predictor_corrector" else pytest.mark.slow)
        for way in WAYS
    ],
)
def test_a_compiled_sampler_is_one_graph_and_gives_the_eager_ones_samples(way):
    convs = [torch.nn.Conv2d(1, 2, 3, padding=1), torch.nn.Conv2d(2, 1, 3, padding=1)]

    def net(x, sigma):
        return convs[1](torch.nn.functional.elu(convs[0](2 * x - 1))) - x

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    options = {"score": net, "n_levels": 6, "takes_sigma": True, "times_sigma": True}
    batches = [torch.tensor([0, 1, 2]), torch.tensor([3, 4, 4])]
    drawer = sampler(way, compile=True, **options)
    fast = [drawer.sample(index, (1, 8, 8)) for index in batches]
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 2  # a step and the denoising step
    assert not counters["graph_break"]
    for index, ours in zip(batches, fast, strict=True):
        theirs = sampler(way, **options).sample(index, (1, 8, 8))
        for a, b in ((ours.last, theirs.last), (ours.denoised, theirs.denoised)):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_a_captured_step_takes_new_batches(way, monkeypatch):
    def stand_in(step, device):
        for _ in range(3):  # the warm-up before a capture
            step()
        return step

    monkeypatch.setattr(trajectory, "cuda_graph", stand_in)
    drawer = sampler(way, n_levels=5)
    monkeypatch.setattr(drawer, "_graphed", True)
    for index in (torch.arange(3), torch.arange(3) + 3):
        ours, theirs = drawer.sample(index, SHAPE), sampler(way, n_levels=5).sample(index, SHAPE)
        assert torch.equal(ours.last, theirs.last)
        assert torch.equal(ours.denoised, theirs.denoised)


@pytest.mark.parametrize("way", ["reverse_diffusion", "ancestral", "heun", "predictor_corrector"])
def test_networks_of_l_scales_are_sampled_on_their_own_ladder(way):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ScoreNetwork(
            "32-64", ladder(6).sigmas, conditional=True, channels=1, width=4
        ).eval()
    drawer = make_sampler(way, network, ladder(6, 1))
    assert drawer.sample(torch.arange(2), (1, 8, 8)).denoised.isfinite().all()
    if way != "predictor_corrector":
        with pytest.raises(ValueError, match=r"n_steps_each = 2 refines the ladder .*takes_sigma"):
            make_sampler(way, network, ladder(6, 2))


def test_options_without_effect_and_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"sampler = 'ddim' is unknown; known: annealed, .*heun"):
        make_sampler("ddim", Mixture(), ladder())
    with pytest.raises(ValueError, match=r"churn = 3 has no effect with sampler = 'ancestral'"):
        make_sampler("ancestral", Mixture(), ladder(), churn=3.0)
    with pytest.raises(ValueError, match=r"snr = 0.2 has no effect .* predictor_corrector alone"):
        make_sampler("heun", Mixture(), ladder(), snr=0.2)


def test_a_sampler_of_ones_own_is_made_by_its_name(monkeypatch):
    monkeypatch.setattr(registry, "SAMPLERS", dict(SAMPLERS))

    class Twice(AnnealedLangevin):
        """Each step twice as long."""

        @classmethod
        def along(cls, score, ladder, *, device, **options):
            epsilon = 2 * ladder.step_size
            return cls(
                score, ladder.sigmas.to(device), step_size=epsilon, n_steps_each=1, **options
            )

    register_sampler("twice", Twice.along, evaluations=lambda levels, each: levels + 1)
    drawer = make_sampler("twice", Mixture(), ladder(), takes_sigma=True)
    assert drawer.score_evaluations == sampler_evaluations("twice", 12, 2) == 13
    assert drawer.sample(torch.arange(2), SHAPE).last.isfinite().all()
    with pytest.raises(ValueError, match="sampler = 'twice' is registered already"):
        register_sampler("twice", Twice.along)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("budget", [1160, 500, 469])
def test_a_budget_gives_the_largest_t_that_keeps_to_it(name, budget):
    if name == "heun" and budget < 2 * 231 + 1:
        budget = 463
    n_steps_each = affordable_steps_of(name, budget, 232)
    assert sampler_evaluations(name, 232, n_steps_each) <= budget
    assert sampler_evaluations(name, 232, n_steps_each + 1) > budget


def test_a_budget_below_one_step_is_refused():
    with pytest.raises(ValueError, match=r"score_evaluations = 100 is less than the 463 .*'heun'"):
        affordable_steps_of("heun", 100, 232)
