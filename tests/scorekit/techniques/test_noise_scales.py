"""Techniques 1, 2 and 4: the paper's numbers, and what they are meant to achieve."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from places import SHARED
from scipy.spatial.distance import pdist

from scorekit.sampling.consistent import check_consistent_step_size
from scorekit.techniques.noise_scales import (
    MAX_COVERAGE,
    coverage,
    geometric_sigmas,
    initial_noise_scale,
    ladder_ratio,
    n_noise_scales,
    noise_scale_ratio,
)
from scorekit.techniques.step_size import (
    affordable_steps,
    check_step_size,
    consistent_step_size,
    langevin_step_size,
    langevin_variance_ratio,
    steady_state_step_size,
    steady_variance_ratio,
)
from scorekit.techniques.table_4 import published

# data set, D, sigma_1, gamma and L of Technique 2 at C = 0.5, L of Table 4, T, epsilon of Eq. (4)
LADDERS = [
    ("cifar10", 3 * 32**2, 50, 1.03980, 219, 232, 5, 6.18e-6),
    ("celeba", 3 * 64**2, 90, 1.01951, 472, 500, 5, 3.34e-6),
    ("church_outdoor", 3 * 96**2, 140, 1.01292, 745, 788, 4, 2.31e-6),
    ("bedroom", 3 * 128**2, 190, 1.00966, 1026, 1086, 3, 1.77e-6),
    ("ffhq", 3 * 256**2, 348, 1.004807, 2182, 2311, 3, 8.93e-7),
]


def random_images(n: int, seed: int = 0, shape: tuple[int, ...] = (3, 4, 4)) -> np.ndarray:
    rng = np.random.Generator(np.random.Philox(seed))
    return rng.integers(0, 256, (n, *shape), dtype=np.uint8)


# Technique 1


def test_noise_scale_is_the_largest_distance_in_units_of_unit_pixels():
    images = random_images(70)
    expected = pdist(images.reshape(70, -1).astype(np.float64)).max() / 255
    assert initial_noise_scale(images) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_uint8_and_floating_point_images_give_the_same(dtype):
    images = random_images(40)
    floating = images.astype(dtype) / dtype(255)
    expected = initial_noise_scale(images)
    for given_images in (floating, torch.from_numpy(floating), torch.from_numpy(images)):
        assert initial_noise_scale(given_images) == pytest.approx(expected, rel=1e-6)


def test_a_read_only_memory_map_is_accepted_and_untouched(tmp_path):
    images = random_images(20)
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    assert initial_noise_scale(mapped) == initial_noise_scale(images)
    assert initial_noise_scale(mapped, subset_above=10, subset_size=5) > 0
    assert np.array_equal(np.load(tmp_path / "images.npy"), images)


def test_a_subset_is_measured_only_above_the_threshold():
    images = random_images(300)
    whole = initial_noise_scale(images)
    assert initial_noise_scale(images, subset_above=300, subset_size=20) == whole
    part = initial_noise_scale(images, subset_above=299, subset_size=20)
    assert part < whole
    assert initial_noise_scale(images, subset_above=299, subset_size=300) == whole


def test_the_subset_is_a_function_of_its_seed():
    images = random_images(400)
    measured = [
        initial_noise_scale(images, subset_above=100, subset_size=20, seed=seed)
        for seed in (0, 0, 1, 2, 3)
    ]
    assert measured[0] == measured[1]
    assert len(set(measured[1:])) > 1
    as_tensor = initial_noise_scale(
        torch.from_numpy(images), subset_above=100, subset_size=20, seed=0
    )
    assert as_tensor == measured[0]


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_images_are_refused(n):
    with pytest.raises(ValueError, match=f"at least 2 images, got {n}"):
        initial_noise_scale(random_images(2)[:n])


def test_equal_images_are_refused():
    with pytest.raises(ValueError, match="all images are equal"):
        initial_noise_scale(np.full((5, 1, 2, 2), 7, dtype=np.uint8))


@pytest.mark.slow
def test_technique_1_on_every_training_image_of_cifar10_jpeg(tmp_path):
    from scorekit.data.registry import prepare

    archive = SHARED / "data" / "cifar10-jpeg.tar.xz"
    if not archive.exists():
        pytest.skip("the JPEG copy of CIFAR-10 is not beside the project")
    dataset = prepare(f"imagefolder:{archive}", tmp_path, image_size=32)
    assert dataset.train.shape == (50_000, 3, 32, 32)
    assert initial_noise_scale(dataset.train) == pytest.approx(53.17, abs=0.01)


# Technique 2


@pytest.mark.parametrize(("name", "dim", "sigma_1", "gamma", "n_levels"), [r[:5] for r in LADDERS])
def test_half_coverage_gives_these_ladders(name, dim, sigma_1, gamma, n_levels):
    ratio = noise_scale_ratio(dim)
    assert ratio == pytest.approx(gamma, abs=6e-6)
    assert n_noise_scales(sigma_1, 0.01, ratio) == n_levels


@pytest.mark.parametrize(("name", "dim", "sigma_1", "n_levels"), [(*r[:3], r[5]) for r in LADDERS])
def test_one_coverage_gives_every_ladder_of_table_4(name, dim, sigma_1, n_levels):
    assert n_noise_scales(sigma_1, 0.01, noise_scale_ratio(dim, 0.5668)) == n_levels
    assert published("NCSNv2", name).ladder.n_levels == n_levels
    assert published("NCSNv2", name).ladder.sigma_begin == sigma_1


@given(st.integers(5, 10**7), st.floats(0.01, 0.99))
@settings(max_examples=100, deadline=None)
def test_the_ratio_is_a_root_of_the_coverage(dim, target):
    gamma = noise_scale_ratio(dim, target)
    assert gamma > 1
    assert coverage(gamma, dim) == pytest.approx(target, abs=1e-8)


@given(st.integers(10, 10**6), st.floats(0.05, 0.95), st.floats(0.05, 0.95))
@settings(deadline=None)
def test_more_coverage_needs_more_noise_scales(dim, first, second):
    assume(abs(first - second) > 1e-6)
    few, many = sorted((first, second))
    assert noise_scale_ratio(dim, many) < noise_scale_ratio(dim, few)
    levels = [n_noise_scales(50, 0.01, noise_scale_ratio(dim, c)) for c in (few, many)]
    assert levels[0] <= levels[1]


def test_coverage_is_the_mass_of_one_radius_in_the_others_three_sigma_interval():
    dim, gamma, sigma = 192, 1.1, 0.7
    draws = np.random.Generator(np.random.Philox(0)).normal(
        math.sqrt(dim) * sigma, sigma / math.sqrt(2), 400_000
    )
    centre, spread = math.sqrt(dim) * gamma * sigma, gamma * sigma / math.sqrt(2)
    inside = np.abs(draws - centre) < 3 * spread
    assert coverage(gamma, dim) == pytest.approx(inside.mean(), abs=4 * 0.5 / 400_000**0.5)
    assert coverage(1.0, dim) == pytest.approx(MAX_COVERAGE)


def test_coverage_stays_exact_far_in_the_tail():
    # 1 - Phi(20), where the two CDFs of the formula both round to 1.
    dim = 10_000
    gamma = (math.sqrt(2 * dim) + 20) / (math.sqrt(2 * dim) - 3)
    assert coverage(gamma, dim) == pytest.approx(2.7536241186e-89, rel=1e-6)


@pytest.mark.parametrize("target", [0, -0.1, 0.9974, 1, math.nan])
def test_a_coverage_out_of_range_is_refused(target):
    with pytest.raises(ValueError, match=r"coverage = .* must lie in \(0, 0.9973\)"):
        noise_scale_ratio(3072, target)


def test_a_dimension_out_of_range_is_refused():
    with pytest.raises(ValueError, match="dim = 0 must be at least 1"):
        noise_scale_ratio(0)
    for dim in (1, 4):
        with pytest.raises(ValueError, match=f"not reached at dim = {dim}"):
            noise_scale_ratio(dim)


@pytest.mark.parametrize("gamma", [1.0, 0.5, -1.0, math.nan])
def test_a_ratio_out_of_range_is_refused(gamma):
    with pytest.raises(ValueError, match=r"gamma = .* must be greater than 1"):
        n_noise_scales(50, 0.01, gamma)
    with pytest.raises(ValueError, match=r"gamma = .* must be greater than 1"):
        langevin_step_size(gamma, 0.01, 5)


# The ladder


@given(st.floats(0.02, 1e3), st.integers(2, 3000))
@settings(deadline=None)
def test_the_ladder_is_geometric_and_descends_between_its_ends(sigma_begin, n_levels):
    assume(n_levels * 1e-5 < math.log(sigma_begin / 0.01))
    sigmas = geometric_sigmas(sigma_begin, 0.01, n_levels)
    assert sigmas.dtype == torch.float32
    assert sigmas.shape == (n_levels,)
    assert float(sigmas[0]) == pytest.approx(sigma_begin, rel=1e-7)
    assert float(sigmas[-1]) == pytest.approx(0.01, rel=1e-7)
    ratios = sigmas[:-1].double() / sigmas[1:].double()
    assert (ratios > 1).all()
    assert float(ratios.max() / ratios.min()) == pytest.approx(1, abs=5e-7)
    assert ladder_ratio(sigmas) == pytest.approx(float(ratios.log().mean().exp()), rel=1e-6)


def test_a_ladder_is_its_callers_to_change():
    sigmas = geometric_sigmas(50, 0.01, 10)
    expected = sigmas.clone()
    sigmas.zero_()
    assert torch.equal(geometric_sigmas(50, 0.01, 10), expected)


@pytest.mark.parametrize(
    ("begin", "end"), [(0.01, 0.01), (0.01, 1), (1, 0), (1, -1), (math.inf, 1), (math.nan, 1)]
)
def test_noise_scales_out_of_order_are_refused(begin, end):
    with pytest.raises(ValueError, match=r"1e-12 <= sigma_end < sigma_begin <= 1e\+12"):
        geometric_sigmas(begin, end, 10)
    with pytest.raises(ValueError, match=r"1e-12 <= sigma_end < sigma_begin <= 1e\+12"):
        n_noise_scales(begin, end, 1.1)


@pytest.mark.parametrize("n_levels", [1, 0, -3])
def test_a_ladder_of_fewer_than_two_scales_is_refused(n_levels):
    with pytest.raises(ValueError, match=f"n_levels = {n_levels} must be at least 2"):
        geometric_sigmas(1, 0.01, n_levels)


def test_a_coarse_ratio_still_gives_both_ends():
    assert n_noise_scales(1.0, 0.5, 1e6) == 2


# Technique 4


@pytest.mark.parametrize(
    ("name", "sigma_1", "n_levels", "n_steps", "epsilon"),
    [(r[0], r[2], r[5], r[6], r[7]) for r in LADDERS],
)
def test_step_sizes_of_table_4s_ladders(name, sigma_1, n_levels, n_steps, epsilon):
    gamma = ladder_ratio(geometric_sigmas(sigma_1, 0.01, n_levels))
    assert langevin_step_size(gamma, 0.01, n_steps) == pytest.approx(epsilon, rel=0.01)


@pytest.mark.parametrize("name", ["cifar10", "celeba", "bedroom", "ffhq"])
def test_step_sizes_agree_with_the_print_of_table_4(name):
    ladder = published("NCSNv2", name).ladder
    ours = ladder.by_rule("Technique 4").step_size
    digits = 1 if name == "ffhq" else 2
    assert float(f"{ours:.{digits - 1}e}") == pytest.approx(ladder.step_size)


def test_step_size_of_church_outdoor_is_not_the_printed_one():
    ladder = published("NCSNv2", "church_outdoor").ladder
    epsilons = (ladder.by_rule("Technique 4").step_size, ladder.step_size)
    at = [langevin_variance_ratio(e, ladder.gamma, 0.01, ladder.n_steps_each) for e in epsilons]
    assert at == pytest.approx([1.0224, 1.0247], abs=6e-5)


def test_variance_ratio_of_ncsns_own_settings():
    gamma = ladder_ratio(geometric_sigmas(1, 0.01, 10))
    assert langevin_variance_ratio(2e-5, gamma, 0.01, 100) == pytest.approx(1.111, abs=5e-4)


@given(
    rate=st.floats(1e-6, 1.99),
    gamma=st.floats(1.0001, 5),
    sigma_i=st.floats(0.01, 100),
    n_steps=st.integers(1, 200),
)
@settings(deadline=None)
def test_variance_ratio_equals_the_recursion_of_the_variance(rate, gamma, sigma_i, n_steps):
    """Var[x_t] = (1 - alpha / sigma_i^2)^2 Var[x_(t-1)] + 2 alpha (Prop. 3's proof)."""
    sigma_end = 0.01
    epsilon = rate * sigma_end**2
    alpha = epsilon * sigma_i**2 / sigma_end**2
    variance = (gamma * sigma_i) ** 2
    for _ in range(n_steps):
        variance = (1 - alpha / sigma_i**2) ** 2 * variance + 2 * alpha
    ratio = langevin_variance_ratio(epsilon, gamma, sigma_end, n_steps)
    assert isinstance(ratio, float)
    assert ratio == pytest.approx(variance / sigma_i**2, rel=1e-9)
    as_array = langevin_variance_ratio(np.array([epsilon] * 2), gamma, sigma_end, n_steps)
    assert np.allclose(as_array, ratio, rtol=1e-12)


@pytest.mark.parametrize(
    ("epsilon", "gamma", "n_steps"), [(6.2e-6, 1.0376, 5), (2e-5, 1.668, 100), (1.5e-4, 1.2, 2)]
)
def test_variance_ratio_equals_simulated_langevin_dynamics(epsilon, gamma, n_steps):
    """On one Gaussian, whose score at noise scale sigma_i is -x / sigma_i^2."""
    rng = np.random.Generator(np.random.Philox(3))
    sigma_i, n = 2.5, 400_000
    alpha = epsilon * sigma_i**2 / 0.01**2
    x = rng.normal(0, gamma * sigma_i, n)
    for _ in range(n_steps):
        x += -alpha * x / sigma_i**2 + math.sqrt(2 * alpha) * rng.normal(size=n)
    expected = langevin_variance_ratio(epsilon, gamma, 0.01, n_steps)
    assert np.mean(x**2) / sigma_i**2 == pytest.approx(expected, rel=4 * math.sqrt(2 / n))


@given(gamma=st.floats(1.001, 3), sigma_end=st.floats(1e-3, 1), n_steps=st.integers(1, 200))
@settings(max_examples=100, deadline=None)
def test_step_size_is_a_minimiser(gamma, sigma_end, n_steps):
    def objective(epsilon):
        return np.abs(langevin_variance_ratio(epsilon, gamma, sigma_end, n_steps) - 1)

    best = langevin_step_size(gamma, sigma_end, n_steps)
    assert 0 < best < 2 * sigma_end**2
    grid = np.exp(np.linspace(math.log(2e-6), math.log(2), 4001)[:-1]) * sigma_end**2
    # Within its tolerance of 1e-3 in epsilon, nothing is better.
    rounding = 1e-12
    tolerated = objective(best * np.array([1 - 1e-3, 1 + 1e-3])) - objective(best)
    assert objective(best) <= objective(grid).min() + np.abs(tolerated).max() + rounding
    neighbours = objective(best * np.array([1 - 4e-3, 1 + 4e-3]))
    assert (objective(best) <= neighbours + rounding).all()
    finer = langevin_step_size(gamma, sigma_end, n_steps, rtol=1e-6)
    assert best == pytest.approx(finer, rel=2e-3)


def test_step_size_scales_with_the_square_of_the_smallest_noise():
    small, large = (langevin_step_size(1.04, sigma, 5) for sigma in (0.01, 0.1))
    assert large == pytest.approx(100 * small, rel=2e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.04, 0.0, 5), "sigma_end = 0.0 must be greater than 0"),
        ((1.04, -1.0, 5), "sigma_end = -1.0 must be greater than 0"),
        ((1.04, math.nan, 5), "sigma_end = nan must be greater than 0"),
        ((1.04, 0.01, 0), "n_steps_each = 0 must be at least 1"),
    ],
)
def test_step_size_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        langevin_step_size(*arguments)


@pytest.mark.parametrize("epsilon", [0, -1e-6, 2e-4, 1, math.nan])
def test_a_step_size_that_diverges_is_refused(epsilon):
    with pytest.raises(ValueError, match=r"step_size = .* diverge"):
        check_step_size(epsilon, 0.01)
    check_step_size(1.99e-4, 0.01)


# Step sizes of whole ladders

GAMMA = (50 / 0.01) ** (1 / 231)  # of CIFAR-10's ladder


@pytest.mark.parametrize(
    ("n_steps", "technique_4", "v_there", "steady", "v_least", "eq_4"),
    [
        (1, 7.11e-6, 2.000, 2.67e-5, 1.267, 1.112),
        (3, 6.62e-6, 1.218, 1.51e-5, 1.134, 1.080),
        (5, 6.18e-6, 1.129, 1.15e-5, 1.096, 1.066),
    ],
)
def test_step_sizes_of_a_whole_ladder(n_steps, technique_4, v_there, steady, v_least, eq_4):
    one_level = langevin_step_size(GAMMA, 0.01, n_steps)
    assert one_level == pytest.approx(technique_4, rel=2e-3)
    assert steady_variance_ratio(one_level, GAMMA, 0.01, n_steps) == pytest.approx(
        v_there, abs=1e-3
    )
    best = steady_state_step_size(GAMMA, 0.01, n_steps)
    assert best == pytest.approx(steady, rel=2e-3)
    assert steady_variance_ratio(best, GAMMA, 0.01, n_steps) == pytest.approx(v_least, abs=1e-3)
    assert langevin_variance_ratio(best, GAMMA, 0.01, n_steps) == pytest.approx(eq_4, abs=1e-3)


@pytest.mark.parametrize("gamma", [1.001, 1.04, 1.4, 3.0])
def test_one_step_of_technique_4_doubles_the_variance_on_any_ladder(gamma):
    exact = (1 - 1 / gamma**2) * 0.01**2  # (1 - r) gamma^2 = 1: its minimiser at T = 1
    assert langevin_step_size(gamma, 0.01, 1) == pytest.approx(exact, rel=2e-3)
    assert steady_variance_ratio(exact, gamma, 0.01, 1) == pytest.approx(2, rel=1e-9)


@pytest.mark.parametrize(
    ("epsilon", "gamma", "n_steps"), [(2e-5, 1.1, 1), (1e-5, 1.04, 2), (4e-5, 1.5, 3)]
)
def test_the_steady_variance_is_that_of_simulated_annealing(epsilon, gamma, n_steps):
    rng = np.random.Generator(np.random.Philox(5))
    n = 40_000
    sigmas = 0.01 * gamma ** np.arange(80, -1, -1)
    x = rng.normal(0, sigmas[0], n)
    for sigma in sigmas:
        alpha = epsilon * sigma**2 / 0.01**2
        for _ in range(n_steps):
            x += -alpha * x / sigma**2 + math.sqrt(2 * alpha) * rng.normal(size=n)
    expected = steady_variance_ratio(epsilon, gamma, 0.01, n_steps)
    assert np.mean(x**2) / 0.01**2 == pytest.approx(expected, rel=4 * math.sqrt(2 / n))


def test_too_small_steps_have_no_steady_variance():
    limit = (1 - 1 / 1.04) * 0.01**2
    assert steady_variance_ratio(0.999 * limit, 1.04, 0.01, 1) == math.inf
    assert steady_variance_ratio(1.001 * limit, 1.04, 0.01, 1) < math.inf


@given(gamma=st.floats(1.0005, 6), sigma_end=st.floats(1e-3, 1), n_steps=st.integers(1, 100))
@settings(max_examples=100, deadline=None)
def test_the_steady_state_rule_is_a_minimiser(gamma, sigma_end, n_steps):
    best = steady_state_step_size(gamma, sigma_end, n_steps)
    assert 0 < best <= sigma_end**2
    least = steady_variance_ratio(best, gamma, sigma_end, n_steps)
    for rate in np.geomspace(1e-6, 1.999, 300):
        assert least <= steady_variance_ratio(rate * sigma_end**2, gamma, sigma_end, n_steps) + 1e-7


@pytest.mark.parametrize(
    ("n_steps", "shrinkage"),
    [(1, 3.62e-6), (5, 7.35e-7), (15, 2.455e-7)],
)
def test_the_consistent_rule_is_1_4_times_what_denoises_one_scale(n_steps, shrinkage):
    assert (1 - GAMMA ** (-1 / n_steps)) * 1e-4 == pytest.approx(shrinkage, rel=1e-3)
    expected = 1.4 * (1 - GAMMA ** (-1 / n_steps)) * 1e-4
    assert consistent_step_size(GAMMA, 0.01, n_steps) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("n_levels", [2, 3, 10, 200])
@pytest.mark.parametrize("n_steps", [1, 4])
def test_the_consistent_rule_suits_its_sampler_on_any_ladder(n_levels, n_steps):
    sigmas = geometric_sigmas(50, 0.01, n_levels)
    epsilon = consistent_step_size(ladder_ratio(sigmas), 0.01, n_steps)
    check_consistent_step_size(epsilon, sigmas, n_steps)
    assert epsilon <= 1e-4


@pytest.mark.parametrize("rule", [steady_state_step_size, consistent_step_size])
def test_the_rules_refuse_what_is_no_ladder(rule):
    for arguments, message in (
        ((1.0, 0.01, 1), "gamma = 1.0 must be greater than 1"),
        ((1.1, 0.0, 1), "sigma_end = 0.0"),
        ((1.1, 0.01, 0), "n_steps_each = 0"),
    ):
        with pytest.raises(ValueError, match=message):
            rule(*arguments)


def test_t_is_what_a_budget_of_evaluations_allows():
    assert [affordable_steps(1160, n) for n in (219, 232, 233, 1160, 5000)] == [5, 5, 4, 1, 1]
    for bad in ((0, 10), (10, 0)):
        with pytest.raises(ValueError, match="must be at least 1"):
            affordable_steps(*bad)
