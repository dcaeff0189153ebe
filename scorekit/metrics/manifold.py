"""Which features lie in the nearest-neighbour balls of others: precision to coverage, in blocks.

A ball of a set reaches from one member to its k-th nearest other. Distances are bounded from both
sides by products in float32, with the rounding that they can have at most; what these bounds leave
open, few pairs in practice, is decided by differences in float64: the result is that of float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from scorekit.metrics.frechet import check_features, check_one_space
from scorekit.metrics.spaces import MetricError

if TYPE_CHECKING:
    import torch

#: Rows and columns of a block of distances.
BLOCK = {"cpu": 2048, "cuda": 8192}
#: Pairs beyond which the nearest found so far are sorted out.
MAX_PENDING = 2**20
#: What underflow may take from a squared distance, in the unit in which features are at most 1.
TINY = 1e-30
#: Bytes of differences that are taken in float64 at a time.
EXACT_BYTES = 2**23
#: The neighbours of precision and recall, and of density and coverage, in their papers.
PRECISION_NEIGHBOURS, DENSITY_NEIGHBOURS = 3, 5


@dataclass(frozen=True, kw_only=True)
class PrecisionRecall:
    """Improved precision and recall in [0, 1], and their harmonic mean."""

    precision: float
    recall: float
    f_score: float


@dataclass(frozen=True, kw_only=True)
class DensityCoverage:
    """Density, at least 0 and about 1 for samples of the same distribution; coverage in [0, 1]."""

    density: float
    coverage: float


def precision_recall(
    fake: np.ndarray,
    real: np.ndarray,
    *,
    neighbourhood: int = PRECISION_NEIGHBOURS,
    device: str | torch.device = "cpu",
) -> PrecisionRecall:
    """Return the shares of fakes among the reals, and of reals among the fakes.

    Kynkäänniemi et al. 2019: a feature is among a set (n, d) where it lies in the ball of some
    member, its surface included, with the `neighbourhood`-th nearest other on it. Both shares
    depend on both n: compare at equal n. Raises MetricError for features that are not finite, of
    one dimension d, more than `neighbourhood` each. Time and memory: see :func:`manifold_metrics`.
    """
    return _memberships(fake, real, device, precision=neighbourhood).precision_recall()


def density_coverage(
    fake: np.ndarray,
    real: np.ndarray,
    *,
    neighbourhood: int = DENSITY_NEIGHBOURS,
    device: str | torch.device = "cpu",
) -> DensityCoverage:
    """Return how many balls of reals hold a fake, and the share of balls that hold one at all.

    Naeem et al. 2020: density is the number of balls that hold a fake, its mean over fakes divided
    by `neighbourhood`; coverage the share of reals with a fake in their own ball. As for
    :func:`precision_recall` a ball's surface belongs to it, and so do errors, time and memory.
    """
    return _memberships(fake, real, device, density=neighbourhood).density_coverage()


def manifold_metrics(
    fake: np.ndarray, real: np.ndarray, *, device: str | torch.device = "cpu"
) -> tuple[PrecisionRecall, DensityCoverage]:
    """Return both of the above, with their own neighbourhoods, from the same distances.

    Of two sets of n features one product of all pairs and two of half of them are taken, on
    `device`, and beside the features at most about 0.5 GB held on a CPU: n = 50,000 at d = 2048 are
    2e13 operations in float32. A GPU holds the features too, and larger blocks.
    """
    found = _memberships(fake, real, device, PRECISION_NEIGHBOURS, DENSITY_NEIGHBOURS)
    return found.precision_recall(), found.density_coverage()


def _memberships(
    fake: np.ndarray,
    real: np.ndarray,
    device: str | torch.device,
    precision: int | None = None,
    density: int | None = None,
) -> _Memberships:
    """Return who lies in whose balls with the neighbourhoods that are wanted."""
    import torch

    from kernels.precision import float32_precision

    real_ks = [k for k in (precision, density) if k is not None]
    if min(real_ks) < 1:
        raise MetricError(f"neighbourhood={min(real_ks)}: a whole number from 1 is right")
    check_features(fake, "fake", minimum=1 + (precision or 0))
    check_features(real, "real", minimum=1 + max(real_ks))
    check_one_space(fake, real)
    with torch.no_grad(), float32_precision():
        space = _Space(fake, real, torch.device(device))
        return _Memberships(space, [] if precision is None else [precision], real_ks)


class _Space:
    """Two feature sets on a device, for products about a common centre and in a common unit."""

    def __init__(self, fake: np.ndarray, real: np.ndarray, device: torch.device) -> None:
        import torch

        self.block = BLOCK[device.type]
        self.fake, self.real = (_tensor(array).to(device) for array in (fake, real))
        both = (self.fake, self.real)
        # In float32 where the features are, so that a difference from it is rounded once.
        sums = [x[part].double().sum(0) for x in both for part in self.blocks(x)]
        mean = torch.stack(sums).sum(0) / (len(fake) + len(real))
        self.centre = mean.to(torch.promote_types(self.fake.dtype, self.real.dtype))
        far = max((x[p] - self.centre).abs().max().item() for x in both for p in self.blocks(x))
        # A power of two, so that scaling rounds nothing: neither squares nor sums leave the range.
        self.scale = 2.0 ** -np.frexp(far)[1] if far > 0 else 1.0
        self.norms = {
            id(x): torch.cat([self.centred(x, p).double().square().sum(1) for p in self.blocks(x)])
            for x in both
        }
        # A product's sum over d terms errs by (d - 1) units of rounding, with the few roundings of
        # its factors, of norms and of their sums; twice as many of the latter are allowed for.
        self.unit = (fake.shape[1] + 32) * 2.0**-24

    def blocks(self, x: torch.Tensor) -> list[slice]:
        return [slice(i, min(i + self.block, len(x))) for i in range(0, len(x), self.block)]

    def centred(self, x: torch.Tensor, part: slice) -> torch.Tensor:
        return ((x[part] - self.centre) * self.scale).float()

    def lower(self, a: torch.Tensor, i: slice, b: torch.Tensor, j: slice) -> torch.Tensor:
        """Return float32 (I, J): what squared distances are at least, in the common unit."""
        import torch

        first = ((1 - self.unit) * self.norms[id(a)][i] - TINY).float()
        second = ((1 - self.unit) * self.norms[id(b)][j]).float()
        product = torch.addmm(second, self.centred(a, i), self.centred(b, j).T, alpha=-2)
        return product.add_(first[:, None])

    def slack(
        self, a: torch.Tensor, i: torch.Tensor, b: torch.Tensor, j: torch.Tensor
    ) -> torch.Tensor:
        """Return by how much squared distances of pairs are above the bound at most."""
        return 2 * (self.unit * (self.norms[id(a)][i] + self.norms[id(b)][j]) + TINY)

    def distance(
        self, a: torch.Tensor, i: torch.Tensor, b: torch.Tensor, j: torch.Tensor
    ) -> torch.Tensor:
        """Return the distances (P,) of pairs, by differences in float64, in the features' unit."""
        import torch

        step = max(1, EXACT_BYTES // (8 * a.shape[1]))
        parts = [
            (a[i[s : s + step]].double() - b[j[s : s + step]].double()).square().sum(1).sqrt()
            for s in range(0, len(i), step)
        ]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64, device=a.device)


class _Radii:
    """The distances of every member of a set to its k-th nearest other, float64 (len(ks), n)."""

    def __init__(self, space: _Space, x: torch.Tensor, ks: Sequence[int]) -> None:
        import torch

        self.space, self.x, self.k = space, x, max(ks)
        device = x.device
        self.values = torch.zeros(len(ks), len(x), dtype=torch.float64, device=device)
        #: No fewer than k others have a squared distance of at most this.
        self.bound = torch.full((len(x),), torch.inf, dtype=torch.float64, device=device)
        # Members with so many others about as near that float32 does not tell them apart.
        self.crowded = torch.zeros(len(x), dtype=torch.bool, device=device)
        self.found: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        blocks = space.blocks(x)
        for part in blocks:  # first, so that their bounds leave few pairs of the other blocks
            lower = space.lower(x, part, x, part).fill_diagonal_(torch.inf)
            norms = space.norms[id(x)][part].float()
            if len(norms) > self.k:
                upper = lower + 2 * space.unit * (norms[:, None] + norms) + 2 * TINY
                # Rounded once more than the bounds of pairs, for which it is widened.
                self.bound[part] = upper.kthvalue(self.k).values.double() * (1 + 1e-6)
            self.offer(lower, part, part, 1)
        for n, first in enumerate(blocks):
            for second in blocks[n + 1 :]:
                lower = space.lower(x, first, x, second)
                self.offer(lower, first, second, 1)
                self.offer(lower, first, second, 0)
        i, j, _ = self.sorted_out()
        distance = space.distance(x, i, x, j)
        order = _by_owner(i, distance)
        starts = torch.searchsorted(i[order], torch.arange(len(x), device=device))
        sure = ~self.crowded
        for values, k in zip(self.values, ks, strict=True):
            values[sure] = distance[order][starts[sure] + k - 1]
        for rows in self.crowded.nonzero()[:, 0].split(max(1, EXACT_BYTES // (2 * len(x)))):
            self.values[:, rows] = self.of_crowded(rows, ks)

    def offer(self, lower: torch.Tensor, first: slice, second: slice, axis: int) -> None:
        """Keep the pairs that may be neighbours: of rows with `axis` 1, of columns with 0."""
        import torch

        owners = first if axis else second
        bound = self.bound[owners].float()
        near = lower <= (bound[:, None] if axis else bound)
        crowded = near.sum(axis) > 64 + 8 * self.k
        if crowded.any():
            self.crowded[owners] |= crowded
            self.bound[owners] = torch.where(crowded, -torch.inf, self.bound[owners])
            near &= ~(crowded[:, None] if axis else crowded)
        i, j = near.nonzero(as_tuple=True)
        value = lower[i, j].double()
        i, j = i + first.start, j + second.start
        self.found.append((i, j, value) if axis else (j, i, value))
        if sum(len(part) for part, _, _ in self.found) > MAX_PENDING:
            self.found = [self.sorted_out()]

    def sorted_out(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the pairs of which each may still be one of its first member's k nearest."""
        import torch

        i, j, lower = (torch.cat(parts) for parts in zip(*self.found, strict=True))
        upper = lower + self.space.slack(self.x, i, self.x, j)
        order = _by_owner(i, upper)
        starts = torch.searchsorted(i[order], torch.arange(len(self.x) + 1, device=i.device))
        enough = (starts.diff() >= self.k).nonzero()[:, 0]
        nearest = upper[order][starts[enough] + self.k - 1]
        self.bound[enough] = torch.minimum(self.bound[enough], nearest)
        keep = lower <= self.bound[i]
        return i[keep], j[keep], lower[keep]

    def of_crowded(self, rows: torch.Tensor, ks: Sequence[int]) -> torch.Tensor:
        """Return the distances of some members, found by products in float64."""
        import torch

        x = self.x
        own = x[rows].double()
        far = torch.cat([torch.cdist(own, x[p].double()) for p in self.space.blocks(x)], dim=1)
        far[torch.arange(len(rows), device=x.device), rows] = torch.inf
        nearest = far.topk(self.k, largest=False).indices
        pairs = rows[:, None].expand_as(nearest)
        distances = self.space.distance(x, pairs.flatten(), x, nearest.flatten())
        ordered = distances.reshape(nearest.shape).sort(dim=1).values
        return torch.stack([ordered[:, k - 1] for k in ks])


class _Memberships:
    """Who lies in whose balls: `precise` (M,) fakes, `recalled` and `covered` (N,) reals.

    `held` is the number of (fake, ball of a real) of which the one lies in the other. Precision and
    recall are of the first k of each set, density and coverage of the last of the reals.
    """

    def __init__(self, space: _Space, fake_ks: Sequence[int], real_ks: Sequence[int]) -> None:
        import torch

        self.space, fake, real = space, space.fake, space.real
        real_radii = _Radii(space, real, real_ks).values
        fake_radii = _Radii(space, fake, fake_ks).values if fake_ks else None
        self.precise, self.recalled, self.covered = (
            torch.zeros(len(x), dtype=torch.bool, device=x.device) for x in (fake, real, real)
        )
        self.held, self.k = 0, real_ks[-1]
        for i, j, lower in self.pairs(fake, real):
            near = self.candidates(lower, i, j, real_radii.amax(0)[j])
            self.precise[near[0][self.inside(near, real_radii[0][near[1]])]] = True
            held = self.inside(near, real_radii[-1][near[1]])
            self.held += int(held.sum())
            self.covered[near[1][held]] = True
            if fake_radii is not None:
                near = self.candidates(lower, i, j, fake_radii[0][i][:, None])
                self.recalled[near[1][self.inside(near, fake_radii[0][near[0]])]] = True

    def precision_recall(self) -> PrecisionRecall:
        p, r = (each.double().mean().item() for each in (self.precise, self.recalled))
        # The harmonic mean as torch-fidelity takes it, which is 0 where both are.
        return PrecisionRecall(precision=p, recall=r, f_score=2 * p * r / max(p + r, 1e-5))

    def density_coverage(self) -> DensityCoverage:
        return DensityCoverage(
            density=self.held / (self.k * len(self.precise)),
            coverage=self.covered.double().mean().item(),
        )

    def pairs(
        self, a: torch.Tensor, b: torch.Tensor
    ) -> Iterator[tuple[slice, slice, torch.Tensor]]:
        for i in self.space.blocks(a):
            for j in self.space.blocks(b):
                yield i, j, self.space.lower(a, i, b, j)

    def candidates(
        self, lower: torch.Tensor, i: slice, j: slice, radius: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return (fake, real, bound) of the pairs of a block that may be within a radius."""
        squared = (radius * self.space.scale).square()
        rows, columns = (lower <= squared.float()).nonzero(as_tuple=True)
        return rows + i.start, columns + j.start, lower[rows, columns].double()

    def inside(
        self, pairs: tuple[torch.Tensor, torch.Tensor, torch.Tensor], radius: torch.Tensor
    ) -> torch.Tensor:
        """Return which of the pairs are within their radius (P,), as float64 has it."""
        space, (i, j, lower) = self.space, pairs
        squared = (radius * space.scale).square()
        inside = lower + space.slack(space.fake, i, space.real, j) <= squared
        unsure = ((lower <= squared) & ~inside).nonzero()[:, 0]
        exact = space.distance(space.fake, i[unsure], space.real, j[unsure])
        inside[unsure] = exact <= radius[unsure]
        return inside


def _by_owner(owner: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return the order of pairs by their owner and, of each, by value."""
    by_value = value.argsort()
    return by_value[owner[by_value].argsort(stable=True)]


def _tensor(array: np.ndarray) -> torch.Tensor:
    import torch

    kind = np.float32 if array.dtype == np.float32 else np.float64
    array = np.ascontiguousarray(array, dtype=kind)
    # torch shares no read-only memory without a warning.
    return torch.from_numpy(array if array.flags.writeable else array.copy())
