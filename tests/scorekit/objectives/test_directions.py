"""Random directions: isotropic, and functions of (key, sample, step)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.philox import Stream, philox_key, philox_normal
from scorekit.objectives.directions import PROJECTION_KINDS, projections

STEP = torch.tensor(3)


@pytest.mark.parametrize("kind", PROJECTION_KINDS)
def test_directions_are_isotropic_with_unit_variance(kind):
    """E[v] = 0 and E[v v^T] = I, within 5 standard errors of each entry."""
    n, d = 40_000, 5
    v = projections(kind, philox_key(1), torch.arange(n), STEP, (d,)).double()
    products = v[:, :, None] * v[:, None, :]
    for sample, mean in ((v, torch.zeros(d)), (products, torch.eye(d))):
        error = (sample.mean(0) - mean).abs()
        assert (error <= 5 * sample.std(0) / n**0.5 + 1e-12).all()


@given(d=st.integers(1, 40), seed=st.integers(0, 2**64 - 1))
@settings(deadline=None, max_examples=30)
def test_lengths(d, seed):
    index = torch.arange(4)
    sign = projections("rademacher", philox_key(seed), index, STEP, (d,))
    assert set(sign.flatten().tolist()) <= {-1.0, 1.0}
    sphere = projections("sphere", philox_key(seed), index, STEP, (d,))
    torch.testing.assert_close(sphere.norm(dim=1), torch.full((4,), d**0.5), rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", PROJECTION_KINDS)
def test_a_samples_direction_does_not_depend_on_its_batch(kind):
    key, shape = philox_key(2), (2, 3, 3)
    many = projections(kind, key, torch.arange(8), STEP, shape)
    alone = projections(kind, key, torch.tensor([5]), STEP, shape)
    assert many.shape == (8, 2, 3, 3) and many.dtype == torch.float32
    assert torch.equal(many[5], alone[0])
    other_step = projections(kind, key, torch.tensor([5]), STEP + 1, shape)
    other_seed = projections(kind, philox_key(3), torch.tensor([5]), STEP, shape)
    assert not torch.equal(other_step, alone) and not torch.equal(other_seed, alone)


def test_directions_have_a_stream_of_their_own():
    index = torch.arange(3)
    v = projections("gaussian", philox_key(0), index, STEP, (4,))
    for stream in Stream:
        noise = philox_normal(philox_key(0), index, STEP, (4,), stream)
        assert torch.equal(noise, v) == (stream is Stream.PROJECTION)
    assert [int(stream) for stream in Stream] == list(range(len(Stream)))


def test_unknown_kinds_are_refused_with_the_known_ones():
    message = "projection = 'uniform' is unknown; known: rademacher, gaussian, sphere"
    with pytest.raises(ValueError, match=message):
        projections("uniform", philox_key(0), torch.arange(2), STEP, (4,))
