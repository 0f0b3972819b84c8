"""Lower bounds of the selection objective: how far any choice can be from the best one.

L is the energy of a complete pairwise graph over the classes,
    L(g) = Σ_i θ_i(g_i) + Σ_{i<j} θ_ij(g_i, g_j),
    θ_i(g) = α log(d(c_{i,g}, r_i) + ε),  θ_ij(g, h) = -w log(d(c_{i,g}, c_{j,h}) + ε).
Costs may be moved between θ_i and θ_ij as long as L stays; then Σ_i min θ_i + Σ_{i<j} min θ_ij bounds L from below.
All methods begin with the costs *linearised* at the selection, which leaves 0 in θ_ij where i or j keeps its choice.

| method | what it does | needs |
|---|---|---|
| `half_pair` | each class takes the better half of each of its pairs | every pair once, in any order |
| `handshake` | each pair in turn gives what it can to its classes (MPLP++, Tourani et al. 2018) | every pair once |
| `trws` | passes over the classes in order and back (TRW-S, Kolmogorov 2006) | C·C·G messages in one process |
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ims3_ray.method.s3.objective import Objective, Selection

from .pairs import Group, half_pair, handshake, linear_costs, matchings
from .trws import trws

GROUP = 256  # classes a group: what one task compares with another group
TRWS_MESSAGES = 10**8  # C·C·G up to which `auto` takes TRW-S (400 MB)
HANDSHAKE_ROWS = 50_000  # C·G up to which `auto` takes the handshake: about a minute
ROUNDING = 1e-6  # of a pair's weight, allowed for float32 products and logarithms


def split_groups(num_classes: int) -> list[range]:
    """The classes of each group, the same for any number of workers."""
    return [range(start, min(start + GROUP, num_classes)) for start in range(0, num_classes, GROUP)]


def make_groups(candidates, attractions) -> list[Group]:
    """Groups of `candidates`, a list of (G_i, D) by class, with `attractions` (R,) as the shards give them."""
    offsets = np.concatenate([[0], np.cumsum([len(pool) for pool in candidates])])
    return [
        Group(
            ids.start,
            list(candidates[ids.start : ids.stop]),
            attractions[offsets[ids.start] : offsets[ids.stop]],
        )
        for ids in split_groups(len(candidates))
    ]


def run_here(function: Callable, arguments: list[tuple]) -> list:
    """Results of `function` on each tuple of `arguments`, in order: the plain form of a cluster's tasks."""
    return [function(*values) for values in arguments]


def certify(
    selection: Selection,
    groups: list,
    objective: Objective,
    *,
    method: str = "auto",
    run: Callable = run_here,
) -> Selection:
    """`selection` with a lower bound and the name of what gave it.

    `groups` are Groups in the order of their classes, or handles of them that `run` resolves; the bound is
    the same however `run` spreads its tasks. `auto` takes the tightest method that the size allows within
    about a minute, and none above; a selection that is known to be exact keeps its own.
    """
    methods = {"half_pair": half_pair_bound, "handshake": handshake_bound, "trws": trws_bound}
    if method not in ("auto", "none", *methods):
        raise ValueError(f"certify must be one of auto, none, {', '.join(methods)}, not {method!r}")
    if method == "none" or selection.lower_bound is not None:
        return selection
    num_classes = len(selection.choice)
    weight = objective.pair_weight(num_classes)
    if method == "auto":
        rows = sum(run(Group.num_candidates, [(group,) for group in groups]))
        method = (
            "trws"
            if num_classes * rows <= TRWS_MESSAGES
            else "handshake"
            if rows <= HANDSHAKE_ROWS
            else "none"
        )
        if method == "none":
            return selection
    if weight == 0:
        bound = sum(run(Group.closest, [(group, objective.alpha) for group in groups]))
    else:
        bound = weight * methods[method](selection, groups, objective, run)
    rounding = ROUNDING * (abs(selection.objective) + weight * num_classes * (num_classes - 1) / 2)
    assert bound <= selection.objective + rounding, (
        f"{method} gives {bound} above a choice of {selection.objective}"
    )
    return replace(selection, lower_bound=min(bound, selection.objective), certificate=method)


def half_pair_bound(selection: Selection, groups, objective: Objective, run) -> float:
    """Σ_i min_g [θ_i(g) + ½ Σ_j min_h θ_ij(g, h)], in units of w."""
    choices, costs = _linearise(selection, groups, objective, run)
    pairs = [(a, b) for a in range(len(groups)) for b in range(a, len(groups))]
    arguments = [(groups[a], groups[b], choices[a], choices[b], objective.epsilon) for a, b in pairs]
    for (a, b), (share_a, share_b) in zip(pairs, run(half_pair, arguments), strict=True):
        costs[a] = costs[a] + share_a
        if a != b:
            costs[b] = costs[b] + share_b
    return _total(costs, selection)


def handshake_bound(selection: Selection, groups, objective: Objective, run) -> float:
    """Σ_i min θ_i, in units of w, once every pair has given its costs to its two classes.

    Rounds of a tournament: the groups that meet in a round are disjoint, so that their tasks can run side by
    side.
    """
    choices, costs = _linearise(selection, groups, objective, run)
    everyone = np.arange(len(groups))
    for round_a, round_b in [(everyone, everyone), *matchings(len(groups), None)]:
        arguments = [
            (groups[a], groups[b], choices[a], choices[b], costs[a], costs[b], objective.epsilon)
            for a, b in zip(round_a, round_b, strict=True)
        ]
        for a, b, (cost_a, cost_b) in zip(round_a, round_b, run(handshake, arguments), strict=True):
            costs[a] = cost_a
            if a != b:
                costs[b] = cost_b
    return _total(costs, selection)


def trws_bound(selection: Selection, groups, objective: Objective, run) -> float:
    """The best of the bounds of TRW-S passes, in units of w. One task: the classes are visited in turn."""
    weight = objective.pair_weight(len(selection.choice))
    enough = selection.objective / weight
    arguments = (selection.choice, objective.alpha / weight, objective.epsilon, enough, *groups)
    return run(trws, [arguments])[0]


def _linearise(selection, groups, objective, run) -> tuple[list, list]:
    """The choice and the linearised costs (G, n) in units of w of each group."""
    num_classes = len(selection.choice)
    choices = [selection.choice[ids.start : ids.stop] for ids in split_groups(num_classes)]
    chosen = np.concatenate(run(Group.chosen, list(zip(groups, choices, strict=True))))
    ratio = objective.alpha / objective.pair_weight(num_classes)
    costs = run(
        linear_costs, [(g, c, chosen, ratio, objective.epsilon) for g, c in zip(groups, choices, strict=True)]
    )
    return choices, costs


def _total(costs, selection) -> float:
    num_classes = len(selection.choice)
    allowance = ROUNDING * num_classes * (num_classes - 1) / 2
    return float(sum(cost.min(axis=0).sum() for cost in costs)) - allowance
