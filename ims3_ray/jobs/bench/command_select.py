"""`bench select`: S³ over sizes and noise levels, beside the plain loop that evaluates the whole objective."""

import argparse
import re
import tempfile
from typing import Any

from ims3_ray.cluster.machine import connect, find_machine
from ims3_ray.config.load import load_selecting, parse_overrides
from ims3_ray.errors import InputError
from ims3_ray.storage.artifacts import open_directory

GRID = "10x5,100x5,1000x5,1000x20"
NOISE = "0.1,0.3,0.5"
ROUNDING = 1e-7  # of an objective: the pool's centroids are averaged and normalised once more


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    parser.add_argument("--grid", default=GRID, metavar="CxG,…", help=f"classes × subgroups (default {GRID})")
    parser.add_argument(
        "--noise", default=NOISE, metavar="N,…", help="deviation of the candidates from their class"
    )
    parser.add_argument("--normalization", default="per_class,none", metavar="NAME,…")
    parser.add_argument(
        "--no-structureless",
        dest="structureless",
        action="store_false",
        help="leave out the adversarial case",
    )
    parser.add_argument("--no-plain", dest="plain", action="store_false", help="leave out the plain loop")
    parser.add_argument("--certify", default="auto", metavar="METHOD", help="as select.certify")
    parser.add_argument(
        "--optimum", type=int, metavar="N", help="instead: N problems a kind, rounds against the optimum"
    )
    parser.add_argument(
        "--neighbours", type=int, metavar="M", help="instead: rounds pruned to M nearest classes, against all"
    )


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Print the table; gives its figures."""
    config = load_selecting(parse_overrides(arguments.overrides))
    grid = [_size(word) for word in arguments.grid.split(",")]
    try:
        noises = [float(word) for word in arguments.noise.split(",")]
    except ValueError as error:
        raise InputError(f"--noise: {arguments.noise!r} is no list of numbers, such as 0.1,0.3") from error
    connect()
    from .selection import Case  # heavy

    cases = [
        Case(classes, subgroups, noise, "structured", normalization)
        for classes, subgroups in grid
        for normalization in arguments.normalization.split(",")
        for noise in noises
    ]
    if arguments.structureless:
        cases += [
            Case(*size, 0.0, "structureless", norm)
            for size in grid
            for norm in arguments.normalization.split(",")
        ]
    machine = find_machine(config.workers)
    with tempfile.TemporaryDirectory() as temporary:
        work = open_directory(arguments.work or temporary)
        if arguments.optimum:
            return _optimum(cases, arguments.optimum)
        if arguments.neighbours:
            return _pruning(cases, work, machine, arguments.neighbours)
        return _speed(cases, work, machine, arguments)


def _size(word: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", word.strip())
    if not match or min(int(match[1]), int(match[2])) < 1:
        raise InputError(f"--grid: {word!r} is no size; write classes x subgroups, such as 1000x5")
    return int(match[1]), int(match[2])


def _speed(cases: list, work: Any, machine: Any, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    from .instances import cosines
    from .selection import measure

    print("| C × G | instance | cosines 5–95 % | weights | shards | read s | rounds | rounds s | plain loop s | ratio "
          "| bound | bound s | gap | gap of gain | actor GB | driver GB | choice |")  # fmt: skip
    print("|---" * 17 + "|")
    found = []
    for case in cases:
        m = measure(case, work, machine, arguments.certify, plain=arguments.plain)
        low, _, high = cosines(case.classes, case.subgroups, case.noise, case.kind, 0)
        instance = f"noise {case.noise}" if case.kind == "structured" else case.kind
        plain = f"{m.plain_s:.3g} ({m.plain_is})" if arguments.plain else "–"
        ratio = f"{m.plain_s / m.rounds_s:.0f}" if arguments.plain else "–"
        gap, of_gain = (f"{100 * g:.3f} %" if g is not None else "–" for g in (m.gap, m.gap_of_gain))
        row = [
            f"{case.classes} × {case.subgroups}", instance, f"{low:.2f}–{high:.2f}", case.normalization, m.shards,
            f"{m.read_s:.1f}", m.rounds, f"{m.rounds_s:.3f}", plain, ratio, m.certificate, f"{m.certify_s:.1f}", gap, of_gain,
            f"{m.actor_gb:.2f}", f"{m.driver_gb:.2f}", m.choice_sha,
        ]  # fmt: skip
        print(f"| {' | '.join(map(str, row))} |", flush=True)
        if m.plain_objective is not None and m.objective > m.plain_objective + ROUNDING * abs(
            m.plain_objective
        ):
            print(
                f"  the plain loop ends lower: {m.plain_objective:.9g} against {m.objective:.9g}", flush=True
            )
        found.append(m.flat())
    return found


def _pruning(cases: list, work: Any, machine: Any, neighbours: int) -> list[dict[str, Any]]:
    from .selection import pruning

    print(
        "| C × G | instance | weights | nearest | all s | pruned s | same choice | objective, all | objective, pruned |"
    )
    print("|---" * 9 + "|")
    found = []
    for case in cases:
        p = pruning(case, work, machine, neighbours)
        instance = f"noise {case.noise}" if case.kind == "structured" else case.kind
        print(f"| {case.classes} × {case.subgroups} | {instance} | {case.normalization} | {p.neighbours} | {p.exact_s:.2f} "
              f"| {p.pruned_s:.2f} | {100 * p.agreement:.2f} % | {p.exact_objective:.6f} | {p.pruned_objective:.6f} |",
              flush=True)  # fmt: skip
        found.append(vars(p) | {"case": vars(case)})
    return found


def _optimum(cases: list, count: int) -> list[dict[str, Any]]:
    from .selection import optimality

    print("| C × G | instance | weights | restarts | reached | proved | rounds s, mean | exact s, largest |")
    print("|---" * 8 + "|")
    found = []
    for case in cases:
        for restarts in (0, 8):
            o = optimality(case, count, restarts)
            instance = f"noise {case.noise}" if case.kind == "structured" else case.kind
            size = f"{case.classes} × {case.subgroups}"
            print(f"| {size} | {instance} | {case.normalization} | {restarts} | {o.reached}/{count} | {o.proved}/{count} "
                  f"| {o.rounds_s:.4f} | {o.exact_s:.3f} |", flush=True)  # fmt: skip
            found.append(vars(o) | {"case": vars(case)})
    return found
