"""Select one subgroup of candidates per class (S³) by their features.

    python jobs/select_subgroups.py --candidates candidates.parquet \\
        --real real.parquet --out selection.json select.alpha=0.4

Selects subgroups close to the real images of their class and far from the
other classes. candidates.parquet has one row per image: class, subgroup,
index, feature (list of float32). real.parquet has class and feature, one row
per real image or one centroid per class. Each is a file, a folder or a URI.
"""

import argparse
import time
from typing import TYPE_CHECKING

from ims3_ray.config.load import load_settings, parse_overrides
from ims3_ray.config.settings import Selecting
from ims3_ray.jobs.next_steps import open_result, result_lines
from ims3_ray.progress import spinner
from ims3_ray.storage.directory import check_writable

if TYPE_CHECKING:
    from ims3_ray.storage.schemas import SelectionFile


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--candidates", required=True, metavar="PARQUET", help="features of the candidates")
    parser.add_argument("--real", required=True, metavar="PARQUET", help="features of the real images")
    parser.add_argument(
        "--out", required=True, metavar="JSON", help="file to write; an existing one is replaced"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="field=value", help="such as select.alpha=0.4 or workers.shards=8"
    )


def run(arguments: argparse.Namespace) -> None:
    config = load_settings(Selecting, parse_overrides(arguments.overrides))
    out, name = open_result(arguments.out)
    with spinner("imports"):  # heavy: Ray
        from ims3_ray.cluster.resources import connect, find_machine
        from ims3_ray.stages.select.candidates import open_candidates

    with spinner("start"):
        files = arguments.candidates, arguments.real
        pool = open_candidates(*files, ("--candidates", "--real"), subgroup=config.select.subgroups)
        check_writable(out, f"--out: {out.uri}")
        connect(config.workers)
        from ims3_ray.stages.select.run_selection import select_features  # heavy: faiss

    start = time.perf_counter()
    machine = find_machine(config.workers)
    outcome = select_features(pool, config.select, ipc=config.ipc, seed=config.seed, machine=machine)
    seconds = time.perf_counter() - start
    out.write_json(name, outcome.document)
    print("\n".join(table(outcome.document)))
    print(f"\n{outcome.subgroups} subgroups on {outcome.shards} actors in {seconds:.1f} s, reading included")
    print(*result_lines({"selection": arguments.out}), sep="\n")


def table(document: "SelectionFile") -> list[str]:
    """Return the lines of the result: the objective, its terms, the start, the bound."""
    terms, settings, start = document["terms"], document["settings"], document["start_objective"]
    rows: list[tuple[str, float | None, str]] = [
        ("objective", document["objective"], f"{document['solver']}, {document['rounds']} rounds"),
        ("  attraction", terms["attraction"], "Σ log distance to the real class, low is close"),
        ("  separation", terms["separation"], "Σ log distance between classes, high is far"),
        ("closest to real", start, f"the selection gains {start - document['objective']:.6f}"),
    ]
    if best := document.get("subgroup_selection"):
        rows.append(("best subgroups", best["objective"], "of the same pool"))
    if settings["coverage"]:
        mean = terms["coverage"] / len(document["selection"])
        rows.append(("  coverage", mean, "mean 1 − d/2, d to the nearest chosen image"))
    bound, gap, of_gain = document["lower_bound"], document["gap"], document["gap_of_gain"]
    note = "not computed; select.lower_bound sets a method"
    if bound is not None and gap is not None:
        gain = "" if of_gain is None else f", {100 * of_gain:.3f} % of the gain"
        note = f"gap {100 * gap:.3f} % of the objective{gain} ({document['certificate']})"
    rows.append(("lower bound", bound, note))
    return [f"  {name:<16}{'–' if v is None else f'{v:.6f}':>18}   {text}" for name, v, text in rows]
