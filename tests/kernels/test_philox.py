"""Counter-based noise: the published generator, its distributions, and what a sample depends on."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_device import DEVICE, needs_kernel
from scipy import stats

from kernels.dispatch import jit, tl
from kernels.philox import (
    Stream,
    philox_4x32,
    philox_4x32_block,
    philox_integers,
    philox_key,
    philox_normal,
    philox_triton,
    philox_uniform,
    word_to_uniform,
    words_to_normals,
    words_to_normals_block,
)

WORD = st.integers(0, 2**32 - 1)
STEP = torch.tensor(3)


def philox_by_the_book(counter: list[int], key: list[int]) -> list[int]:
    """Philox-4x32-10 in unbounded integers."""
    c, k, mask = list(counter), list(key), 2**32 - 1
    for _ in range(10):
        p, q = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(q >> 32) ^ c[1] ^ k[0], q & mask, (p >> 32) ^ c[3] ^ k[1], p & mask]
        k = [(k[0] + 0x9E3779B9) & mask, (k[1] + 0xBB67AE85) & mask]
    return c


def words(counter: list[int], key: list[int]) -> list[int]:
    entries = tuple(torch.tensor([c]) for c in counter)
    return [int(w) for w in philox_4x32(entries, torch.tensor(key))]


@jit
def _words_kernel(out_ptr, in_ptr, n, BLOCK: tl.constexpr):
    """in_ptr holds (6, n) words, four of counters and two of keys; out_ptr (4, n)."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < n
    c0 = tl.load(in_ptr + at, mask=mask).to(tl.uint32)
    c1 = tl.load(in_ptr + n + at, mask=mask).to(tl.uint32)
    c2 = tl.load(in_ptr + 2 * n + at, mask=mask).to(tl.uint32)
    c3 = tl.load(in_ptr + 3 * n + at, mask=mask).to(tl.uint32)
    k0 = tl.load(in_ptr + 4 * n + at, mask=mask).to(tl.uint32)
    k1 = tl.load(in_ptr + 5 * n + at, mask=mask).to(tl.uint32)
    words = philox_4x32_block(c0, c1, c2, c3, k0, k1)
    for j in tl.static_range(4):
        tl.store(out_ptr + j * n + at, words[j].to(tl.int64), mask=mask)


@jit
def _normals_kernel(out_ptr, in_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < n
    first = tl.load(in_ptr + at, mask=mask).to(tl.uint32)
    second = tl.load(in_ptr + n + at, mask=mask).to(tl.uint32)
    z = words_to_normals_block(first, second)
    for j in tl.static_range(2):
        tl.store(out_ptr + j * n + at, z[j], mask=mask)


def words_in_a_kernel(rows: list[list[int]]) -> list[list[int]]:
    """Output words of rows (c0, c1, c2, c3, k0, k1)."""
    inputs = torch.tensor(rows, device=DEVICE).T.contiguous()
    out = torch.empty((4, len(rows)), dtype=torch.int64, device=DEVICE)
    _words_kernel[(-(-len(rows) // 16),)](out, inputs, len(rows), BLOCK=16)
    return out.T.tolist()


def normals(
    n: int, size: int, *, seed: int = 0, first: int = 0, step: int = 3, stream=Stream.LANGEVIN
) -> torch.Tensor:
    index = torch.arange(first, first + n)
    return philox_normal(philox_key(seed), index, torch.tensor(step), (size,), stream)


def parse(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


RANDOM123 = [
    ("00000000 " * 4, "00000000 " * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff " * 4, "ffffffff " * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), RANDOM123)
def test_known_answers_of_random123(counter, key, expected):
    assert words(parse(counter), parse(key)) == parse(expected)


@needs_kernel
def test_known_answers_of_random123_in_a_kernel():
    rows = [parse(counter) + parse(key) for counter, key, _ in RANDOM123]
    assert words_in_a_kernel(rows) == [parse(expected) for *_, expected in RANDOM123]


@needs_kernel
@given(st.lists(st.lists(WORD, min_size=6, max_size=6), min_size=1, max_size=40))
@settings(max_examples=25, deadline=None)
def test_words_in_a_kernel_equal_unbounded_integer_arithmetic(rows):
    assert words_in_a_kernel(rows) == [philox_by_the_book(row[:4], row[4:]) for row in rows]


@needs_kernel
def test_normals_in_a_kernel_equal_torchs_for_extreme_and_ordinary_words():
    extremes = [0, 1, 255, 256, 2**31 - 1, 2**31, 2**32 - 2**8, 2**32 - 1]
    # A multiplicative generator's words, over all of [0, 2**32).
    inputs = torch.cat([torch.tensor(extremes), torch.arange(500) * 2654435761 % 2**32])
    first, second = (
        m.flatten().contiguous() for m in torch.meshgrid(inputs, inputs[::9], indexing="ij")
    )
    out = torch.full((2, len(first)), math.nan, device=DEVICE)
    stacked = torch.stack([first, second]).to(DEVICE)
    _normals_kernel[(-(-len(first) // 1024),)](out, stacked, len(first), BLOCK=1024)
    expected = torch.stack(words_to_normals(first, second))
    assert out.isfinite().all()
    assert float((out.cpu() - expected).abs().max()) < 2e-6


@needs_kernel
@given(
    st.integers(0, 2**64 - 1),
    st.lists(WORD, min_size=0, max_size=4),
    WORD,
    st.sampled_from([(1,), (2,), (3,), (5,), (63,), (64,), (3, 5, 7), (2, 0), (1025,), (2048,)]),
    st.sampled_from(list(Stream)),
)
@settings(max_examples=15, deadline=None)
def test_the_kernels_noise_is_torchs(seed, indices, step, shape, stream):
    index = torch.tensor(indices, dtype=torch.int64, device=DEVICE)
    arguments = (philox_key(seed, DEVICE), index, torch.tensor(step, device=DEVICE), shape, stream)
    uniform = philox_uniform(*arguments, impl="triton")
    assert torch.equal(uniform, philox_uniform(*arguments, impl="torch"))
    normal = philox_normal(*arguments, impl="triton")
    assert normal.shape == (len(indices), *shape) and normal.dtype == torch.float32
    torch.testing.assert_close(normal, philox_normal(*arguments, impl="torch"), rtol=0, atol=2e-6)


@needs_kernel
@pytest.mark.parametrize("normal", [False, True])
@pytest.mark.parametrize("size", [1, 63, 64, 1027])
def test_the_kernel_writes_every_element_and_nothing_else(size, normal):
    room = torch.full((3 * size + 64,), math.nan, device=DEVICE)
    index, step = torch.arange(3, device=DEVICE), STEP.to(DEVICE)
    out = room[32 : 32 + 3 * size].view(3, size)
    arguments = (philox_key(4, DEVICE), index, step, (size,), Stream.LANGEVIN)
    philox_triton(*arguments, normal=normal, out=out)
    reference = philox_normal if normal else philox_uniform
    torch.testing.assert_close(out, reference(*arguments, impl="torch"), rtol=0, atol=2e-6)
    assert room[:32].isnan().all() and room[32 + 3 * size :].isnan().all()


@needs_kernel
def test_torch_sees_through_the_operation():
    arguments = (philox_key(4, DEVICE), torch.arange(3, device=DEVICE), STEP.to(DEVICE), (2, 5))
    torch.library.opcheck(torch.ops.scorekit.philox.default, (*arguments, 1, True))

    def noise(*arguments):
        normal = philox_normal(*arguments, (2, 5), Stream.INITIAL, impl="triton")
        return normal + philox_uniform(*arguments, (2, 5), Stream.INITIAL, impl="triton")

    compiled = torch.compile(noise, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*arguments[:3]), noise(*arguments[:3]))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("key", torch.zeros(3, dtype=torch.int64), r"key has shape \(3,\); \(2,\)"),
        ("sample_index", torch.tensor(0), r"sample_index has shape \(\); \(B,\)"),
        ("step", torch.zeros(2, dtype=torch.int64), r"step has shape \(2,\); a scalar"),
    ],
)
@pytest.mark.parametrize("function", [philox_normal, philox_uniform])
def test_wrong_shapes_are_refused(function, name, change, message):
    arguments = {"key": philox_key(0), "sample_index": torch.arange(2), "step": STEP, name: change}
    with pytest.raises(ValueError, match=message):
        function(**arguments, shape=(4,), stream=Stream.LANGEVIN)


def test_samples_beyond_the_kernels_reach_go_to_plain_torch():
    arguments = (philox_key(0), torch.arange(0), STEP, (2**31,), Stream.LANGEVIN)
    with pytest.raises(
        ValueError, match=r"not possible for philox_normal: .*(2147483648|triton|on)"
    ):
        philox_normal(*arguments, impl="triton")


@given(st.lists(WORD, min_size=4, max_size=4), st.lists(WORD, min_size=2, max_size=2))
@settings(deadline=None)
def test_words_equal_unbounded_integer_arithmetic(counter, key):
    assert words(counter, key) == philox_by_the_book(counter, key)


@given(st.integers(0, 2**64 - 1), WORD, WORD, st.integers(1, 23), st.sampled_from(list(Stream)))
@settings(max_examples=50, deadline=None)
def test_normals_are_the_documented_function_of_seed_sample_step_and_pixel(
    seed, sample, step, size, stream
):
    """Element p takes word p // Q of counter (p % Q, step, sample, stream), Q = ceil(size / 4)."""
    key = [seed % 2**32, seed >> 32]
    n_counters = math.ceil(size / 4)
    expected = []
    for p in range(size):
        w = philox_by_the_book([p % n_counters, step, sample, int(stream)], key)
        word = p // n_counters
        first, second = (((w[i] >> 8) + 0.5) / 2**24 for i in (word // 2 * 2, word // 2 * 2 + 1))
        trigonometric = math.sin if word % 2 else math.cos
        expected.append(math.sqrt(-2 * math.log(first)) * trigonometric(2 * math.pi * second))
    noise = philox_normal(
        philox_key(seed), torch.tensor([sample]), torch.tensor(step), (size,), stream
    )
    assert noise.dtype == torch.float32
    # The angle, up to 2 pi, is rounded to float32; and so is 1 - 2**-25 near radius zero.
    assert noise[0].tolist() == pytest.approx(expected, abs=4e-4)
    well_conditioned = [abs(e) > 1e-2 for e in expected]
    error = np.abs(noise[0].numpy() - expected)
    assert (error[well_conditioned] < 5e-5).all()


def test_extreme_words_give_finite_bounded_normals():
    extremes = torch.tensor([0, 1, 2**8 - 1, 2**8, 2**31, 2**32 - 2**8, 2**32 - 1])
    first, second = torch.meshgrid(extremes, extremes, indexing="ij")
    for z in words_to_normals(first, second):
        assert z.isfinite().all()
        assert z.abs().max() < 5.9
    largest = torch.stack(words_to_normals(torch.tensor(0), torch.tensor(0))).abs().max()
    assert float(largest) == pytest.approx(math.sqrt(2 * math.log(2**25)), rel=1e-5)
    assert float(word_to_uniform(extremes).min()) > 0
    assert float(word_to_uniform(extremes).max()) <= 1


@pytest.mark.parametrize("seed", [0, 1, 2**40 + 7])
def test_normals_pass_kolmogorov_smirnov_and_have_the_moments(seed):
    z = normals(64, 8192, seed=seed).double().flatten().numpy()
    n = len(z)
    assert stats.kstest(z, "norm").pvalue > 1e-3
    # Standard errors of the first four moments of a standard normal: 1, sqrt 2, sqrt 15, sqrt 96.
    for power, expected, spread in ((1, 0, 1), (2, 1, 2**0.5), (3, 0, 15**0.5), (4, 3, 96**0.5)):
        assert abs((z**power).mean() - expected) < 4 * spread / n**0.5


def test_tails_are_as_heavy_as_they_should_be_up_to_5_sigma():
    n, size, thresholds = 2**26, 2**14, (3.0, 4.0, 5.0)
    counts = np.zeros((len(thresholds), 2), dtype=int)
    for first in range(0, n // size, 32):
        z = normals(32, size, seed=5, first=first)
        for i, threshold in enumerate(thresholds):
            counts[i] += int((z > threshold).sum()), int((z < -threshold).sum())
    for threshold, tails in zip(thresholds, counts, strict=True):
        low, high = stats.binom.interval(1 - 1e-4, n, stats.norm.sf(threshold))
        assert ((tails >= low) & (tails <= high)).all(), (threshold, tails, low, high)


@pytest.mark.parametrize("size", [3072, 12288])
@pytest.mark.parametrize("power", [1, 2])
def test_pixels_of_an_image_are_uncorrelated_at_every_kind_of_lag(size, power):
    n = 256
    z = normals(n, size, seed=21).double().numpy() ** power
    z = (z - z.mean()) / z.std()
    # Neighbours, rows of 32 and 64, channels, and words of one counter (multiples of size / 4).
    lags = {1, 2, 3, 4, 5, 32, 64, 1024, 4096, *(j * size // 4 for j in (1, 2, 3))}
    for lag in sorted(lag for lag in lags if lag < size):
        products = z[:, :-lag] * z[:, lag:]
        assert abs(products.mean()) < 4.5 / products.size**0.5, lag


@pytest.mark.parametrize("axis", ["sample", "step", "pixel", "stream", "seed"])
def test_noise_is_independent_along(axis):
    n = 2**15
    if axis == "pixel":
        # Pixels at every distance, words of one counter (a quarter of the size apart) among them.
        rows = normals(n, 32, seed=11).T
    elif axis == "sample":
        rows = normals(32, n, seed=11)
    elif axis == "step":
        rows = torch.cat([normals(1, n, seed=11, step=t) for t in range(32)])
    elif axis == "stream":
        rows = torch.cat([normals(1, n, seed=11, stream=s) for s in Stream])
    else:
        seeds = [*range(16), *(2**32 + s for s in range(8))]
        rows = torch.cat([normals(1, n, seed=s) for s in seeds])
    rows = rows.double().numpy()
    # Squares too: a shared radius would leave the values themselves uncorrelated.
    for view in (rows, rows**2):
        correlation = np.corrcoef(view)
        np.fill_diagonal(correlation, 0)
        assert np.abs(correlation).max() < 5 / n**0.5


@given(
    st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=20),
    st.randoms(use_true_random=False),
    st.integers(1, 21),
)
@settings(max_examples=40, deadline=None)
def test_a_samples_noise_does_not_depend_on_its_batch(indices, random, size):
    key = philox_key(123)
    together = philox_normal(key, torch.tensor(indices), STEP, (size,), Stream.LANGEVIN)
    order = list(range(len(indices)))
    random.shuffle(order)
    chosen = order[: random.randint(1, len(order))]
    subset = torch.tensor([indices[i] for i in chosen])
    apart = philox_normal(key, subset, STEP, (size,), Stream.LANGEVIN)
    assert torch.equal(apart, together[chosen])
    alone = philox_normal(key, subset[:1], STEP, (size,), Stream.LANGEVIN)
    assert torch.equal(alone[0], together[chosen[0]])


@pytest.mark.parametrize("n", [1, 3, 16, 1000])
def test_batches_of_every_size_give_one_noise_for_images(n):
    shape = (3, 5, 7)
    key = philox_key(9)
    whole = philox_normal(key, torch.arange(1000), STEP, shape, Stream.LANGEVIN)
    parts = [
        philox_normal(key, part, STEP, shape, Stream.LANGEVIN)
        for part in torch.arange(1000).split(n)
    ]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 6, 7, 9, 4095])
def test_sizes_not_divisible_by_four_hold_distinct_values(size):
    z = normals(4, size)
    assert z.shape == (4, size)
    assert len(z.flatten().unique()) > 0.99 * z.numel()


def test_uniforms_are_uniform_and_never_zero():
    u = philox_uniform(philox_key(2), torch.arange(64), STEP, (8191,), Stream.INITIAL)
    assert u.shape == (64, 8191)
    assert u.dtype == torch.float32
    assert float(u.min()) > 0
    assert float(u.max()) <= 1
    assert stats.kstest(u.double().flatten().numpy(), "uniform").pvalue > 1e-3


@given(st.integers(1, 10_000), st.integers(0, 2**64 - 1))
@settings(max_examples=30, deadline=None)
def test_integers_lie_in_range(high, seed):
    drawn = philox_integers(philox_key(seed), torch.arange(500), STEP, high, Stream.NOISE_LEVEL)
    assert drawn.dtype == torch.int64
    assert drawn.shape == (500,)
    assert int(drawn.min()) >= 0
    assert int(drawn.max()) < high


@pytest.mark.parametrize("high", [2, 10, 232, 2311])
def test_integers_are_uniform(high):
    drawn = philox_integers(philox_key(4), torch.arange(200_000), STEP, high, Stream.NOISE_LEVEL)
    counts = np.bincount(drawn.numpy(), minlength=high)
    assert stats.chisquare(counts).pvalue > 1e-3


def test_both_halves_of_a_large_seed_matter():
    low = normals(1, 64, seed=7)
    high = normals(1, 64, seed=7 + 2**32)
    assert not torch.equal(low, high)
    assert torch.equal(philox_key(7 + 2**33), torch.tensor([7, 2]))


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(ValueError, match=f"seed = {seed} is outside"):
        philox_key(seed)


@pytest.mark.slow
def test_compiled_noise_equals_eager_noise():
    counter = tuple(torch.randint(0, 2**32, (5, 1001)) for _ in range(4))
    key = philox_key(2**63 + 12345)
    compiled_words = torch.compile(philox_4x32, dynamic=False, fullgraph=True)(counter, key)
    for ours, theirs in zip(compiled_words, philox_4x32(counter, key), strict=True):
        assert torch.equal(ours, theirs)

    def noise(key, index, step):
        return philox_normal(key, index, step, (3, 17, 19), Stream.LANGEVIN)

    arguments = (key, torch.arange(9), torch.tensor(12345))
    eager = noise(*arguments)
    fast = torch.compile(noise, dynamic=False, fullgraph=True)(*arguments)
    assert torch.allclose(fast, eager, rtol=1e-6, atol=1e-6)
