"""Proven minima of the selection objective, for few classes: enumeration, and branch and bound.

A node of the search is a `Problem`: the classes that are still free and the subgroups that they still have. TRW-S
bounds it from below, every subgroup's own bound removes what can't be part of a better choice, and what is left is
enumerated or split at one class. Costs are in units of w, as in certificate_trws.py, and in double precision.
"""

from dataclasses import dataclass, replace

import numpy as np

from .certificate_pairs import ABSENT
from .certificate_trws import trws_pass
from .selection import Objective, Selection, Terms, evaluate, log_distances
from .selection_rounds import select

MOST_ROWS = 2000  # candidates that branch and bound accepts: its table has their square
ENUMERATED = 50_000  # choices that a node lists instead of splitting
PASS_PAIRS = 3  # passes back and forth before subgroups are removed


@dataclass(frozen=True)
class Problem:
    """n free classes with at most G subgroups each; the other classes have their choice."""

    constant: float  # what the fixed classes cost
    unary: np.ndarray  # (n, G) θ_i with the fixed classes' pairs; ABSENT where a class has fewer subgroups
    gains: np.ndarray  # (n, G, G, n) -θ_ij(g, h) as [i, g, h, j], 0 where i = j
    classes: np.ndarray  # (n,) which classes are free
    subgroups: np.ndarray  # (n, G) which subgroups they have
    messages: np.ndarray  # (n, G, n), see certificate_trws.py
    choice: np.ndarray  # (C,) of the fixed classes

    def total(self, x) -> float:
        """The cost of taking subgroups x (n,), by position."""
        own = np.arange(len(x))
        pairs = self.gains[own[:, None], x[:, None], x, own]
        return self.constant + float(self.unary[own, x].sum() - 0.5 * pairs.sum())

    def whole(self, x) -> np.ndarray:
        """The choice (C,) that x (n,) completes."""
        choice = self.choice.copy()
        choice[self.classes] = self.subgroups[np.arange(len(x)), x]
        return choice


def branch_and_bound(
    candidates, real, objective: Objective, *, restarts: int = 8, seed: int = 0, max_nodes: int = 2000
) -> Selection:
    """The best choice of all, proved so within 1e-9; or, after `max_nodes` nodes, the best known and its bound.

    Raises ValueError for more than MOST_ROWS candidates.
    """
    rows = sum(len(pool) for pool in candidates)
    if rows > MOST_ROWS:
        raise ValueError(f"exact selection takes up to {MOST_ROWS} candidates, not {rows}; set solver to rounds")
    first = select(candidates, real, objective, restarts=restarts, seed=seed)
    weight = objective.pair_weight(len(candidates))
    settings = {**first.settings, "max_nodes": max_nodes}
    if first.lower_bound is not None:
        return replace(first, settings=settings)
    if weight == 0:
        return replace(first, lower_bound=first.objective, certificate="exact", solver="exact", settings=settings)
    choice, bound = _search(whole_problem(candidates, real, objective), first.choice, max_nodes)
    terms = evaluate(choice, candidates, real, objective)
    proved = bound is None
    return replace(
        first,
        choice=choice,
        terms=terms,
        lower_bound=terms.total if proved else min(weight * bound, terms.total),
        certificate="exact" if proved else "branch and bound",
        solver="exact",
        settings=settings,
    )


def whole_problem(candidates, real, objective: Objective) -> Problem:
    """All classes free."""
    unary, pairs, offsets = pair_tables(candidates, real, objective)
    weight = objective.pair_weight(len(candidates))
    sizes = np.diff(offsets)
    position = np.arange(sizes.max())
    present = position < sizes[:, None]
    rows = np.where(present, offsets[:-1, None] + position, offsets[:-1, None])
    return Problem(
        constant=0.0,
        unary=np.where(present, unary[rows] / weight, ABSENT),
        gains=-pairs[rows[:, :, None, None], rows.T] / weight,
        classes=np.arange(len(sizes)),
        subgroups=np.tile(position, (len(sizes), 1)),
        messages=np.zeros((*rows.shape, len(sizes))),
        choice=np.zeros(len(sizes), dtype=np.int64),
    )


def _search(problem: Problem, choice, max_nodes: int) -> tuple[np.ndarray, float | None]:
    """The best choice found, and the bound of what was left open, or None where nothing was."""
    best = _Best(choice, problem.total(choice))
    open_nodes = [(-np.inf, problem)]
    for _ in range(max_nodes):
        if not open_nodes:
            return best.choice, None
        bound, node = open_nodes.pop()
        if bound < best.enough:
            open_nodes += _expand(node, best)
    left = min((bound for bound, _ in open_nodes), default=np.inf)
    return best.choice, None if left >= best.enough else left


class _Best:
    """The best choice so far; what costs `enough` or more is not worth a look."""

    def __init__(self, choice, total):
        self.choice, self.total = choice, total

    @property
    def enough(self) -> float:
        return self.total - 1e-9 * max(1.0, abs(self.total))

    def offer(self, problem: Problem, x) -> None:
        total = problem.total(x)
        if total < self.enough:
            self.choice, self.total = problem.whole(x), total


def _expand(node: Problem, best: _Best) -> list[tuple[float, Problem]]:
    """Nodes that together hold every choice of `node` that beats `best`, the most promising last."""
    while True:
        if np.prod((node.unary < ABSENT).sum(axis=1).astype(float)) <= ENUMERATED:
            best.offer(node, _enumerate(node))
            return []
        for number in range(2 * PASS_PAIRS):
            _pass(node, forward=number % 2 == 1)
        bounds = subgroup_bounds(node)
        best.offer(node, _descend(node, bounds.argmin(axis=1)))
        keep = bounds < best.enough
        if not keep.any(axis=1).all():
            return []
        removed = (node.unary < ABSENT).sum() - keep.sum()
        node = restrict(node, keep)
        if removed == 0:
            break
        bounds = None
    regret = np.sort(bounds, axis=1)[:, 1]
    split = int(np.argmax(np.where(regret < ABSENT / 2, regret, -np.inf)))
    children = []
    for g in np.argsort(-bounds[split]):
        if keep[split, g]:
            only = keep.copy()
            only[split] = np.arange(keep.shape[1]) == g
            children.append((float(bounds[split, g]), restrict(node, only)))
    return children


def _pass(node: Problem, *, forward: bool) -> float:
    def gains(start, stop, others):
        return node.gains[start:stop, :, :, others].copy()

    return trws_pass(gains, node.unary.T, node.messages, forward=forward) + node.constant


def subgroup_bounds(node: Problem) -> np.ndarray:
    """A lower bound (n, G) of all choices that take a subgroup, after a forward pass.

    The pass leaves, with the share γ_i (θ̂_i - min θ̂_i) given to every later pair, costs of at least 0 above its bound:
    a subgroup adds its own rest and the least of each of its pairs.
    """
    num = len(node.unary)
    later = np.arange(num - 1, -1, -1)[:, None]
    reached = node.unary + node.messages.sum(axis=2)
    above = reached - reached.min(axis=1, keepdims=True)
    share = above / np.maximum(np.maximum(later, num - 1 - later), 1)
    rest = np.where(node.unary < ABSENT, np.maximum(above - later * share, 0), ABSENT)
    costs = share[:, :, None, None] - node.gains - node.messages[:, :, None, :] - node.messages.transpose(2, 1, 0)[:, None]
    least = costs.min(axis=(1, 2))
    earlier = np.triu(np.ones((num, num), dtype=bool), 1)
    bound = node.constant + reached.min(axis=1).sum() + least[earlier].sum()
    costs -= least[:, None, None, :]
    costs = np.where(earlier[:, None, None, :], costs, costs.transpose(3, 2, 1, 0))
    costs[np.arange(num), :, :, np.arange(num)] = 0
    reach = (costs + rest.T).min(axis=2)
    reach[np.arange(num), :, np.arange(num)] = 0
    return bound + rest + reach.sum(axis=2)


def restrict(node: Problem, keep) -> Problem:
    """`node` with only the subgroups `keep` (n, G), classes with a single one fixed."""
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


def _descend(node: Problem, x) -> np.ndarray:
    """x (n,) after moving one class at a time, the one that gains most, until none gains."""
    x, own = x.copy(), np.arange(len(x))
    scores = node.unary - node.gains[:, :, x, own].sum(axis=2)
    while True:
        gains = scores[own, x][:, None] - scores
        i, g = np.unravel_index(int(np.argmax(gains)), gains.shape)
        if gains[i, g] <= 1e-12 * (1 + abs(scores[i, g])):
            return x
        scores += node.gains[:, :, x[i], i] - node.gains[:, :, g, i]
        x[i] = g


def _enumerate(node: Problem) -> np.ndarray:
    """The best x (n,) of all, the first in lexicographic order among equals."""
    counts = (node.unary < ABSENT).sum(axis=1)
    pairs = [[-node.gains[i, : counts[i], : counts[j], j] for j in range(i)] for i in range(len(counts))]
    return _best_of_all([row[:n] for row, n in zip(node.unary, counts, strict=True)], pairs)


def _best_of_all(unary: list, pairs: list) -> np.ndarray:
    """The x (n,) of least Σ_i unary[i][x_i] + Σ_{j<i} pairs[i][j][x_i, x_j]."""
    totals = np.zeros(1)  # of every choice of the classes so far, the last class varying fastest
    for i, costs in enumerate(unary):
        columns = []
        for g, cost in enumerate(costs):
            linked = np.zeros(1)
            for table in pairs[i]:
                linked = np.add.outer(linked, table[g]).ravel()
            columns.append(totals + linked + cost)
        totals = np.stack(columns, axis=1).ravel()
    sizes = [len(costs) for costs in unary]
    return np.array(np.unravel_index(int(np.argmin(totals)), sizes) if sizes else [], dtype=np.int64)


def exhaustive(candidates, real, objective: Objective, *, limit: int = 20_000_000) -> tuple[np.ndarray, Terms]:
    """The best of all choices, the first in lexicographic order among equals, and its terms.

    Raises ValueError for more than `limit` choices.
    """
    number = np.prod([float(len(pool)) for pool in candidates])
    if number > limit:
        raise ValueError(f"exhaustive search allows {limit} choices, not {number:.3g}; use fewer classes or subgroups")
    unary, pairs, offsets = pair_tables(candidates, real, objective)
    slices = [slice(a, b) for a, b in zip(offsets[:-1], offsets[1:], strict=True)]
    tables = [[pairs[own, other] for other in slices[:i]] for i, own in enumerate(slices)]
    choice = _best_of_all([unary[own] for own in slices], tables)
    return choice, evaluate(choice, candidates, real, objective)


def pair_tables(candidates, real, objective: Objective) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """θ_i(g) (R,), θ_ij(g, h) (R, R) in double precision, 0 within a class, and where each class begins (C + 1,).

    Where partners are pools, their mean is part of θ_i and θ_ij is 0.
    """
    sizes = np.array([len(pool) for pool in candidates])
    classes = np.repeat(np.arange(len(sizes)), sizes)
    rows = np.concatenate(candidates).astype(np.float64)
    distances = 1 - np.einsum("rd,rd->r", rows, np.asarray(real, np.float64)[classes])
    unary = objective.alpha * np.log(np.maximum(distances, 0) + objective.epsilon)
    pairs = -objective.pair_weight(len(sizes)) * log_distances(rows, rows, classes, classes, objective.epsilon)
    if objective.partners == "pool":
        unary, pairs = unary + 0.5 * pairs @ np.repeat(1 / sizes, sizes), np.zeros_like(pairs)
    return unary, pairs, np.concatenate([[0], np.cumsum(sizes)])
