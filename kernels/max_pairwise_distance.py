"""The largest Euclidean distance between any two rows, exactly, in bounded memory."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kernels.dispatch import Impl, jit, tl, use_triton
from kernels.precision import float32_precision

if TYPE_CHECKING:
    from kernels.offline import KernelCase

Pair = tuple[int, int]

#: Rows and columns of one program's block of pairs, and how many dimensions it reads at a time.
TILE, CHUNK = 64, 32


def max_pairwise_distance(
    rows: Tensor, *, block_size: int = 2048, impl: Impl = "auto"
) -> tuple[float, Pair]:
    """Return max over i < j of ||rows[i] - rows[j]||_2 and a pair (i, j) that attains it.

    ``rows`` is (N, D), N >= 2, of any real dtype; uint8 is taken as it is (no division by 255).
    Memory is O(block_size * (block_size + D)); the kernel adds a float32 copy of the rows that are
    far enough out to matter. It reads results on the host: an operation for once per dataset.

    Distances are screened by ||a||^2 + ||b||^2 - 2ab in float32 around the mean row; since that
    expansion cancels, every pair within the rounding bound of the running maximum is measured again
    in float64 from the original values. Rows are visited from the outermost inwards, and
    ||a - b|| <= ||a|| + ||b|| ends the search early. Where very many pairs lie within 1e-4 of the
    maximum they are screened in float64 first, which settles ties between rows of integers (one-hot
    rows among them); very many exact ties between other rows take correspondingly longer. Raises
    ValueError for fewer than two rows, for NaN or Inf, and as :func:`kernels.dispatch.use_triton`.
    """
    if rows.ndim != 2 or rows.shape[0] < 2:
        raise ValueError(f"rows has shape {tuple(rows.shape)}; (N, D) with N >= 2 is needed")
    if block_size < 1:
        raise ValueError(f"block_size = {block_size} must be at least 1")
    kernel = use_triton("max_pairwise_distance", impl, rows)
    search = _Search(rows, block_size)
    if search.scale > 0:
        with float32_precision():
            (_search_tiles if kernel else _search_blocks)(search)
    return search.best**0.5 * search.scale, search.pair


def max_pairwise_distance_reference(rows: Tensor) -> tuple[float, Pair]:
    """Return what :func:`max_pairwise_distance` does, from all N (N - 1) / 2 float64 distances."""
    distances = torch.nn.functional.pdist(rows.to(torch.float64))
    first, second = torch.triu_indices(len(rows), len(rows), 1)
    at = int(distances.argmax())
    return float(distances[at]), (int(first[at]), int(second[at]))


class _Search:
    """The largest distance found so far between two rows, and the means to look for a larger one.

    Lengths are in units of ``scale``, a power of two above the largest radius, or squares could
    leave float32's range; dividing by it is exact.
    """

    def __init__(self, rows: Tensor, block_size: int) -> None:
        self.rows, self.block_size = rows, block_size
        blocks = rows.split(block_size)
        if not all(bool(b.isfinite().all()) for b in blocks):
            raise ValueError("rows holds NaN or Inf; distances need finite values")
        integers = not rows.is_floating_point() or all(bool((b == b.round()).all()) for b in blocks)
        self.mean = sum(b.to(torch.float64).sum(0) for b in blocks) / len(rows)
        if integers:
            self.mean = self.mean.round()
        radius = torch.cat([(b.to(torch.float64) - self.mean).norm(dim=1) for b in blocks])
        largest = float(radius.max())
        if largest == math.inf:
            raise ValueError("rows holds values whose squares overflow float64; scale them down")
        self.scale = math.ldexp(1.0, math.frexp(largest)[1]) if largest > 0 else 0.0
        # Then float64 holds every product, and every sum of them, without rounding.
        self.exact = integers and largest < 2**25
        self.order = torch.argsort(radius, descending=True)
        self.reach = radius[self.order] / self.scale
        self.best, self.pair = 0.0, (0, 1)  # squared

    def centred(self, index: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return ((self.rows[index].to(torch.float64) - self.mean) / self.scale).to(dtype)

    def slack(self, reach: float, dtype: torch.dtype) -> float:
        """Return how far the expansion may be off in ``dtype`` where ||a|| + ||b|| <= reach."""
        if dtype == torch.float64 and self.exact:
            return 0.0
        # |fl(a.b) - a.b| <= gamma_D |a||b| in any order of summation (Higham 2002, Sec. 3.1), and
        # a few roundings more for the centring and the sums; doubled for margin.
        return 2 * (self.rows.shape[1] + 8) * torch.finfo(dtype).eps * reach**2

    def measure(self, u: Tensor, v: Tensor) -> None:
        """Measure the distances from rows ``u`` to rows ``v``, index by index, in float64."""
        for u_part, v_part in zip(u.split(self.block_size), v.split(self.block_size), strict=True):
            difference = self.rows[u_part].to(torch.float64) - self.rows[v_part].to(torch.float64)
            value, at = (difference / self.scale).square().sum(1).max(0)
            if float(value) > self.best:
                self.best = float(value)
                first, second = sorted((int(u_part[at]), int(v_part[at])))
                self.pair = (first, second)

    def refine(self, u: Tensor, v: Tensor, a: Tensor, b: Tensor, reach: float) -> None:
        """Measure all pairs of ``u`` and ``v`` that may beat the best; ``a``, ``b`` are centred."""
        squared = torch.addmm(b.square().sum(1)[None, :], a, b.T, alpha=-2)
        squared += a.square().sum(1)[:, None]
        if u is v:
            squared.fill_diagonal_(-torch.inf)
        slack = self.slack(reach, a.dtype)
        largest = float(squared.max())
        if largest + slack <= self.best or largest == -torch.inf:
            return
        # The apparent winner first: it leaves few others to measure.
        p, q = divmod(int(squared.argmax()), squared.shape[1])
        self.measure(u[p : p + 1], v[q : q + 1])
        near = squared + slack > self.best
        # A float64 product costs about as much as measuring one pair in 64.
        if a.dtype == torch.float32 and 64 * int(near.sum()) > near.numel():
            a = self.centred(u, torch.float64)
            self.refine(u, v, a, a if u is v else self.centred(v, torch.float64), reach)
        else:
            row, column = near.nonzero(as_tuple=True)
            self.measure(u[row], v[column])


def _search_blocks(search: _Search) -> None:
    blocks = search.order.split(search.block_size)
    reach = search.reach[:: search.block_size].tolist()
    for i, block_i in enumerate(blocks):
        if 2 * reach[i] < search.best**0.5:
            break
        a = search.centred(block_i)
        for j in range(i, len(blocks)):
            if reach[i] + reach[j] < search.best**0.5:
                break
            b = a if j == i else search.centred(blocks[j])
            search.refine(block_i, blocks[j], a, b, reach[i] + reach[j])


def _search_tiles(search: _Search) -> None:
    # The row farthest from the outermost one, then the row farthest from that: within a factor of
    # two of the maximum, mostly far closer, which leaves fewer rows and tiles to look at.
    for start in (search.order[:1], None):
        start = search.order.new_tensor(search.pair[:1]) if start is None else start
        search.measure(start.expand(len(search.order)), search.order)
    bound = search.best**0.5
    order = search.order[search.reach + search.reach[0] >= bound]
    if len(order) < 2:  # rounding aside, nothing reaches farther than what was measured
        return
    tiles = order.split(TILE)
    reach = search.reach[: len(order) : TILE]
    first, second = torch.triu_indices(len(tiles), len(tiles), device=order.device)
    reaches = reach[first] + reach[second]
    possible = reaches >= bound
    first, second, reaches = first[possible], second[possible], reaches[possible]
    if len(first) == 0:
        return
    centred = torch.cat([search.centred(b) for b in order.split(search.block_size)])
    maximum, position = max_pairwise_distance_triton(centred, first, second)

    winner = int(maximum.argmax())
    p, q = divmod(int(position[winner]), TILE)
    search.measure(tiles[int(first[winner])][p, None], tiles[int(second[winner])][q, None])
    upper = maximum.to(torch.float64) + search.slack(1.0, torch.float32) * reaches.square()
    for k in torch.argsort(upper, descending=True).tolist():
        if float(upper[k]) <= search.best:
            break
        i, j = int(first[k]), int(second[k])
        a, b = (centred[t * TILE : (t + 1) * TILE] for t in (i, j))
        search.refine(tiles[i], tiles[j], a, b, float(reaches[k]))


def max_pairwise_distance_triton(
    centred: Tensor,
    first: Tensor,
    second: Tensor,
    *,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return each tile pair's largest squared distance and where it lies, in float32 throughout.

    ``centred`` (N, D) is float32; tile t holds its rows from t * TILE on. ``first`` and ``second``
    (T,) are integers with first <= second. The maxima are float32 (T,), -inf for a tile without a
    pair of different rows; the positions int32 (T,), TILE * row + column within the tile.
    """
    count = len(first)
    centred = centred.contiguous()
    squares = centred.square().sum(1)
    if out is None:
        maximum = torch.empty(count, dtype=torch.float32, device=centred.device)
        out = maximum, torch.empty(count, dtype=torch.int32, device=centred.device)
    with torch.cuda.device_of(centred):
        _max_pairwise_distance_kernel[(count,)](
            *(centred, squares, first.to(torch.int32), second.to(torch.int32), *out),
            *centred.shape,
            TILE=TILE,
            CHUNK=CHUNK,
        )
    return out


@jit
def _max_pairwise_distance_kernel(
    rows_ptr,
    squares_ptr,
    first_ptr,
    second_ptr,
    maximum_ptr,
    position_ptr,
    n,
    dim,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
):
    pair = tl.program_id(0)
    within = tl.arange(0, TILE)
    u = tl.load(first_ptr + pair) * TILE + within
    v = tl.load(second_ptr + pair) * TILE + within
    u_start = u.to(tl.int64) * dim
    v_start = v.to(tl.int64) * dim
    product = tl.zeros([TILE, TILE], dtype=tl.float32)
    for start in range(0, dim, CHUNK):
        d = start + tl.arange(0, CHUNK)
        a = tl.load(
            rows_ptr + u_start[:, None] + d[None, :],
            mask=(u < n)[:, None] & (d < dim)[None, :],
            other=0.0,
        )
        b = tl.load(
            rows_ptr + v_start[None, :] + d[:, None],
            mask=(v < n)[None, :] & (d < dim)[:, None],
            other=0.0,
        )
        product = tl.dot(a, b, product, input_precision="ieee")
    u_square = tl.load(squares_ptr + u, mask=u < n, other=0.0)
    v_square = tl.load(squares_ptr + v, mask=v < n, other=0.0)
    squared = (v_square[None, :] - 2.0 * product) + u_square[:, None]
    # u < v leaves out the diagonal and, with it, every pair's second visit.
    squared = tl.where((u[:, None] < v[None, :]) & (v < n)[None, :], squared, float("-inf"))
    maximum = tl.max(tl.max(squared, axis=1), axis=0)
    position = within[:, None] * TILE + within[None, :]
    position = tl.where(squared == maximum, position, TILE * TILE - 1)
    tl.store(maximum_ptr + pair, maximum)
    tl.store(position_ptr + pair, tl.min(tl.min(position, axis=1), axis=0))


def kernel_cases() -> "list[KernelCase]":
    """Return what to compile this module's kernel for, without a GPU."""
    from kernels.offline import KernelCase

    signature = dict.fromkeys(("rows_ptr", "squares_ptr"), "*fp32")
    signature |= dict.fromkeys(("first_ptr", "second_ptr"), "*i32")
    signature |= {"maximum_ptr": "*fp32", "position_ptr": "*i32", "n": "i32", "dim": "i32"}
    signature |= dict.fromkeys(("TILE", "CHUNK"), "constexpr")
    return [
        KernelCase(
            name="max_pairwise_distance[fp32]",
            kernel=_max_pairwise_distance_kernel,
            signature=signature,
            constants={"TILE": TILE, "CHUNK": CHUNK},
            divisible_by_16=(*(k for k in signature if k.endswith("_ptr")), "dim"),
            memory_bound=False,
        )
    ]
