"""Measure S³ selection over sizes and noise, and compare it with a plain loop that evaluates all of L.

    python -m benchmarks select
    python -m benchmarks select --grid 21841x20 --no-plain workers.shards=4
    python -m benchmarks select --optimum 200       how often the rounds reach the optimum

The plain loop visits the classes in turn, tries each candidate and keeps the best, until a sweep changes
nothing. If that takes too long, its seconds are extrapolated: measured seconds per trial, times the trials of
all sweeps. `walk` counts the sweeps: it makes the same choices.
"""

import argparse
import hashlib
import itertools
import re
import resource
import time
from pathlib import Path

import numpy as np

from ims3_ray.cluster.resources import Machine, connect, find_machine
from ims3_ray.config.load import load_settings, parse_overrides
from ims3_ray.config.sections import Select
from ims3_ray.config.settings import Selecting
from ims3_ray.errors import InputError
from ims3_ray.method.s3.bound import certify
from ims3_ray.method.s3.branch_and_bound import branch_and_bound
from ims3_ray.method.s3.descent import walk
from ims3_ray.method.s3.distributed_descent import select_centroids, solve
from ims3_ray.method.s3.objective import Objective, evaluate
from ims3_ray.method.s3.shard import Shard
from ims3_ray.stages.select.candidates import SelectionInput, open_candidates
from ims3_ray.stages.select.run_selection import run_tasks
from ims3_ray.stages.select.shard_actors import ActorShards, ShardPool
from ims3_ray.storage.artifacts import Directory, open_directory

from .problems import Problem
from .tables import Results, as_percent, print_head, print_row

PLAIN_LIMIT_S = 120.0
MAX_COUNTED = 25_000_000  # maximum C·G·C for which the sweeps of the plain loop are counted
ROUNDING = 1e-7  # relative, of an objective: the pool averages and normalises the centroids once more
TASKS = 20  # Ray tasks of --optimum
SPEED = (
    "C × G | instance | cosines 5–95 % | weights | shards | read s | rounds | rounds s | plain loop s | "
    "ratio | bound | bound s | gap | gap of gain | actor GB | driver GB | choice"
)
OPTIMUM = "C × G | instance | weights | restarts | reached | proved | rounds s, mean | exact s, largest"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add, grid = parser.add_argument, "10x5,100x5,1000x5,1000x20"
    add("--grid", default=grid, metavar="CxG,…", help=f"classes × subgroups (default {grid})")
    add("--noise", default="0.1,0.3,0.5", metavar="N,…", help="spread of candidates around their class")
    add("--normalization", default="per_class,none", metavar="NAME,…", help="select.normalization")
    add("--no-structureless", dest="structureless", action="store_false", help="skip the adversarial case")
    add("--no-plain", dest="plain", action="store_false", help="skip the plain loop")
    add("--optimum", type=int, metavar="N", help="compare with the optimum instead, on N problems per kind")


def run(arguments: argparse.Namespace, work: Path) -> list[Results]:
    """Print the table; return one result per problem."""
    overrides = {"select.restarts": 0, "select.real_images": None} | parse_overrides(arguments.overrides)
    weights = arguments.normalization.split(",")
    settings = {
        name: load_settings(Selecting, overrides | {"select.normalization": name}) for name in weights
    }
    sizes = [_size(word) for word in arguments.grid.split(",")]
    try:
        noises = [float(word) for word in arguments.noise.split(",")]
    except ValueError as error:
        raise InputError(f"--noise: {arguments.noise!r} is not a list of numbers; write 0.1,0.3") from error
    problems = [
        Problem(*size, noise, "structured", name)
        for size, name, noise in itertools.product(sizes, settings, noises)
    ]
    if arguments.structureless:
        problems += [
            Problem(*size, 0.0, "structureless", name) for size, name in itertools.product(sizes, settings)
        ]
    if arguments.optimum is not None and (arguments.optimum < 1 or arguments.overrides):
        raise InputError("--optimum: takes a positive number, and no fields")
    connect()
    if arguments.optimum:
        print_head(OPTIMUM)
        return [
            _optimality(problem, arguments.optimum, restarts) for problem in problems for restarts in (0, 8)
        ]
    machine = find_machine(settings[weights[0]].workers)
    print_head(SPEED)
    folder = open_directory(str(work))
    return [
        _speed(problem, folder, settings[problem.normalization].select, machine, arguments.plain)
        for problem in problems
    ]


def _size(word: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", word.strip())
    if not match:
        raise InputError(f"--grid: {word!r} is not a size; write classes x subgroups, such as 1000x5")
    return int(match[1]), int(match[2])


def _speed(problem: Problem, folder: Directory, settings: Select, machine: Machine, plain: bool) -> Results:
    """Seconds by phase, peak memory of an actor and of the driver, and quality bounds of the selection."""
    files = write_problem(problem, folder)
    times = [time.perf_counter()]
    pool = open_candidates(files / "candidates", files / "real", ("candidates", "real"))
    source = SelectionInput(pool, tuple(map(str, pool.classes)), settings, 1, 0)
    shards = ShardPool(source, machine)
    shards.each(lambda _: None)  # the first call reads the features
    times.append(time.perf_counter())
    groups = ActorShards(shards)
    selection = solve(groups, source.objective)
    times.append(time.perf_counter())
    selection = certify(selection, groups, source.objective, method=settings.lower_bound, run=run_tasks)
    times.append(time.perf_counter())
    memory = max(shards.each(lambda _: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0))
    num_shards = len(shards.ranges)
    driver = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    del shards, groups  # the actors end
    plain_s, plain_kind, plain_total = (
        plain_loop(problem, source.objective) if plain else (None, "not run", None)
    )
    read_s, rounds_s, certify_s = np.diff(times).tolist()
    choice_sha = hashlib.sha256(selection.choice.astype("<i8").tobytes()).hexdigest()[:8]
    low, high = problem.cosines()
    print_row(
        problem.size, problem.instance, f"{low:.2f}–{high:.2f}", problem.normalization, num_shards,
        f"{read_s:.1f}",
        selection.rounds, f"{rounds_s:.3f}", f"{plain_s:.3g} ({plain_kind})" if plain_s else "–",
        f"{plain_s / rounds_s:.0f}" if plain_s else "–", selection.certificate, f"{certify_s:.1f}",
        as_percent(selection.gap, 3), as_percent(selection.gap_of_gain, 3), f"{memory / 1e9:.2f}",
        f"{driver / 1e9:.2f}", choice_sha,
    )  # fmt: skip
    total = selection.objective
    if plain_total is not None and total > plain_total + ROUNDING * abs(plain_total):
        print(f"  the plain loop ends lower: {plain_total:.9g} against {total:.9g}", flush=True)
    return vars(problem) | {
        "shards": num_shards,
        "read_s": read_s,
        "rounds_s": rounds_s,
        "rounds": selection.rounds,
        "objective": total,
        "certificate": selection.certificate,
        "certify_s": certify_s,
        "gap": selection.gap,
        "gap_of_gain": selection.gap_of_gain,
        "actor_gb": memory / 1e9,
        "driver_gb": driver / 1e9,
        "plain_s": plain_s,
        "plain_kind": plain_kind,
        "plain_objective": plain_total,
        "choice_sha": choice_sha,
    }


def write_problem(problem: Problem, folder: Directory) -> Directory:
    """The folder of the problem's tables below `folder`; writes them if they are missing."""
    files = folder / f"{problem.kind}-{problem.classes}x{problem.subgroups}-{problem.noise}-0"
    if not files.exists("complete"):
        run_tasks(problem.write, [(files, ids) for ids in problem.chunks()])
        files.write("complete", b"")
    return files


def plain_loop(problem: Problem, objective: Objective) -> tuple[float, str, float | None]:
    """Seconds of the plain loop, "measured" or "extrapolated", and its final objective."""
    candidates, real = problem.vectors()
    pools, closest = list(candidates), np.einsum("cgd,cd->cg", candidates, real).argmax(axis=1)
    num_trials = problem.classes * problem.subgroups
    sweeps, end = 1, None
    if float(num_trials) * problem.classes <= MAX_COUNTED:
        attractions = Shard(0, pools, real, objective, problem.classes).attractions()
        walked, sweeps = walk(pools, attractions, closest, objective)
        end = evaluate(walked, pools, real, objective).total
    choice, trials, start = closest.copy(), 0, time.perf_counter()
    for i in np.tile(np.arange(problem.classes), sweeps):
        costs: list[float] = []
        for choice[i] in range(problem.subgroups):
            costs.append(whole_objective(candidates, real, choice, objective))
        choice[i], trials = int(np.argmin(costs)), trials + problem.subgroups
        if time.perf_counter() - start > PLAIN_LIMIT_S:
            break
    seconds = time.perf_counter() - start
    if trials == sweeps * num_trials and end is not None:
        return seconds, "measured", end
    kind = "extrapolated" if end is not None else "one sweep, extrapolated"
    return seconds * sweeps * num_trials / trials, kind, end


def whole_objective(
    candidates: np.ndarray, real: np.ndarray, choice: np.ndarray, objective: Objective
) -> float:
    """L of a choice (C,), computed from all C·C distances in float32."""
    chosen = candidates[np.arange(len(choice)), choice]
    attraction = np.log(1 - np.einsum("cd,cd->c", chosen, real) + objective.epsilon).sum()
    distances = 1 - chosen @ chosen.T
    np.fill_diagonal(distances, 1 - objective.epsilon)
    separation = 0.5 * np.log(distances + objective.epsilon).sum()
    return float(objective.alpha * attraction - objective.pair_weight(len(choice)) * separation)


def _optimality(problem: Problem, count: int, restarts: int) -> Results:
    """How often the rounds reach the optimum, over seeds 0 … count − 1, in Ray tasks."""
    batches = [batch.tolist() for batch in np.array_split(np.arange(count), TASKS) if len(batch)]
    results = run_tasks(_solve_both, [(problem, batch, restarts) for batch in batches])
    rounds_s, exact_s, reached, proved = zip(*itertools.chain(*results), strict=True)
    result: Results = {
        "instances": count,
        "restarts": restarts,
        "reached": sum(reached),
        "proved": sum(proved),
        "rounds_s": sum(rounds_s) / count,
        "exact_s": max(exact_s),
    }
    shares = f"{sum(reached)}/{count}", f"{sum(proved)}/{count}"
    times = f"{result['rounds_s']:.4f}", f"{result['exact_s']:.3f}"
    print_row(problem.size, problem.instance, problem.normalization, restarts, *shares, *times)
    return result | {"problem": vars(problem)}


def _solve_both(problem: Problem, seeds: list[int], restarts: int) -> list[tuple[float, float, bool, bool]]:
    """Per seed: seconds of rounds and of the exact solver, optimum reached by rounds, optimum proved."""
    objective = Objective(0.4, 0.9, normalization=problem.normalization)
    results: list[tuple[float, float, bool, bool]] = []
    for seed in seeds:
        candidates, real = problem.vectors(seed=seed)
        start = time.perf_counter()
        rounds = select_centroids(list(candidates), real, objective, restarts=restarts, seed=seed)
        middle = time.perf_counter()
        best = branch_and_bound(list(candidates), real, objective, seed=seed)
        slack = 1e-9 * max(1.0, abs(best.objective))
        reached = rounds.objective <= best.objective + slack
        times = middle - start, time.perf_counter() - middle
        results.append((*times, reached, best.certificate == "exact"))
    return results
