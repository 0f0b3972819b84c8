"""TRW-S (Kolmogorov 2006) over the complete graph of classes, with a table of all pair costs.

| here | meaning |
|---|---|
| G | largest number of subgroups of a class; smaller classes are padded with their first, at cost ABSENT |
| `unary` (G, C) | θ_i(g); all costs in units of w |
| `gains` (C, G, H, C) | -θ_ij(g, h), as [i, g, h, j] |
| `messages[i, g, j]` (C, G, C) | M_ji(g), the cost of candidate g of class i by class j |

With θ̂_i = θ_i + Σ_j M_ji and γ_i = 1 / max(classes before i, classes after i), a pass visits the classes in
order and sends
    M_ij(h) = min_g [γ_i (θ̂_i(g) - min θ̂_i) - M_ji(g) + θ_ij(g, h)] - δ_ij   to each later j,   min M_ij = 0.
Σ_i min θ̂_i + Σ_{i<j} δ_ij bounds the energy. The next pass runs backwards.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Float, Float64, Int

from ims3_ray.method.s3.objective import COINCIDENT, Choice, Pools
from ims3_ray.method.s3.shard import PerCandidate, offsets_of

ABSENT = 1e12
MAX_PLACES = 10_000  # C·G; the table then takes 400 MB
DOUBLE_PLACES = 2000  # up to this size in double precision
THREADS = 4  # fill the table; the values do not depend on their number
PASS_VALUES = 1e10  # costs read by all passes together: about half a minute
MAX_PASSES, MIN_PASSES = 200, 4
MIN_GAIN = 1e-5  # relative gain of the last STALLED_PASSES below which passes end
STALLED_PASSES = 10
COPIES = 4  # of the candidates: input, joined, padded, converted
FILL_CLASSES = 16  # per thread task
ROUNDING = 1e-6  # of a pair's weight, for float32 products and logarithms
Candidates = Float[np.ndarray, "G C D"]
Costs = Float64[np.ndarray, "G C"]
Messages = Float[np.ndarray, "C G C"]
Gains = Float[np.ndarray, "C G G C"]


def trws(
    pools: Pools, attractions: PerCandidate, choice: Choice, ratio: float, epsilon: float, target: float
) -> float:
    """Return the best bound of alternating passes, in units of w; ratio = α / w.

    Messages start linearised at `choice`. Stops early at a bound within 1e-9 of `target`.
    """
    candidates, unary = _padded(pools, ratio * attractions)
    places, num_classes = unary.size, unary.shape[1]
    precision = np.float64 if places <= DOUBLE_PLACES else np.float32
    allowance = 0.0 if precision is np.float64 else ROUNDING * num_classes * (num_classes - 1) / 2
    candidates = candidates.astype(precision)
    messages = initial_messages(candidates, choice, epsilon)
    gains = _all_gains(candidates, epsilon)
    num_passes = int(np.clip(PASS_VALUES / places**2, MIN_PASSES, MAX_PASSES))
    bounds = [-np.inf]  # best bound after each pass
    for number in range(num_passes):
        bounds.append(max(bounds[-1], trws_pass(gains, unary, messages, forward=number % 2 == 0) - allowance))
        if bounds[-1] >= target - 1e-9 * abs(target):
            break
        if number >= STALLED_PASSES and bounds[-1] - bounds[-1 - STALLED_PASSES] < MIN_GAIN * abs(bounds[-1]):
            break
    return bounds[-1]


def fits(num_classes: int, size: int) -> bool:
    """Return whether classes of at most `size` subgroups are few enough for the table."""
    return num_classes * size <= MAX_PLACES


def memory(num_classes: int, size: int, width: int) -> float:
    """Return the peak memory in bytes: table, messages (twice during construction), candidates."""
    places = num_classes * size
    itemsize = 8 if places <= DOUBLE_PLACES else 4
    return itemsize * places * (places + 2 * num_classes + COPIES * width)


def _padded(pools: Pools, costs: PerCandidate) -> tuple[Candidates, Costs]:
    """Pad candidates and costs to G places per class."""
    sizes = np.array([len(pool) for pool in pools])
    places = np.arange(sizes.max())[:, None]
    rows = offsets_of(sizes)[:-1] + np.where(places < sizes, places, 0)
    return np.concatenate(pools)[rows], np.where(places < sizes, costs[rows], ABSENT)


def _all_gains(candidates: Candidates, epsilon: float) -> Gains:
    size, num_classes, width = candidates.shape
    table = np.empty((num_classes, size, size, num_classes), candidates.dtype)
    flat = candidates.reshape(-1, width)

    def fill(start: int) -> None:
        part = table[start : start + FILL_CLASSES].reshape(-1, size * num_classes)
        rows = candidates[:, start : start + FILL_CLASSES].transpose(1, 0, 2).reshape(-1, width)
        np.matmul(rows, flat.T, out=part)
        clipped_logs(part, epsilon)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(fill, range(0, num_classes, FILL_CLASSES)))
    return table


def initial_messages(candidates: Candidates, choice: Int[np.ndarray, " C"], epsilon: float) -> Messages:
    """Return M_ji(g) = θ_ij(g, g*_j)."""
    size, num_classes, width = candidates.shape
    chosen = candidates[choice, np.arange(num_classes)]
    logs = clipped_logs(candidates.reshape(-1, width) @ chosen.T, epsilon)
    messages = np.ascontiguousarray(-logs.reshape(size, num_classes, num_classes).transpose(1, 0, 2))
    messages[np.arange(num_classes), :, np.arange(num_classes)] = 0
    return messages


def trws_pass(gains: Gains, unary: Costs, messages: Messages, *, forward: bool) -> float:
    """Visit all classes once, in order or backwards; update `messages` in place; return the bound."""
    num_classes = len(gains)
    bound = 0.0
    for i in range(num_classes) if forward else reversed(range(num_classes)):
        later = slice(i + 1, num_classes) if forward else slice(0, i)
        bound += _visit(i, later, gains[i, :, :, later], unary, messages)
    return bound


def _visit(
    i: int,
    later: slice,
    table: Float[np.ndarray, "G G n"],
    unary: Float64[np.ndarray, "G C"],
    messages: Messages,
) -> float:
    """Send the messages of class i to the n `later` classes; `table` holds its gains with them."""
    num_classes = unary.shape[1]
    reached = unary[:, i] + messages[i].sum(axis=1, dtype=np.float64)
    least = reached.min()
    num_later = later.stop - later.start
    if not num_later:
        return float(least)
    share = (reached - least) / max(num_later, num_classes - 1 - num_later)
    shift = share.astype(table.dtype)[:, None] - messages[i][:, later]
    most = table[0] - shift[0]
    for g in range(1, len(table)):  # one candidate at a time: stays in the cache
        np.maximum(most, table[g] - shift[g], out=most)
    sent = -most
    lowest = sent.min(axis=0)
    messages[later, :, i] = (sent - lowest).T
    return float(least + lowest.sum(dtype=np.float64))


def clipped_logs(products: Float[np.ndarray, "*S"], epsilon: float) -> Float[np.ndarray, "*S"]:
    """Compute log(1 - products + ε) in place; distances are at least COINCIDENT, which only lowers costs."""
    np.subtract(1, products, out=products)
    np.maximum(products, COINCIDENT, out=products)
    products += products.dtype.type(epsilon)
    return np.log(products, out=products)
