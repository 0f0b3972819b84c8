"""Proven minima of the selection objective, for few classes: enumeration, and branch and bound.

A node of the search is a `Problem`: the classes that are still free and the subgroups that they still have.
TRW-S bounds it from below, every subgroup's own bound removes what can't be part of a better choice, and what
is left is enumerated or split at one class. Costs are in units of w and in double precision.
"""

from dataclasses import replace
from itertools import pairwise

import numpy as np

from ims3_ray.method.s3.objective import Objective, Selection, Terms, evaluate, log_distances
from ims3_ray.method.s3.rounds import select

from .pairs import ABSENT
from .problem import Problem, descend, restrict, subgroup_bounds, tighten

MOST_ROWS = 2000  # candidates that branch and bound accepts: its table has their square
ENUMERATED = 50_000  # choices that a node lists instead of splitting
PASS_PAIRS = 3  # passes back and forth before subgroups are removed


def branch_and_bound(
    candidates, real, objective: Objective, *, restarts: int = 8, seed: int = 0, max_nodes: int = 200
) -> Selection:
    """The best choice of all, proved so within 1e-9; or, after `max_nodes` nodes, the best known and its
    bound.

    Raises ValueError for more than MOST_ROWS candidates.
    """
    rows = sum(len(pool) for pool in candidates)
    if rows > MOST_ROWS:
        raise ValueError(
            f"exact selection takes up to {MOST_ROWS} candidates, not {rows}; set solver to rounds"
        )
    first = select(candidates, real, objective, restarts=restarts, seed=seed)
    weight = objective.pair_weight(len(candidates))
    settings = {**first.settings, "max_nodes": max_nodes}
    if first.lower_bound is not None:
        return replace(first, settings=settings)
    if weight == 0:
        return replace(
            first, lower_bound=first.objective, certificate="exact", solver="exact", settings=settings
        )
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
        if np.prod(node.present().sum(axis=1).astype(float)) <= ENUMERATED:
            best.offer(node, _enumerate(node))
            return []
        for number in range(2 * PASS_PAIRS):
            tighten(node, forward=number % 2 == 1)
        bounds = subgroup_bounds(node)
        best.offer(node, descend(node, bounds.argmin(axis=1)))
        keep = bounds < best.enough
        if not keep.any(axis=1).all():
            return []
        if keep.sum() == node.present().sum():
            return _split(node, keep, bounds)
        node = restrict(node, keep)


def _split(node: Problem, keep, bounds) -> list[tuple[float, Problem]]:
    """A node for each subgroup of the class whose second best one costs most, the cheapest last."""
    split = int(np.argmax(np.sort(bounds, axis=1)[:, 1]))
    children = []
    for g in np.argsort(-bounds[split]):
        if keep[split, g]:
            only = keep.copy()
            only[split] = np.arange(keep.shape[1]) == g
            children.append((float(bounds[split, g]), restrict(node, only)))
    return children


def _enumerate(node: Problem) -> np.ndarray:
    """The best x (n,) of all, the first in lexicographic order among equals."""
    counts = node.present().sum(axis=1)
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


def exhaustive(
    candidates, real, objective: Objective, *, limit: int = 20_000_000
) -> tuple[np.ndarray, Terms]:
    """The best of all choices, the first in lexicographic order among equals, and its terms.

    Raises ValueError for more than `limit` choices.
    """
    number = np.prod([float(len(pool)) for pool in candidates])
    if number > limit:
        raise ValueError(
            f"exhaustive search allows {limit} choices, not {number:.3g}; use fewer classes or subgroups"
        )
    unary, pairs, offsets = pair_tables(candidates, real, objective)
    slices = [slice(first, last) for first, last in pairwise(offsets)]
    tables = [[pairs[own, other] for other in slices[:i]] for i, own in enumerate(slices)]
    choice = _best_of_all([unary[own] for own in slices], tables)
    return choice, evaluate(choice, candidates, real, objective)


def pair_tables(candidates, real, objective: Objective) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """θ_i(g) (R,), θ_ij(g, h) (R, R) in double precision, 0 within a class, and where each class begins (C +
    1,).

    Where partners are pools, their mean is part of θ_i and θ_ij is 0.
    """
    sizes = np.array([len(pool) for pool in candidates])
    classes = np.repeat(np.arange(len(sizes)), sizes)
    rows = np.concatenate(candidates).astype(np.float64)
    distances = 1 - np.einsum("rd,rd->r", rows, np.asarray(real, np.float64)[classes])
    unary = objective.alpha * np.log(np.maximum(distances, 0) + objective.epsilon)
    pairs = -objective.pair_weight(len(sizes)) * log_distances(
        rows, rows, classes, classes, objective.epsilon
    )
    if objective.partners == "pool":
        unary, pairs = unary + 0.5 * pairs @ np.repeat(1 / sizes, sizes), np.zeros_like(pairs)
    return unary, pairs, np.concatenate([[0], np.cumsum(sizes)])
