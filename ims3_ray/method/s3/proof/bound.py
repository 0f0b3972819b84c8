"""Lower bounds of the selection objective: how far any choice can be from the best one.

L is the energy of a complete pairwise graph over the classes,
    L(g) = Σ_i θ_i(g_i) + Σ_{i<j} θ_ij(g_i, g_j),
    θ_i(g) = α log(d(c_{i,g}, r_i) + ε),  θ_ij(g, h) = -w log(d(c_{i,g}, c_{j,h}) + ε).
Costs may be moved between θ_i and θ_ij as long as L stays; then Σ_i min θ_i + Σ_{i<j} min θ_ij bounds L from
below. All methods begin with costs *linearised* at the selection, which leaves 0 in θ_ij where i or j keeps
its choice.

| method | what it does | needs |
|---|---|---|
| `handshake` | each pair gives what it can to its classes (MPLP++, Tourani et al. 2018) | every pair once |
| `trws` | passes over the classes and back (TRW-S, Kolmogorov 2006) | C·C·G messages in one process |
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

import numpy as np
from jaxtyping import Int

from ims3_ray.method.s3.objective import Objective, Selection

from .pairs import Costs, Group, handshake, linear_costs, matchings
from .trws import ROUNDING, trws

GROUP = 256  # classes a group: what one task compares with another group
TRWS_MESSAGES = 10**8  # C·C·G up to which `auto` takes TRW-S (400 MB)
HANDSHAKE_ROWS = 50_000  # C·G up to which `auto` takes the handshake: about a minute
Answer = TypeVar("Answer")
Groups = Sequence[object]  # Groups in the order of their classes, or handles of them that a Run resolves


class Run(Protocol):
    """Results of `function` on each tuple of arguments, in order, wherever they are computed."""

    def __call__(
        self, function: Callable[..., Answer], arguments: Sequence[tuple[object, ...]]
    ) -> list[Answer]: ...


def split_groups(num_classes: int) -> list[range]:
    """The classes of each group, the same for any number of workers."""
    return [range(start, min(start + GROUP, num_classes)) for start in range(0, num_classes, GROUP)]


def certify(
    selection: Selection, groups: Groups, objective: Objective, *, method: str, run: Run
) -> Selection:
    """`selection` with a lower bound, the same however `run` spreads its tasks, and the name of what gave it.

    `method` auto takes the tightest one that the size allows within about a minute, and none above; a
    selection that is known to be exact keeps its own.
    """
    if method == "none" or selection.lower_bound is not None:
        return selection
    num_classes = len(selection.choice)
    weight = objective.pair_weight(num_classes)
    if method == "auto":
        rows = sum(run(Group.num_candidates, [(group,) for group in groups]))
        if num_classes * rows > TRWS_MESSAGES and rows > HANDSHAKE_ROWS:
            return selection
        method = "trws" if num_classes * rows <= TRWS_MESSAGES else "handshake"
    if weight == 0:
        bound = sum(run(Group.closest, [(group, objective.alpha) for group in groups]))
    else:
        bound_of = {"handshake": handshake_bound, "trws": trws_bound}[method]
        bound = weight * bound_of(selection, groups, objective, run)
    rounding = ROUNDING * (abs(selection.objective) + weight * num_classes * (num_classes - 1) / 2)
    assert bound <= selection.objective + rounding, (method, bound, selection.objective)
    return replace(selection, lower_bound=min(bound, selection.objective), certificate=method)


def handshake_bound(selection: Selection, groups: Groups, objective: Objective, run: Run) -> float:
    """Σ_i min θ_i, in units of w, once every pair has given its costs to its two classes.

    Rounds of a tournament: the groups that meet in one are disjoint, so that tasks can run side by side.
    """
    num_classes = len(selection.choice)
    choices, costs = _linearise(selection.choice, groups, objective, run)
    rounds = [list(zip(*ids, strict=True)) for ids in matchings(len(groups), None)]
    for pairs in [[(a, a) for a in range(len(groups))], *rounds]:
        arguments = [
            (groups[a], groups[b], choices[a], choices[b], costs[a], costs[b], objective.epsilon)
            for a, b in pairs
        ]
        for (a, b), (cost_a, cost_b) in zip(pairs, run(handshake, arguments), strict=True):
            costs[a] = cost_a
            if a != b:
                costs[b] = cost_b
    allowance = ROUNDING * num_classes * (num_classes - 1) / 2
    return float(sum(cost.min(axis=0).sum() for cost in costs)) - allowance


def trws_bound(selection: Selection, groups: Groups, objective: Objective, run: Run) -> float:
    """The best of the bounds of TRW-S passes, in units of w. One task: the classes are visited in turn."""
    weight = objective.pair_weight(len(selection.choice))
    enough = selection.objective / weight
    arguments = (selection.choice, objective.alpha / weight, objective.epsilon, enough, *groups)
    return run(trws, [arguments])[0]


def _linearise(
    choice: Int[np.ndarray, " C"], groups: Groups, objective: Objective, run: Run
) -> tuple[list[Int[np.ndarray, " _"]], list[Costs]]:
    """The choice and the linearised costs in units of w of each group."""
    choices = [choice[ids.start : ids.stop] for ids in split_groups(len(choice))]
    of_groups = list(zip(groups, choices, strict=True))
    chosen = np.concatenate(run(Group.chosen, of_groups))
    shared = chosen, objective.alpha / objective.pair_weight(len(choice)), objective.epsilon
    return choices, run(linear_costs, [(*of_group, *shared) for of_group in of_groups])
