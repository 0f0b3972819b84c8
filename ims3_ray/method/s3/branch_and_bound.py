"""Proven minima of the selection objective for few classes: enumeration, and branch and bound.

A search node is a `Problem`: the free classes and their remaining subgroups. TRW-S bounds it from below;
bounds per subgroup remove those that cannot be part of a better choice; the rest is enumerated or split at
one class.

n is the number of free classes, G their largest number of subgroups. Costs are in units of w, in double
precision; messages as in trws.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float64, Int

from .distributed_descent import select_centroids
from .objective import Choice, Objective, Pools, Selection, evaluate, log_distances, own_logs
from .shard import offsets_of
from .trws import ABSENT, trws_pass

MAX_ROWS = 2000  # candidates; the table has their square
MAX_ENUMERATED = 50_000  # choices a node enumerates instead of splitting
PASS_PAIRS = 3  # back and forth, before subgroups are removed
Places = Int[np.ndarray, " n"]  # index of a subgroup among those of each free class


@dataclass(frozen=True)
class Problem:
    """n free classes with at most G subgroups each; the other classes are fixed."""

    constant: float  # cost of the fixed classes
    unary: Float64[np.ndarray, "n G"]  # θ_i plus pairs with fixed classes; ABSENT if there is no subgroup
    gains: Float64[np.ndarray, "n G G n"]  # -θ_ij(g, h) as [i, g, h, j], 0 where i = j
    classes: Int[np.ndarray, " n"]  # the free classes
    subgroups: Int[np.ndarray, "n G"]  # their subgroups
    messages: Float64[np.ndarray, "n G n"]
    choice: Int[np.ndarray, " C"]  # of the fixed classes

    def total(self, x: Places) -> float:
        """Return the cost of subgroups `x`."""
        own = np.arange(len(x))
        pairs = self.gains[own[:, None], x[:, None], x, own]
        return self.constant + float(self.unary[own, x].sum() - 0.5 * pairs.sum())

    def present(self) -> Bool[np.ndarray, "n G"]:
        """Return which places hold a subgroup."""
        return self.unary < ABSENT

    def whole(self, x: Places) -> Int[np.ndarray, " C"]:
        """Return the choice over all classes that `x` completes."""
        choice = self.choice.copy()
        choice[self.classes] = self.subgroups[np.arange(len(x)), x]
        return choice


def tighten(node: Problem, *, forward: bool) -> float:
    """Improve the messages of `node` in place by one pass over its classes; return the bound."""
    return trws_pass(node.gains, node.unary.T, node.messages, forward=forward) + node.constant


def subgroup_bounds(node: Problem) -> Float64[np.ndarray, "n G"]:
    """Return a lower bound per subgroup over all choices that contain it; call after a forward pass.

    After the pass, with share γ_i (θ̂_i - min θ̂_i) given to each later pair, all costs above its bound are
    at least 0. A subgroup adds its own remainder and the least cost of each of its pairs.
    """
    num = len(node.unary)
    later = np.arange(num - 1, -1, -1)[:, None]
    reached = node.unary + node.messages.sum(axis=2)
    above = reached - reached.min(axis=1, keepdims=True)
    share = above / np.maximum(np.maximum(later, num - 1 - later), 1)
    rest = np.where(node.present(), np.maximum(above - later * share, 0), ABSENT)
    costs = (
        share[:, :, None, None]
        - node.gains
        - node.messages[:, :, None, :]
        - node.messages.transpose(2, 1, 0)[:, None]
    )
    least = costs.min(axis=(1, 2))
    earlier = np.triu(np.ones((num, num), dtype=bool), 1)
    bound = node.constant + reached.min(axis=1).sum() + least[earlier].sum()
    costs -= least[:, None, None, :]
    costs = np.where(earlier[:, None, None, :], costs, costs.transpose(3, 2, 1, 0))
    costs[np.arange(num), :, :, np.arange(num)] = 0
    reach = (costs + rest.T).min(axis=2)
    reach[np.arange(num), :, np.arange(num)] = 0
    return bound + rest + reach.sum(axis=2)


def restrict(node: Problem, keep: Bool[np.ndarray, "n G"]) -> Problem:
    """Return `node` with only the subgroups `keep`; classes with a single one become fixed."""
    counts = keep.sum(axis=1)
    constant, unary, choice = node.constant, node.unary.copy(), node.choice.copy()
    for i in np.flatnonzero(counts == 1):
        g = int(np.argmax(keep[i]))
        constant += float(unary[i, g])
        unary -= node.gains[:, :, g, i]
        choice[node.classes[i]] = node.subgroups[i, g]
    free = np.flatnonzero(counts > 1)
    size = int(counts[free].max(initial=1))
    order = np.argsort(~keep[free], axis=1, kind="stable")[:, :size]
    absent = np.arange(size) >= counts[free, None]
    order = np.where(absent, order[:, :1], order)
    own = free[:, None]
    return Problem(
        constant=constant,
        unary=np.where(absent, ABSENT, unary[own, order]),
        gains=node.gains[own[:, :, None, None], order[:, :, None, None], order.T, free],
        classes=node.classes[free],
        subgroups=node.subgroups[own, order],
        messages=node.messages[own[:, :, None], order[:, :, None], free],
        choice=choice,
    )


def descend(node: Problem, x: Places) -> Places:
    """Coordinate descent from `x`: change the class that gains most until none gains."""
    x, own = x.copy(), np.arange(len(x))
    scores = node.unary - node.gains[:, :, x, own].sum(axis=2)
    while True:
        gains = scores[own, x][:, None] - scores
        i, g = np.unravel_index(int(np.argmax(gains)), gains.shape)
        if gains[i, g] <= 1e-12 * (1 + abs(scores[i, g])):
            return x
        scores += node.gains[:, :, x[i], i] - node.gains[:, :, g, i]
        x[i] = g


def branch_and_bound(
    candidates: Pools,
    real: np.ndarray,
    objective: Objective,
    *,
    restarts: int = 8,
    seed: int = 0,
    max_nodes: int = 200,
) -> Selection:
    """Return the best choice, proven within 1e-9; after `max_nodes` the best known with its bound."""
    first = replace(
        select_centroids(candidates, real, objective, restarts=restarts, seed=seed), solver="exact"
    )
    weight = objective.pair_weight(len(candidates))
    if weight == 0:
        return replace(first, lower_bound=first.objective, certificate="exact")
    choice, bound = _search(whole_problem(candidates, real, objective), first.choice, max_nodes)
    terms = evaluate(choice, candidates, real, objective)
    return replace(
        first,
        choice=choice,
        terms=terms,
        lower_bound=terms.total if bound is None else min(weight * bound, terms.total),
        certificate="exact" if bound is None else "branch and bound",
    )


def whole_problem(candidates: Pools, real: np.ndarray, objective: Objective) -> Problem:
    """Return the root problem: all classes free."""
    sizes = np.array([len(pool) for pool in candidates])
    classes, first = np.repeat(np.arange(len(sizes)), sizes), offsets_of(sizes)[:-1, None]
    rows = np.concatenate(candidates).astype(np.float64)
    distances = 1 - np.einsum("rd,rd->r", rows, real.astype(np.float64)[classes])
    unary = objective.alpha * own_logs(distances, classes, objective)
    weight = objective.pair_weight(len(sizes))
    pairs = -weight * log_distances(rows, rows, classes, classes, objective.epsilon)
    position = np.arange(sizes.max())
    present = position < sizes[:, None]
    places = np.where(present, first + position, first)
    return Problem(
        constant=0.0,
        unary=np.where(present, unary[places] / weight, ABSENT),
        gains=-pairs[places[:, :, None, None], places.T] / weight,
        classes=np.arange(len(sizes)),
        subgroups=np.tile(position, (len(sizes), 1)),
        messages=np.zeros((*places.shape, len(sizes))),
        choice=np.zeros(len(sizes), dtype=np.int64),
    )


def _search(problem: Problem, choice: Choice, max_nodes: int) -> tuple[Choice, float | None]:
    """Return the best choice, and the bound of the open nodes or None if there are none."""
    best = _Incumbent(choice, problem.total(choice))
    open_nodes = [(-np.inf, problem)]
    for _ in range(max_nodes):
        if not open_nodes:
            return best.choice, None
        bound, node = open_nodes.pop()
        if bound < best.cutoff:
            open_nodes += _expand(node, best)
    open_bound = min((bound for bound, _ in open_nodes), default=np.inf)
    return best.choice, None if open_bound >= best.cutoff else open_bound


@dataclass
class _Incumbent:
    """The incumbent; nodes that cost `cutoff` or more are pruned."""

    choice: Choice
    total: float

    @property
    def cutoff(self) -> float:
        return self.total - 1e-9 * max(1.0, abs(self.total))

    def offer(self, problem: Problem, x: Places) -> None:
        total = problem.total(x)
        if total < self.cutoff:
            self.choice, self.total = problem.whole(x), total


def _expand(node: Problem, best: _Incumbent) -> list[tuple[float, Problem]]:
    """Return nodes that cover all choices of `node` that beat `best`, most promising last."""
    while True:
        if np.prod(node.present().sum(axis=1).astype(float)) <= MAX_ENUMERATED:
            best.offer(node, _enumerate(node))
            return []
        for number in range(2 * PASS_PAIRS):
            tighten(node, forward=number % 2 == 1)
        bounds = subgroup_bounds(node)
        best.offer(node, descend(node, bounds.argmin(axis=1)))
        keep = bounds < best.cutoff
        if not keep.any(axis=1).all():
            return []
        if keep.sum() == node.present().sum():
            return _split(node, keep, bounds)
        node = restrict(node, keep)


def _split(
    node: Problem, keep: Bool[np.ndarray, "n G"], bounds: Float64[np.ndarray, "n G"]
) -> list[tuple[float, Problem]]:
    """Return one node per subgroup of the class whose second best subgroup costs most, cheapest last."""
    split = int(np.argmax(np.sort(bounds, axis=1)[:, 1]))
    children: list[tuple[float, Problem]] = []
    for g in np.argsort(-bounds[split]):
        if keep[split, g]:
            only = keep.copy()
            only[split] = np.arange(keep.shape[1]) == g
            children.append((float(bounds[split, g]), restrict(node, only)))
    return children


def _enumerate(node: Problem) -> Places:
    """Return the best x, the first in lexicographic order among equals."""
    counts = node.present().sum(axis=1)
    totals = np.zeros(1)  # per choice of the classes so far, last class fastest
    for i, count in enumerate(counts):
        columns: list[np.ndarray] = []
        for g in range(count):
            linked = np.zeros(1)
            for j in range(i):
                linked = np.add.outer(linked, -node.gains[i, g, : counts[j], j]).ravel()
            columns.append(totals + linked + node.unary[i, g])
        totals = np.stack(columns, axis=1).ravel()
    return np.array(np.unravel_index(int(np.argmin(totals)), counts) if len(counts) else [], dtype=np.int64)
