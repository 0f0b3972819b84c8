"""`bench select`, S³ measured: the actor pool over sizes and noise, against the loop that evaluates all of L.

The plain loop visits the classes in turn, tries each candidate and keeps the best, until a sweep changes
nothing. Where that takes too long its seconds are a trial's, measured, times the trials of all its sweeps,
which `walk` counts: it makes the same choices.
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
from ims3_ray.method.s3.descent import walk
from ims3_ray.method.s3.distributed_descent import Joined, select, solve
from ims3_ray.method.s3.objective import Objective, evaluate
from ims3_ray.method.s3.proof.bound import certify
from ims3_ray.method.s3.proof.branch_and_bound import branch_and_bound
from ims3_ray.method.s3.shard import Shard
from ims3_ray.stages.select.candidates import open_candidates
from ims3_ray.stages.select.run_selection import run_tasks
from ims3_ray.stages.select.shard_actors import ClassRange, ShardPool, Source, of_groups
from ims3_ray.storage.artifacts import Directory, open_directory

from .figures import Figures, as_percent, print_head, print_row
from .instances import Case

PLAIN_LIMIT_S = 120.0
COUNTED_VALUES = (
    25_000_000  # pairs of a candidate and a class up to which the plain loop's sweeps are counted
)
ROUNDING = 1e-7  # of an objective: the pool's centroids are averaged and normalised once more
TASKS = 20  # that the problems of --optimum are split over
SPEED = (
    "C × G | instance | cosines 5–95 % | weights | shards | read s | rounds | rounds s | plain loop s | "
    "ratio | bound | bound s | gap | gap of gain | actor GB | driver GB | choice"
)
OPTIMUM = "C × G | instance | weights | restarts | reached | proved | rounds s, mean | exact s, largest"


def run(arguments: argparse.Namespace, work: Path) -> list[Figures]:
    """Print the table; gives its figures."""
    usual = {"select.restarts": 0, "select.real_images": None}
    given, weights = usual | parse_overrides(arguments.overrides), arguments.normalization.split(",")
    settings = {name: load_settings(Selecting, given | {"select.normalization": name}) for name in weights}
    sizes = [_size(word) for word in arguments.grid.split(",")]
    try:
        noises = [float(word) for word in arguments.noise.split(",")]
    except ValueError as error:
        raise InputError(f"--noise: {arguments.noise!r} is no list of numbers, such as 0.1,0.3") from error
    cases = [
        Case(*size, noise, "structured", name)
        for size, name, noise in itertools.product(sizes, settings, noises)
    ]
    if arguments.structureless:
        cases += [
            Case(*size, 0.0, "structureless", name) for size, name in itertools.product(sizes, settings)
        ]
    connect()
    if arguments.optimum:
        print_head(OPTIMUM)
        return [_optimality(case, arguments.optimum, restarts) for case in cases for restarts in (0, 8)]
    machine = find_machine(settings[weights[0]].workers)
    print_head(SPEED)
    folder = open_directory(str(work))
    return [
        _speed(case, folder, settings[case.normalization].select, machine, arguments.plain) for case in cases
    ]


def _size(word: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", word.strip())
    if not match:
        raise InputError(f"--grid: {word!r} is no size; write classes x subgroups, such as 1000x5")
    return int(match[1]), int(match[2])


def _speed(case: Case, folder: Directory, settings: Select, machine: Machine, plain: bool) -> Figures:
    """Seconds by part, the most memory of an actor and of the driver, and how good the selection is."""
    files = written(case, folder)
    times = [time.perf_counter()]
    pool = open_candidates(files / "candidates", files / "real", ("candidates", "real"))
    source = Source(pool, tuple(map(str, pool.classes)), settings, 1, 0)
    shards = ShardPool(source, machine)
    shards.ask(ClassRange.process)  # the first question reads the features
    times.append(time.perf_counter())
    groups = Joined(shards.asking(of_groups))
    selection = solve(groups, source.objective)
    times.append(time.perf_counter())
    selection = certify(selection, groups, source.objective, method=settings.certify, run=run_tasks)
    times.append(time.perf_counter())
    memory, num_shards = max(held for _, held in shards.ask(ClassRange.process)), len(shards.ranges)
    driver = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    del shards, groups  # the actors end
    plain_s, plain_is, plain_total = plain_loop(case, source.objective) if plain else (None, "not run", None)
    read_s, rounds_s, certify_s = np.diff(times).tolist()
    choice_sha = hashlib.sha256(selection.choice.astype("<i8").tobytes()).hexdigest()[:8]
    low, high = case.cosines()
    print_row(
        case.size, case.instance, f"{low:.2f}–{high:.2f}", case.normalization, num_shards, f"{read_s:.1f}",
        selection.rounds, f"{rounds_s:.3f}", f"{plain_s:.3g} ({plain_is})" if plain_s else "–",
        f"{plain_s / rounds_s:.0f}" if plain_s else "–", selection.certificate, f"{certify_s:.1f}",
        as_percent(selection.gap, 3), as_percent(selection.gap_of_gain, 3), f"{memory / 1e9:.2f}",
        f"{driver / 1e9:.2f}", choice_sha,
    )  # fmt: skip
    total = selection.objective
    if plain_total is not None and total > plain_total + ROUNDING * abs(plain_total):
        print(f"  the plain loop ends lower: {plain_total:.9g} against {total:.9g}", flush=True)
    return vars(case) | {
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
        "plain_is": plain_is,
        "plain_objective": plain_total,
        "choice_sha": choice_sha,
    }


def written(case: Case, folder: Directory) -> Directory:
    """Where the problem's tables lie below `folder`; written where they are not there yet."""
    files = folder / f"{case.kind}-{case.classes}x{case.subgroups}-{case.noise}-0"
    if not files.exists("complete"):
        run_tasks(case.write, [(files, ids) for ids in case.chunks()])
        files.write("complete", b"")
    return files


def plain_loop(case: Case, objective: Objective) -> tuple[float, str, float | None]:
    """Seconds of the plain loop, whether these are measured or extrapolated, and the objective at its end."""
    candidates, real = case.vectors()
    pools, closest = list(candidates), np.einsum("cgd,cd->cg", candidates, real).argmax(axis=1)
    num_trials = case.classes * case.subgroups
    sweeps, end = 1, None
    if float(num_trials) * case.classes <= COUNTED_VALUES:
        attractions = Shard(0, pools, real, objective, case.classes).attractions()
        walked, sweeps = walk(pools, attractions, closest, objective)
        end = evaluate(walked, pools, real, objective).total
    choice, trials, began = closest.copy(), 0, time.perf_counter()
    for i in np.tile(np.arange(case.classes), sweeps):
        costs: list[float] = []
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


def _optimality(case: Case, count: int, restarts: int) -> Figures:
    """How often the rounds end at the optimum, over seeds 0 … count − 1, in Ray tasks."""
    batches = [batch.tolist() for batch in np.array_split(np.arange(count), TASKS) if len(batch)]
    answers = run_tasks(_solve_both, [(case, batch, restarts) for batch in batches])
    rounds_s, exact_s, reached, proved = zip(*itertools.chain(*answers), strict=True)
    figures: Figures = {
        "instances": count,
        "restarts": restarts,
        "reached": sum(reached),
        "proved": sum(proved),
        "rounds_s": sum(rounds_s) / count,
        "exact_s": max(exact_s),
    }
    shares = f"{sum(reached)}/{count}", f"{sum(proved)}/{count}"
    times = f"{figures['rounds_s']:.4f}", f"{figures['exact_s']:.3f}"
    print_row(case.size, case.instance, case.normalization, restarts, *shares, *times)
    return figures | {"case": vars(case)}


def _solve_both(case: Case, seeds: list[int], restarts: int) -> list[tuple[float, float, bool, bool]]:
    """Seconds of both, whether the rounds reach the optimum, and whether it is proved, of each seed."""
    objective = Objective(0.4, 0.9, normalization=case.normalization)
    answers: list[tuple[float, float, bool, bool]] = []
    for seed in seeds:
        candidates, real = case.vectors(seed=seed)
        began = time.perf_counter()
        rounds = select(list(candidates), real, objective, restarts=restarts, seed=seed)
        middle = time.perf_counter()
        best = branch_and_bound(list(candidates), real, objective, seed=seed)
        slack = 1e-9 * max(1.0, abs(best.objective))
        reached = rounds.objective <= best.objective + slack
        times = middle - began, time.perf_counter() - middle
        answers.append((*times, reached, best.certificate == "exact"))
    return answers
