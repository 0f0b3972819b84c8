"""What branch and bound works on: the choices that are still open, their costs, and bounds of each of them.

n are the classes that are free, G the most subgroups that one of them has. Costs are in units of w and in
double precision; messages as in trws.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int

from .trws import ABSENT, trws_pass

Places = Int[np.ndarray, " n"]  # of a subgroup among those of each free class


@dataclass(frozen=True)
class Problem:
    """n free classes with at most G subgroups each; the other classes have their choice."""

    constant: float  # what the fixed classes cost
    unary: Float64[np.ndarray, "n G"]  # θ_i with the fixed classes' pairs; ABSENT where no subgroup is
    gains: Float64[np.ndarray, "n G G n"]  # -θ_ij(g, h) as [i, g, h, j], 0 where i = j
    classes: Int[np.ndarray, " n"]  # which are free
    subgroups: Int[np.ndarray, "n G"]  # which they have
    messages: Float64[np.ndarray, "n G n"]
    choice: Int[np.ndarray, " C"]  # of the fixed classes

    def total(self, x: Places) -> float:
        """The cost of taking subgroups `x`."""
        own = np.arange(len(x))
        pairs = self.gains[own[:, None], x[:, None], x, own]
        return self.constant + float(self.unary[own, x].sum() - 0.5 * pairs.sum())

    def present(self) -> Bool[np.ndarray, "n G"]:
        """Which places hold a subgroup."""
        return self.unary < ABSENT

    def whole(self, x: Places) -> Int[np.ndarray, " C"]:
        """The choice that `x` completes."""
        choice = self.choice.copy()
        choice[self.classes] = self.subgroups[np.arange(len(x)), x]
        return choice


def tighten(node: Problem, *, forward: bool) -> float:
    """Improve the messages of `node` in place by one pass over its classes, and give the bound."""
    return trws_pass(node.gains, node.unary.T, node.messages, forward=forward) + node.constant


def subgroup_bounds(node: Problem) -> Float64[np.ndarray, "n G"]:
    """A lower bound of all choices that take a subgroup, after a forward pass.

    The pass leaves, with the share γ_i (θ̂_i - min θ̂_i) given to every later pair, costs of at least 0 above
    its bound: a subgroup adds its own rest and the least of each of its pairs.
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
    """`node` with only the subgroups `keep`, classes with a single one fixed."""
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
    """`x` after moving one class at a time, the one that gains most, until none gains."""
    x, own = x.copy(), np.arange(len(x))
    scores = node.unary - node.gains[:, :, x, own].sum(axis=2)
    while True:
        gains = scores[own, x][:, None] - scores
        i, g = np.unravel_index(int(np.argmax(gains)), gains.shape)
        if gains[i, g] <= 1e-12 * (1 + abs(scores[i, g])):
            return x
        scores += node.gains[:, :, x[i], i] - node.gains[:, :, g, i]
        x[i] = g
