"""Nearest neighbours against the definition, flips included."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scorekit.metrics.neighbours import nearest_in_blocks, nearest_neighbours
from scorekit.metrics.spaces import MetricError


@given(
    n=st.integers(1, 6),
    n_references=st.integers(1, 12),
    dim=st.integers(1, 5),
    data=st.data(),
    seed=st.integers(0, 2**32 - 1),
    flips=st.booleans(),
)
@settings(deadline=None)
def test_distances_are_those_of_the_definition(n, n_references, dim, data, seed, flips):
    k = data.draw(st.integers(1, n_references))
    random = np.random.default_rng(seed)
    queries, mirrored = random.normal(size=(2, n, dim)).astype(np.float32)
    references = random.normal(size=(n_references, dim)).astype(np.float32)
    found = nearest_neighbours(queries, references, k=k, mirrored=mirrored if flips else None)

    def distances(features):
        return np.linalg.norm(features[:, None].astype(float) - references.astype(float), axis=2)

    straight, mirror = distances(queries), distances(mirrored)
    least = np.minimum(straight, mirror) if flips else straight
    np.testing.assert_allclose(found.distance, np.sort(least, axis=1)[:, :k], rtol=1e-4, atol=1e-5)
    own = np.take_along_axis(np.where(found.flipped, 1, 0), np.arange(k)[None], axis=1)
    for row in range(n):
        assert len(set(found.index[row])) == k
        side = np.where(
            own[row] == 1, mirror[row][found.index[row]], straight[row][found.index[row]]
        )
        np.testing.assert_allclose(found.distance[row], side, rtol=1e-4, atol=1e-5)
    assert flips or not found.flipped.any()


def test_a_flipped_training_image_is_found_as_such():
    random = np.random.default_rng(0)
    references, noise = random.normal(size=(2, 20, 8))
    found = nearest_neighbours(noise, references, k=3, mirrored=references + 1e-6)
    assert found.index[:, 0].tolist() == list(range(20))
    assert found.flipped[:, 0].all()


@pytest.mark.parametrize(
    ("shape", "k", "message"),
    [
        ((3, 4), 0, "k=0: 1 to 5"),
        ((3, 4), 6, "k=6: 1 to 5"),
        ((3, 2), 1, r"shape \(3, 2\) given"),
    ],
)
def test_bad_input_is_named(shape, k, message):
    with pytest.raises(MetricError, match=message):
        nearest_neighbours(np.ones(shape), np.ones((5, 4)), k=k)


@given(
    cuts=st.lists(st.integers(1, 39), max_size=6, unique=True),
    k=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
    flips=st.booleans(),
)
@settings(deadline=None)
def test_blocks_give_what_the_whole_gives(cuts, k, seed, flips):
    random = np.random.default_rng(seed)
    queries, mirrored = random.normal(size=(2, 5, 3))
    references, names = random.normal(size=(40, 3)), random.permutation(40)
    parts = np.split(np.arange(40), sorted(cuts))
    blocks = [(references[part], names[part]) for part in parts]
    images = mirrored if flips else None
    found = nearest_in_blocks(queries, iter(blocks), k=k, mirrored=images)
    # Brute force, from the definition.
    near, far = (np.linalg.norm(x[:, None] - references, axis=2) for x in (queries, mirrored))
    least = np.minimum(near, far) if flips else near
    order = np.argsort(least, axis=1)[:, :k]
    np.testing.assert_array_equal(found.index, names[order])
    np.testing.assert_allclose(found.distance, np.take_along_axis(least, order, axis=1), rtol=1e-6)
    mirror = np.take_along_axis(far < near, order, axis=1) & flips
    np.testing.assert_array_equal(found.flipped, mirror)


def test_fewer_references_in_all_blocks_than_asked_for_are_named():
    blocks = [(np.ones((2, 4)), np.arange(2)), (np.zeros((1, 4)), np.arange(2, 3))]
    with pytest.raises(MetricError, match="k=4: 1 to 3"):
        nearest_in_blocks(np.ones((3, 4)), blocks, k=4)
