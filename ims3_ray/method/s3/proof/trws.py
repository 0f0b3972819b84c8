"""TRW-S (Kolmogorov 2006) over the complete graph of classes, with recomputed costs: only messages are
stored.

M_ji(g), a message, is what class j says that candidate g of class i costs it. With θ̂_i = θ_i + Σ_j M_ji and
γ_i = 1 / max(classes before i, classes after i), a pass visits the classes in order and sends
    M_ij(h) = min_g [γ_i (θ̂_i(g) - min θ̂_i) - M_ji(g) + θ_ij(g, h)] - δ_ij   to every later j,   min M_ij = 0,
and Σ_i min θ̂_i + Σ_{i<j} δ_ij bounds the energy. The next pass goes back. Costs are in units of w; they are kept between
the passes while they fit TABLE_BYTES, and computed again in every pass beyond.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ims3_ray.method.s3.objective import COINCIDENT

from .pairs import ABSENT, Group

DOUBLE_ROWS = 2000  # candidates up to which everything is in double precision
TABLE_BYTES = 1.7e9  # of all costs
THREADS = 4  # that fill the table; what they compute is the same for any number
PASS_VALUES = 1e10  # costs that all passes together read, where these are kept: about half a minute
MOST_PASSES, LEAST_PASSES = 200, 4
STALLED = 1e-5  # of the bound: what the last STALLED_PASSES must have added for more to be made
STALLED_PASSES = 10
BLOCK_VALUES = 4_000_000  # of a block of the cost table
FILL_CLASSES = 16  # whose costs a thread computes at once
ROUNDING = 1e-6  # of a pair's weight, allowed for float32; see certificate.py


def trws(choice, ratio: float, epsilon: float, enough: float, *groups: Group) -> float:
    """The best bound of alternating passes over the classes of all `groups`; ratio = α / w.

    Messages begin linearised at `choice` (C,). Stops early at a bound within 1e-9 of `enough`.
    """
    candidates, unary = _stack(groups, ratio)
    rows = int((unary < ABSENT).sum())
    precision = np.float64 if rows <= DOUBLE_ROWS else np.float32
    num_classes = unary.shape[1]
    allowance = 0.0 if precision is np.float64 else ROUNDING * num_classes * (num_classes - 1) / 2
    candidates = candidates.astype(precision)
    messages = first_messages(candidates, choice, epsilon)
    gains, kept = costs_of(candidates, epsilon)
    num_passes = int(np.clip(PASS_VALUES / rows**2, LEAST_PASSES, MOST_PASSES)) if kept else LEAST_PASSES
    bounds = [-np.inf]  # the best after each pass
    for number in range(num_passes):
        bounds.append(max(bounds[-1], trws_pass(gains, unary, messages, forward=number % 2 == 0) - allowance))
        if bounds[-1] >= enough - 1e-9 * abs(enough):
            break
        if number >= STALLED_PASSES and bounds[-1] - bounds[-1 - STALLED_PASSES] < STALLED * abs(bounds[-1]):
            break
    return bounds[-1]


def costs_of(candidates, epsilon: float) -> tuple[Callable, bool]:
    """What trws_pass asks for the costs of `candidates` (G, C, D), and whether they are kept."""
    size, num_classes, width = candidates.shape
    if (size * num_classes) ** 2 * candidates.itemsize > TABLE_BYTES:
        return lambda start, stop, others: block_gains(candidates, start, stop, others, epsilon), False
    table = np.empty((num_classes, size, size, num_classes), candidates.dtype)
    flat = candidates.reshape(-1, width)

    def fill(start: int) -> None:
        part = table[start : start + FILL_CLASSES].reshape(-1, size * num_classes)
        rows = candidates[:, start : start + FILL_CLASSES].transpose(1, 0, 2).reshape(-1, width)
        np.matmul(rows, flat.T, out=part)
        _log(part, epsilon)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(fill, range(0, num_classes, FILL_CLASSES)))
    return lambda start, stop, others: table[start:stop, :, :, others], True


def first_messages(candidates, choice, epsilon: float) -> np.ndarray:
    """M_ji(g) = θ_ij(g, g*_j) as (C, G, C): class i, its candidate, class j; `candidates` are (G, C, D)."""
    size, num_classes, width = candidates.shape
    chosen = candidates[choice, np.arange(num_classes)]
    logs = _log(candidates.reshape(-1, width) @ chosen.T, epsilon).reshape(size, num_classes, num_classes)
    messages = np.ascontiguousarray(-logs.transpose(1, 0, 2))
    messages[np.arange(num_classes), :, np.arange(num_classes)] = 0
    return messages


def trws_pass(gains, unary, messages, *, forward: bool) -> float:
    """Visit all classes once, in order or back, update `messages` (C, G, C) in place, and give the bound.

    `gains(start, stop, others)` gives -θ_ij as (n, G, H, m) of the classes start ... stop - 1 to the m
    classes of the slice `others`; `unary` (G, C) is θ_i.
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


def _visit(i, later, table, unary, messages) -> float:
    """Send the messages of class i to the `later` ones; `table` (G, H, n) holds -θ_ij."""
    num_classes = unary.shape[1]
    reached = unary[:, i] + messages[i].sum(axis=1, dtype=np.float64)
    least = reached.min()
    if later.stop == later.start:
        return float(least)
    share = (reached - least) / max(later.stop - later.start, num_classes - 1 - (later.stop - later.start))
    shift = share.astype(table.dtype)[:, None] - messages[i][:, later]
    most = table[0] - shift[0]
    for g in range(1, len(table)):  # a candidate at a time stays in the cache
        np.maximum(most, table[g] - shift[g], out=most)
    sent = -most
    lowest = sent.min(axis=0)
    messages[later, :, i] = (sent - lowest).T
    return float(least + lowest.sum(dtype=np.float64))


def block_gains(candidates, start, stop, others, epsilon) -> np.ndarray:
    """-θ_ij = log(d + ε) as (n, G, H, m) of the classes start ... stop - 1 of `candidates` (G, C, D) to the
    `others`.
    """
    size, _, width = candidates.shape
    rows = candidates[:, start:stop].transpose(1, 0, 2).reshape(-1, width)
    logs = np.empty((len(rows), size, others.stop - others.start), candidates.dtype)
    for h in range(size):
        np.matmul(rows, candidates[h, others].T, out=logs[:, h])
    return _log(logs, epsilon).reshape(stop - start, size, size, -1)


def _log(products, epsilon) -> np.ndarray:
    """log(1 - products + ε), in place; distances are at least COINCIDENT, which only lowers the costs."""
    np.subtract(1, products, out=products)
    np.maximum(products, COINCIDENT, out=products)
    products += products.dtype.type(epsilon)
    return np.log(products, out=products)


def _stack(groups, ratio) -> tuple[np.ndarray, np.ndarray]:
    """All candidates (G, C, D), and θ_i / w (G, C): see Group.padded."""
    parts = [group.padded() for group in groups]
    size = max(len(attractions) for _, attractions in parts)
    candidates = [np.concatenate([c, np.repeat(c[:1], size - len(c), axis=0)]) for c, _ in parts]
    unary = [np.pad(a, ((0, size - len(a)), (0, 0)), constant_values=np.inf) for _, a in parts]
    unary = np.concatenate(unary, axis=1)
    return np.concatenate(candidates, axis=1), np.where(np.isinf(unary), ABSENT, ratio * unary)
