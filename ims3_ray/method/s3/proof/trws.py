"""TRW-S (Kolmogorov 2006) over the complete graph of classes: only messages are stored, costs recomputed.

| here | meaning |
|---|---|
| G | the most subgroups that a class has; see pairs for classes with fewer |
| `unary` (G, C) | θ_i(g), in units of w as all costs |
| `gains` (n, G, H, m) | -θ_ij(g, h) of n classes to m others |
| `messages[i, g, j]` (C, G, C) | M_ji(g), what class j says that candidate g of class i costs it |

With θ̂_i = θ_i + Σ_j M_ji and γ_i = 1 / max(classes before i, classes after i), a pass visits the classes in
order and sends
    M_ij(h) = min_g [γ_i (θ̂_i(g) - min θ̂_i) - M_ji(g) + θ_ij(g, h)] - δ_ij   to every later j,   min M_ij = 0,
and Σ_i min θ̂_i + Σ_{i<j} δ_ij bounds the energy. The next pass goes back. Costs are kept between the passes
while they fit TABLE_BYTES, and computed again in every pass beyond.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Float, Float64, Int

from .pairs import ABSENT, Costs, Group, clipped_logs

DOUBLE_ROWS = 2000  # candidates up to which everything is in double precision
TABLE_BYTES = 1.7e9  # of all costs
THREADS = 4  # that fill the table; what they compute is the same for any number
PASS_VALUES = 1e10  # costs that all passes together read, where these are kept: about half a minute
MOST_PASSES, LEAST_PASSES = 200, 4
STALLED = 1e-5  # of the bound: what the last STALLED_PASSES must have added for more to be made
STALLED_PASSES = 10
BLOCK_VALUES = 4_000_000  # of a block of the cost table
FILL_CLASSES = 16  # whose costs a thread computes at once
ROUNDING = 1e-6  # of a pair's weight, allowed for float32 products and logarithms
Candidates = Float[np.ndarray, "G C D"]
Messages = Float[np.ndarray, "C G C"]
Gains = Callable[[int, int, slice], Float[np.ndarray, "_ _ _ _"]]


def trws(choice: Int[np.ndarray, " C"], ratio: float, epsilon: float, enough: float, *groups: Group) -> float:
    """The best bound of alternating passes over the classes of all `groups`; ratio = α / w.

    Messages begin linearised at `choice`. Stops early at a bound within 1e-9 of `enough`.
    """
    candidates, unary = _stack(groups, ratio)
    rows = int((unary < ABSENT).sum())
    precision = np.float64 if rows <= DOUBLE_ROWS else np.float32
    num_classes = unary.shape[1]
    allowance = 0.0 if precision is np.float64 else ROUNDING * num_classes * (num_classes - 1) / 2
    candidates = candidates.astype(precision)
    messages = first_messages(candidates, choice, epsilon)
    gains, kept = gains_of(candidates, epsilon)
    num_passes = int(np.clip(PASS_VALUES / rows**2, LEAST_PASSES, MOST_PASSES)) if kept else LEAST_PASSES
    bounds = [-np.inf]  # the best after each pass
    for number in range(num_passes):
        bounds.append(max(bounds[-1], trws_pass(gains, unary, messages, forward=number % 2 == 0) - allowance))
        if bounds[-1] >= enough - 1e-9 * abs(enough):
            break
        if number >= STALLED_PASSES and bounds[-1] - bounds[-1 - STALLED_PASSES] < STALLED * abs(bounds[-1]):
            break
    return bounds[-1]


def gains_of(candidates: Candidates, epsilon: float) -> tuple[Gains, bool]:
    """What trws_pass asks for the gains of `candidates`, and whether they are kept."""
    size, num_classes, width = candidates.shape
    if (size * num_classes) ** 2 * candidates.itemsize > TABLE_BYTES:
        return lambda start, stop, others: block_gains(candidates, start, stop, others, epsilon), False
    table = np.empty((num_classes, size, size, num_classes), candidates.dtype)
    flat = candidates.reshape(-1, width)

    def fill(start: int) -> None:
        part = table[start : start + FILL_CLASSES].reshape(-1, size * num_classes)
        rows = candidates[:, start : start + FILL_CLASSES].transpose(1, 0, 2).reshape(-1, width)
        np.matmul(rows, flat.T, out=part)
        clipped_logs(part, epsilon)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(fill, range(0, num_classes, FILL_CLASSES)))
    return lambda start, stop, others: table[start:stop, :, :, others], True


def first_messages(candidates: Candidates, choice: Int[np.ndarray, " C"], epsilon: float) -> Messages:
    """M_ji(g) = θ_ij(g, g*_j)."""
    size, num_classes, width = candidates.shape
    chosen = candidates[choice, np.arange(num_classes)]
    logs = clipped_logs(candidates.reshape(-1, width) @ chosen.T, epsilon)
    messages = np.ascontiguousarray(-logs.reshape(size, num_classes, num_classes).transpose(1, 0, 2))
    messages[np.arange(num_classes), :, np.arange(num_classes)] = 0
    return messages


def trws_pass(gains: Gains, unary: Float64[np.ndarray, "G C"], messages: Messages, *, forward: bool) -> float:
    """Visit all classes once, in order or back, update `messages` in place, and give the bound.

    `gains(start, stop, others)` are those of the classes start ... stop - 1 to the slice `others`.
    """
    size, num_classes = unary.shape
    tile = int(np.clip(BLOCK_VALUES // (size * size * num_classes), 1, 64))
    starts = range(0, num_classes, tile)
    bound = 0.0
    for start in starts if forward else reversed(starts):
        stop = min(start + tile, num_classes)
        others = slice(start, num_classes) if forward else slice(0, stop)
        block = gains(start, stop, others)
        for i in range(start, stop) if forward else range(stop - 1, start - 1, -1):
            later = slice(i + 1, num_classes) if forward else slice(0, i)
            table = block[i - start][:, :, later.start - others.start : later.stop - others.start]
            bound += _visit(i, later, table, unary, messages)
    return bound


def _visit(
    i: int,
    later: slice,
    table: Float[np.ndarray, "G G n"],
    unary: Float64[np.ndarray, "G C"],
    messages: Messages,
) -> float:
    """Send the messages of class i to the n `later` ones, to whom its gains are `table`."""
    num_classes = unary.shape[1]
    reached = unary[:, i] + messages[i].sum(axis=1, dtype=np.float64)
    least = reached.min()
    num_later = later.stop - later.start
    if not num_later:
        return float(least)
    share = (reached - least) / max(num_later, num_classes - 1 - num_later)
    shift = share.astype(table.dtype)[:, None] - messages[i][:, later]
    most = table[0] - shift[0]
    for g in range(1, len(table)):  # a candidate at a time stays in the cache
        np.maximum(most, table[g] - shift[g], out=most)
    sent = -most
    lowest = sent.min(axis=0)
    messages[later, :, i] = (sent - lowest).T
    return float(least + lowest.sum(dtype=np.float64))


def block_gains(
    candidates: Candidates, start: int, stop: int, others: slice, epsilon: float
) -> Float[np.ndarray, "n G G m"]:
    """The gains of the classes start ... stop - 1 to the `others`."""
    size, _, width = candidates.shape
    rows = candidates[:, start:stop].transpose(1, 0, 2).reshape(-1, width)
    logs = np.empty((len(rows), size, others.stop - others.start), candidates.dtype)
    for h in range(size):
        np.matmul(rows, candidates[h, others].T, out=logs[:, h])
    return clipped_logs(logs, epsilon).reshape(stop - start, size, size, -1)


def _stack(groups: Sequence[Group], ratio: float) -> tuple[Candidates, Costs]:
    """All candidates, and θ_i / w: see Group.padded."""
    parts = [group.padded() for group in groups]
    size = max(len(attractions) for _, attractions in parts)
    candidates = [np.concatenate([c, np.repeat(c[:1], size - len(c), axis=0)]) for c, _ in parts]
    unary = [np.pad(a, ((0, size - len(a)), (0, 0)), constant_values=np.inf) for _, a in parts]
    costs = np.concatenate(unary, axis=1)
    return np.concatenate(candidates, axis=1), np.where(np.isinf(costs), ABSENT, ratio * costs)
