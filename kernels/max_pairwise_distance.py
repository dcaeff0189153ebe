"""The largest Euclidean distance between any two rows, exactly, in bounded memory."""

import torch
from torch import Tensor

from kernels.precision import float32_precision


def max_pairwise_distance(rows: Tensor, *, block_size: int = 2048) -> tuple[float, tuple[int, int]]:
    """Return max over i < j of ||rows[i] - rows[j]||_2 and a pair (i, j) that attains it.

    ``rows`` is (N, D), N >= 2, of any real dtype; uint8 is taken as it is (no division by 255).
    Memory is O(block_size * (block_size + D)).

    Distances are screened by ||a||^2 + ||b||^2 - 2ab in float32 around the mean row; since that
    expansion cancels, every pair within the rounding bound of the running maximum is measured again
    in float64 from the original values. Rows are visited from the outermost inwards, and
    ||a - b|| <= ||a|| + ||b|| ends the search early. Data with very many pairs within 1e-4 of the
    maximum, such as one-hot rows, take correspondingly longer. Raises ValueError for fewer than two
    rows and for NaN or Inf.
    """
    if rows.ndim != 2 or rows.shape[0] < 2:
        raise ValueError(f"rows has shape {tuple(rows.shape)}; (N, D) with N >= 2 is needed")
    n, dim = rows.shape
    if not all(bool(b.isfinite().all()) for b in rows.split(block_size)):
        raise ValueError("rows holds NaN or Inf; distances need finite values")
    mean = sum(b.to(torch.float64).sum(0) for b in rows.split(block_size)) / n

    radius = torch.cat([(b.to(torch.float64) - mean).norm(dim=1) for b in rows.split(block_size)])
    scale = float(radius.max())
    if scale == 0:
        return 0.0, (0, 1)

    def centred(index: Tensor) -> Tensor:
        # In units of the largest radius, or squares could leave float32's range.
        return ((rows[index].to(torch.float64) - mean) / scale).to(torch.float32)

    blocks = torch.argsort(radius, descending=True).split(block_size)
    reach = [float(radius[b[0]]) / scale for b in blocks]
    # |fl(a.b) - a.b| <= gamma_D |a||b| (Higham 2002, Sec. 3.1), and a few roundings more for the
    # centring and the sums; doubled for margin.
    unit = torch.finfo(torch.float32).eps / 2
    slack_factor = 2 * 2 * (dim + 8) * unit

    best, pair = 0.0, (0, 1)  # squared, in units of scale

    def measure(u: Tensor, v: Tensor) -> None:
        nonlocal best, pair
        for u_part, v_part in zip(u.split(block_size), v.split(block_size), strict=True):
            difference = rows[u_part].to(torch.float64) - rows[v_part].to(torch.float64)
            value, at = (difference / scale).square().sum(1).max(0)
            if float(value) > best:
                best = float(value)
                first, second = sorted((int(u_part[at]), int(v_part[at])))
                pair = (first, second)

    with float32_precision():
        for i, block_i in enumerate(blocks):
            if 2 * reach[i] < best**0.5:
                break
            a = centred(block_i)
            for j in range(i, len(blocks)):
                if reach[i] + reach[j] < best**0.5:
                    break
                b = a if j == i else centred(blocks[j])
                squared = torch.addmm(b.square().sum(1)[None, :], a, b.T, alpha=-2)
                squared += a.square().sum(1)[:, None]
                if j == i:
                    squared.fill_diagonal_(-torch.inf)
                slack = slack_factor * (reach[i] + reach[j]) ** 2
                largest = float(squared.max())
                if largest + slack <= best or largest == -torch.inf:
                    continue
                # The block's apparent winner first: it leaves few others to measure.
                p, q = divmod(int(squared.argmax()), squared.shape[1])
                measure(block_i[p : p + 1], blocks[j][q : q + 1])
                near = torch.nonzero(squared + slack > best)
                if len(near):
                    measure(block_i[near[:, 0]], blocks[j][near[:, 1]])
    return best**0.5 * scale, pair
