"""S³ measured: the actor pool over sizes and noise, against the loop that evaluates the whole objective at
every trial.

The plain loop visits the classes in turn, tries each candidate and keeps the best, until a sweep changes
nothing. Where that takes too long its seconds are a trial's, measured, times the trials of all its sweeps,
which selection_walk.walk counts: it makes the same choices.
"""

import hashlib
import resource
import time
from dataclasses import asdict, dataclass

import numpy as np

from ims3_ray.cluster.machine import Machine
from ims3_ray.config.sections import Select
from ims3_ray.method.s3.objective import Objective, Selection, evaluate
from ims3_ray.method.s3.proof.branch_and_bound import branch_and_bound
from ims3_ray.method.s3.rounds import select, solve
from ims3_ray.method.s3.walk import walk
from ims3_ray.stages.select.features import open_candidates
from ims3_ray.stages.select.pool import ShardPool, Source
from ims3_ray.stages.select.solve import certify_pool, run_tasks
from ims3_ray.storage.artifacts import Directory

from . import instances
from .instances import Kind

PLAIN_LIMIT_S = 120.0
# pairs of a candidate and a class up to which the plain loop's sweeps are counted
COUNTED_VALUES = 25_000_000


@dataclass(frozen=True)
class Case:
    """One problem: C classes of G subgroups."""

    classes: int
    subgroups: int
    noise: float
    kind: Kind = "structured"
    normalization: str = "per_class"


@dataclass(frozen=True)
class Measured:
    """Seconds by part, the most memory of an actor and of the driver, and how good the selection is."""

    case: Case
    shards: int
    read_s: float
    rounds_s: float
    rounds: int
    objective: float
    certificate: str
    certify_s: float
    gap: float | None
    gap_of_gain: float | None
    actor_gb: float
    driver_gb: float
    plain_s: float
    plain_is: str  # "measured", "extrapolated", or "one sweep, extrapolated"
    plain_objective: float | None
    choice_sha: str

    def flat(self) -> dict:
        values = asdict(self)
        return values.pop("case") | values


def measure(
    case: Case, folder: Directory, machine: Machine, certify: str, seed: int = 0, plain: bool = True
) -> Measured:
    """Write the problem's tables below `folder` where they are not there yet, select on the pool, certify,
    compare.
    """
    files = written(case, folder, seed)
    began = time.perf_counter()
    source, pool = opened(
        files,
        Select(restarts=0, normalization=case.normalization, certify=certify, real_images=None),
        machine,
    )
    read = time.perf_counter()
    selection = solve(pool.call("groups"), source.objective)
    solved = time.perf_counter()
    selection = certify_pool(pool.call("groups"), selection, source)
    certified = time.perf_counter()
    memory = max(held for _, held in pool.call("range")("process"))
    driver = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    shards = len(pool.ranges)
    del pool  # its actors end
    plain_s, plain_is, plain_objective = (
        plain_loop(case, seed, source.objective) if plain else (float("nan"), "not run", None)
    )
    return Measured(
        case=case,
        shards=shards,
        read_s=read - began,
        rounds_s=solved - read,
        rounds=selection.rounds,
        objective=selection.objective,
        certificate=selection.certificate,
        certify_s=certified - solved,
        gap=selection.gap,
        gap_of_gain=selection.gap_of_gain,
        actor_gb=memory / 1e9,
        driver_gb=driver / 1e9,
        plain_s=plain_s,
        plain_is=plain_is,
        plain_objective=plain_objective,
        choice_sha=digest(selection),
    )


def written(case: Case, folder: Directory, seed: int) -> Directory:
    """Where the problem's tables lie below `folder`; written where they are not there yet."""
    files = folder / f"{case.kind}-{case.classes}x{case.subgroups}-{case.noise}-{seed}"
    if not files.exists("complete"):
        of_problem = (case.subgroups, case.noise, case.kind, seed)
        run_tasks(instances.write, [(files, ids, *of_problem) for ids in instances.chunks(case.classes)])
        files.write("complete", b"")
    return files


def opened(files: Directory, settings: Select, machine: Machine) -> tuple[Source, ShardPool]:
    """The pool of the tables in `files`, its features read."""
    candidates = open_candidates(files / "candidates", files / "real", ("candidates", "real"))
    source = Source(candidates, tuple(map(str, candidates.classes)), settings, 1, 0)
    pool = ShardPool(source, machine)
    pool.call("range")("process")
    return source, pool


@dataclass(frozen=True)
class Pruned:
    """Rounds that score every class, against rounds that score the nearest ones and a mean."""

    case: Case
    neighbours: int
    exact_s: float
    pruned_s: float
    agreement: float  # share of the classes with the same choice
    exact_objective: float
    pruned_objective: float


def pruning(case: Case, folder: Directory, machine: Machine, neighbours: int) -> Pruned:
    """Both kinds of rounds on one problem, from the closest-to-real start."""
    files, found = written(case, folder, 0), []
    for count in (None, neighbours):
        settings = Select(restarts=0, normalization=case.normalization, neighbours=count, real_images=None)
        source, pool = opened(files, settings, machine)
        began = time.perf_counter()
        found.append(
            (solve(pool.call("groups"), source.objective, walked=False), time.perf_counter() - began)
        )
        del pool
    (exact, exact_s), (pruned, pruned_s) = found
    agreement = float((exact.choice == pruned.choice).mean())
    return Pruned(case, neighbours, exact_s, pruned_s, agreement, exact.objective, pruned.objective)


def digest(selection: Selection) -> str:
    """Eight hexadecimal digits that stand for the choice."""
    return hashlib.sha256(selection.choice.astype("<i8").tobytes()).hexdigest()[:8]


def plain_loop(case: Case, seed: int, objective: Objective) -> tuple[float, str, float | None]:
    """Seconds of the plain loop, whether they were measured or extrapolated, and the objective that it ends
    at.
    """
    candidates, real = instances.vectors(range(case.classes), case.subgroups, case.noise, case.kind, seed)
    closest = np.einsum("cgd,cd->cg", candidates, real).argmax(axis=1)
    num_trials = case.classes * case.subgroups
    sweeps, end = 1, None
    if float(num_trials) * case.classes <= COUNTED_VALUES:
        attractions = np.log(
            1 - np.einsum("cgd,cd->cg", candidates, real, dtype=float) + objective.epsilon
        ).ravel()
        walked, sweeps = walk(list(candidates), attractions, closest, objective)
        end = evaluate(walked, list(candidates), real, objective).total
    choice, trials, began = closest.copy(), 0, time.perf_counter()
    for i in np.tile(np.arange(case.classes), sweeps):
        costs = []
        for choice[i] in range(case.subgroups):
            costs.append(whole_objective(candidates, real, choice, objective))
        choice[i], trials = int(np.argmin(costs)), trials + case.subgroups
        if time.perf_counter() - began > PLAIN_LIMIT_S:
            break
    seconds = time.perf_counter() - began
    if trials == sweeps * num_trials and end is not None:
        return seconds, "measured", end
    kind = "extrapolated" if end is not None else "one sweep, extrapolated"
    return seconds * sweeps * num_trials / trials, kind, end


def whole_objective(
    candidates: np.ndarray, real: np.ndarray, choice: np.ndarray, objective: Objective
) -> float:
    """L of a choice (C,) from nothing: all C·C distances, in float32."""
    chosen = candidates[np.arange(len(choice)), choice]
    attraction = np.log(1 - np.einsum("cd,cd->c", chosen, real) + objective.epsilon).sum()
    distances = 1 - chosen @ chosen.T
    np.fill_diagonal(distances, 1 - objective.epsilon)
    separation = 0.5 * np.log(distances + objective.epsilon).sum()
    return float(objective.alpha * attraction - objective.pair_weight(len(choice)) * separation)


@dataclass(frozen=True)
class Optimality:
    """Many small problems of one kind, each solved by rounds with restarts and proved by branch and bound."""

    case: Case
    instances: int
    restarts: int
    reached: int
    proved: int
    rounds_s: float  # mean a problem
    exact_s: float  # largest


def optimality(case: Case, count: int, restarts: int) -> Optimality:
    """How often the rounds end at the optimum, over seeds 0 … count − 1, in Ray tasks."""
    batches = np.array_split(np.arange(count), 20)
    found = [
        one
        for part in run_tasks(_solve_both, [(case, b.tolist(), restarts) for b in batches if len(b)])
        for one in part
    ]
    rounds, exact, reached, proved = (np.array(column) for column in zip(*found, strict=True))
    return Optimality(
        case, count, restarts, int(reached.sum()), int(proved.sum()), float(rounds.mean()), float(exact.max())
    )


def _solve_both(case: Case, seeds: list[int], restarts: int) -> list[tuple[float, float, bool, bool]]:
    objective, found = Objective(0.4, 0.9, normalization=case.normalization), []
    for seed in seeds:
        candidates, real = instances.vectors(range(case.classes), case.subgroups, case.noise, case.kind, seed)
        began = time.perf_counter()
        rounds = select(list(candidates), real, objective, restarts=restarts, seed=seed)
        middle = time.perf_counter()
        best = branch_and_bound(list(candidates), real, objective, seed=seed)
        slack = 1e-9 * max(1.0, abs(best.objective))
        times = middle - began, time.perf_counter() - middle
        found.append((*times, rounds.objective <= best.objective + slack, best.certificate == "exact"))
    return found
