"""Beyond the paper: choose K single images of a class's pool instead of one of its ready-made subgroups.

A choice S_i of K of the images (N_i, D) of class i has the centroid c_i = s_i / |s_i|, s_i = Σ_{n in S_i} f_n, and
    L(S) = α Σ_i log(d(c_i, r_i) + ε) - w Σ_{i<j} log(d(c_i, c_j) + ε) - κ Σ_i coverage(S_i),
the objective of selection.py and, with a weight κ of its own, how well the chosen images cover the real ones, which one
centroid does not see:
    coverage(S) = mean over real x of max_{n in S} v(n, x).
v(n, x) is 1 where n lies in the k-nearest-neighbour ball of x and 0 elsewhere (`ball_table`: the covered share), or
1 - |f_n - x| / 2 (`closeness_table`: with the mean distance to the nearest chosen image as what is minimised, k-medoids
among the candidates; Kaufman & Rousseeuw 1990).

A class swaps images one by one against the other classes' centroids; classes move together in the rounds of
selection_rounds.py. The outcome is a choice that no single swap improves.
"""

import numpy as np

from ims3_ray.method.coverage import neighbour_distances

from .objective import COINCIDENT, Objective, Selection, Terms, evaluate, pair_separation, refuse_coincident
from .rounds import descend, local_call
from .shard import History, Moves, check_candidates, check_counts, split_classes

SHORTLIST = 64  # swaps, the best by first order, that are computed before all are
BLOCK_VALUES = 1_000_000  # of a block of swaps times classes


def select_images(images, real, objective: Objective, size: int, **options) -> Selection:
    """Choose `size` of `images[i]` (N_i, D) per class against the `real` centroids (C, D), all of unit
    length.

    Options: coverage and covers (see ImageShard), start (C, size) to begin from, num_shards.
    """
    check_counts(images, real)
    start, num_shards = options.pop("start", None), options.pop("num_shards", 1)
    covers = options.pop("covers", None)
    shards = [
        ImageShard(
            ids.start,
            images[ids.start : ids.stop],
            real[ids.start : ids.stop],
            objective,
            len(images),
            size,
            covers=None if covers is None else covers[ids.start : ids.stop],
            **options,
        )
        for ids in split_classes(len(images), num_shards)
    ]
    return solve_images(local_call(shards), objective, start=start, **options)


def solve_images(call, objective: Objective, *, start=None, coverage: float = 0.0) -> Selection:
    """Swaps from `start` (C, K), or from each class's images nearest to its real centroid. `call`: see solve."""
    closest = np.concatenate(call("closest"))
    num_classes, size = closest.shape
    weight = objective.pair_weight(num_classes)

    def terms_of(choice) -> Terms:
        attraction, covered = np.concatenate(call("own_terms", choice)).sum(axis=0).tolist()
        separation = pair_separation(np.concatenate(call("centroids", choice)), objective.epsilon)
        total = objective.alpha * attraction - weight * separation - coverage * covered
        return Terms(attraction, separation, total, covered)

    first = closest if start is None else np.asarray(start, dtype=np.int64)
    if first.shape != closest.shape:
        raise ValueError(
            f"start must hold {size} images for each of {num_classes} classes, not {first.shape}"
        )
    choice, _, rounds = descend(call, first, np.concatenate(call("centroids", first)), objective)
    settings = {**vars(objective), "unit": "image", "coverage": coverage, "size": size}
    total = terms_of(closest).total
    return Selection(np.sort(choice), terms_of(choice), total, None, "none", "swaps", rounds, 0, settings)


def evaluate_images(
    choice, images, real, objective: Objective, *, coverage: float = 0.0, covers=None
) -> Terms:
    """L of `choice` (C, K) by its definition, in double precision."""
    sums = [
        pool[list(chosen)].astype(np.float64).sum(axis=0) for pool, chosen in zip(images, choice, strict=True)
    ]
    centroids = [(s / np.linalg.norm(s))[None] for s in sums]
    terms = evaluate(np.zeros(len(images), dtype=int), centroids, real, objective)
    covered = 0.0
    if covers is not None:
        covered = float(sum(covered_share(c, list(chosen)) for c, chosen in zip(covers, choice, strict=True)))
    return Terms(terms.attraction, terms.separation, terms.total - coverage * covered, covered)


def ball_table(images, real_images, k: int = 5) -> np.ndarray:
    """Which of `images` (N, D) lie in the ball of which of a class's `real_images` (M, D): (N, M) of 0 and 1.
    Unit length.

    A ball reaches to the k-th nearest other real image.
    """
    return (_distances(images, real_images) <= neighbour_distances(real_images, k)).astype(np.float64)


def closeness_table(images, real_images) -> np.ndarray:
    """1 - |f - x| / 2 of `images` (N, D) and a class's `real_images` (M, D), of unit length: (N, M) from 0 to
    1.
    """
    return 1 - _distances(images, real_images) / 2


def _distances(images, real_images) -> np.ndarray:
    products = images.astype(np.float64) @ real_images.astype(np.float64).T
    return np.sqrt(np.maximum(2 - 2 * products, 0))


def covered_share(covers, chosen) -> float:
    """coverage(S) of `chosen` rows of a table (N, M)."""
    return float(covers[chosen].max(axis=0).mean())


class ImageShard:
    """Images (N_i, D) of the classes first_class, first_class + 1, …; the counterpart of
    selection_shard.Shard.

    `real` (n, D) are real centroids, `size` is K, `covers` holds each class's table v (N_i, M) and `coverage`
    is κ.
    """

    def __init__(
        self,
        first_class,
        images,
        real,
        objective: Objective,
        num_classes,
        size,
        *,
        coverage: float = 0.0,
        covers=None,
    ):
        check_candidates(images, real, first_class)
        for i, pool in enumerate(images, first_class):
            if len(pool) < size:
                raise ValueError(
                    f"class {i} has {len(pool)} images; size {size} needs at least {size}, sample more"
                )
        if objective.partners != "selected":
            raise ValueError(
                f"partners must be selected where single images are chosen, not {objective.partners}"
            )
        if coverage and covers is None:
            raise ValueError(f"coverage {coverage} needs the real images' features; set it to 0 or give them")
        self._first, self._size, self._objective, self._coverage = first_class, size, objective, coverage
        self._weight = objective.pair_weight(num_classes)
        self._images, self._real = images, np.asarray(real, dtype=np.float64)
        self._covers = [np.zeros((len(pool), 1)) for pool in images] if covers is None else covers

    def closest(self) -> np.ndarray:
        """The `size` images (n, size) of each class nearest to its real centroid."""
        nearest = [
            np.argsort(-(pool @ r), kind="stable") for pool, r in zip(self._images, self._real, strict=True)
        ]
        return np.sort([order[: self._size] for order in nearest])

    def centroids(self, choice) -> np.ndarray:
        """The centroids (n, D) float32 of this shard's part of `choice` (C, K)."""
        return np.stack(
            [_unit(pool[chosen]) for pool, chosen in zip(self._images, self._own(choice), strict=True)]
        )

    def own_terms(self, choice) -> np.ndarray:
        """log(d(c, r) + ε) and coverage, (n, 2)."""
        distances = 1 - np.einsum("cd,cd->c", self.centroids(choice).astype(np.float64), self._real)
        refuse_coincident(
            distances[:, None], self._first + np.arange(len(distances)), None, self._objective.epsilon
        )
        logs = np.log(np.maximum(distances, 0) + self._objective.epsilon)
        covered = [
            covered_share(c, chosen) for c, chosen in zip(self._covers, self._own(choice), strict=True)
        ]
        return np.stack([logs, covered], axis=1)

    def propose(self, history: History, tolerance: float) -> Moves:
        """For each class the images that it swaps to, one swap after another, while the other classes stay."""
        choice, centroids = history.end()
        moving = []
        for k, before in enumerate(self._own(choice)):
            pool = self._pool(k, np.delete(centroids, self._first + k, axis=0))
            after, gain = pool.improve(before, tolerance)
            if gain > tolerance:
                own = pool.own_cost(after) - pool.own_cost(before)
                moving.append((self._first + k, after, gain, own, _unit(self._images[k][after])))
        if not moving:
            none = np.zeros(0)
            return Moves(none.astype(int), np.zeros((0, self._size), int), none, none, centroids[:0])
        return Moves(*(np.array(column) for column in zip(*moving, strict=True)))

    def _pool(self, k: int, others) -> "_Pool":
        of_class = self._images[k], self._real[k], others
        return _Pool(*of_class, self._objective, self._weight, self._covers[k], self._coverage)

    def _own(self, values):
        return values[self._first : self._first + len(self._images)]


class _Pool:
    """One class's images against the centroids of the others: products, in double precision, and swaps."""

    def __init__(self, images, real, others, objective: Objective, weight: float, covers, kappa: float):
        self.epsilon, self.alpha, self.covers, self.kappa = objective.epsilon, objective.alpha, covers, kappa
        self.products = np.column_stack(
            [images.astype(np.float64) @ real, (images @ others.T).astype(np.float64)]
        )
        self.gram = (images @ images.T).astype(np.float64)
        self.weights = np.concatenate([[objective.alpha], np.full(len(others), -weight)])

    def improve(self, chosen, tolerance: float) -> tuple[np.ndarray, float]:
        """`chosen` (K,) after up to K of the best swaps that gain more than `tolerance` each, and what they
        gain.
        """
        chosen, total = chosen.copy(), 0.0
        for _ in range(len(chosen)):
            free = np.setdiff1d(np.arange(len(self.gram)), chosen)
            if not len(free):
                break
            first_order = self._first_order(chosen, free)
            few = np.sort(np.argsort(first_order, axis=None, kind="stable")[:SHORTLIST])
            swap, gain = self._best(chosen, free, few, first_order.shape)
            if gain <= tolerance:
                swap, gain = self._best(chosen, free, np.arange(first_order.size), first_order.shape)
            if gain <= tolerance:
                break
            chosen[swap[0]], total = free[swap[1]], total + gain
            chosen.sort()
        return chosen, total

    def own_cost(self, chosen) -> float:
        """α log(d(c, r) + ε) - κ coverage."""
        cosine = self.products[chosen, 0].sum() / np.sqrt(self.gram[np.ix_(chosen, chosen)].sum())
        covered = covered_share(self.covers, chosen)
        return self.alpha * np.log(max(1 - cosine, COINCIDENT) + self.epsilon) - self.kappa * covered

    def _best(self, chosen, free, swaps, shape) -> tuple[tuple[int, int], float]:
        """The best of the `swaps`, flat indices into (K, N - K), by the exact change of L, and its gain."""
        best, least = (0, 0), np.inf
        squared = self.gram[np.ix_(chosen, chosen)].sum()
        sums, reach = self.products[chosen].sum(axis=0), self.gram[chosen].sum(axis=0)
        coverage = self._coverage_changes(chosen, free)
        now = self._costs(sums[None], squared)[0]
        block = max(1, BLOCK_VALUES // len(sums))
        for start in range(0, len(swaps), block):
            a, b = np.unravel_index(swaps[start : start + block], shape)
            out, into = chosen[a], free[b]
            moved = self.gram[out, out] + self.gram[into, into] - 2 * self.gram[out, into]
            norms = squared + 2 * (reach[into] - reach[out]) + moved
            changes = self._costs(sums - self.products[out] + self.products[into], norms) - now
            changes -= self.kappa * coverage[a, b]
            k = int(np.argmin(changes))
            if changes[k] < least:
                best, least = (int(a[k]), int(b[k])), float(changes[k])
        return best, -least

    def _costs(self, sums, squared) -> np.ndarray:
        """α log(d(c, r) + ε) - w Σ_j log(d(c, c_j) + ε) of sums of products (m, C) and squared lengths |s|²
        (m,).
        """
        cosines = sums / np.sqrt(squared)[..., None]
        return np.log(np.maximum(1 - cosines, COINCIDENT) + self.epsilon) @ self.weights

    def _first_order(self, chosen, free) -> np.ndarray:
        """The change of L by every swap (K, N - K), up to first order in the centroid."""
        length = np.sqrt(self.gram[np.ix_(chosen, chosen)].sum())
        cosines = self.products[chosen].sum(axis=0) / length
        slopes = -self.weights / (np.maximum(1 - cosines, COINCIDENT) + self.epsilon)
        along = self.gram[:, chosen].sum(axis=1) / length  # f·c
        values = (self.products @ slopes - along * (cosines @ slopes)) / length
        return values[free] - values[chosen][:, None] - self.kappa * self._coverage_changes(chosen, free)

    def _coverage_changes(self, chosen, free) -> np.ndarray:
        return (
            coverage_changes(self.covers, chosen, free) if self.kappa else np.zeros((len(chosen), len(free)))
        )


def coverage_changes(covers, chosen, free) -> np.ndarray:
    """Change of coverage(S) (K, N - K) when one of `chosen` (K,) makes way for one of `free`; covers (N, M).

    Where the one that goes is a real image's best, its second best or the new one takes over; elsewhere the
    new one only adds (Schubert & Rousseeuw 2019, FastPAM1).
    """
    values = np.sort(covers[chosen], axis=0)
    best = values[-1]
    second = values[-2] if len(chosen) > 1 else np.zeros_like(best)
    new = covers[free]
    gained = np.maximum(new - best, 0).sum(axis=1)
    taken_over = np.minimum(np.maximum(second, new) - best, 0)  # (N - K, M), for images that lose their best
    is_best = covers[chosen].argmax(axis=0) == np.arange(len(chosen))[:, None]
    return (gained + is_best.astype(np.float64) @ taken_over.T) / len(best)


def _unit(rows) -> np.ndarray:
    total = rows.astype(np.float64).sum(axis=0)
    return (total / np.linalg.norm(total)).astype(np.float32)
