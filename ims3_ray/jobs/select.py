"""Select one subgroup of candidates a class (S³), from any generator.

    python jobs/select_subgroups.py --candidates candidates.parquet \\
        --real real.parquet --out selection.json select.alpha=0.4

Those close to the real class and far from the others are chosen.
candidates.parquet: class, subgroup, index, feature (list of float32), a row
an image; real.parquet: class, feature, a row a real image, or a row a class
where they are centroids already. Either may be a folder of such, or a URI.
"""

import argparse
import time
from typing import TYPE_CHECKING

from ims3_ray.config.load import load_settings, parse_overrides
from ims3_ray.config.settings import Selecting
from ims3_ray.errors import InputError
from ims3_ray.jobs.next_steps import json_view, result_lines
from ims3_ray.progress import spinner
from ims3_ray.storage.directory import check_writable, open_directory

if TYPE_CHECKING:
    from ims3_ray.stages.select.run_selection import Document


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--candidates", required=True, metavar="PARQUET", help="features of the candidates")
    parser.add_argument("--real", required=True, metavar="PARQUET", help="features of the real images")
    parser.add_argument(
        "--out", required=True, metavar="JSON", help="where the selection goes; replaced if there"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="field=value", help="such as select.alpha=0.4 or workers.shards=8"
    )


def run(arguments: argparse.Namespace) -> None:
    config = load_settings(Selecting, parse_overrides(arguments.overrides))
    folder, _, name = arguments.out.rpartition("/")
    out = open_directory(folder or ("/" if arguments.out.startswith("/") else "."))
    if not name or out.has_directory(name):
        raise InputError(f"--out: {arguments.out} is a folder; name a file, such as selection.json")
    with spinner("imports"):  # heavy: Ray
        from ims3_ray.cluster.resources import connect, find_machine
        from ims3_ray.stages.select.candidates import open_candidates

    with spinner("start"):
        below = {"subgroup": config.select.subgroups}
        pool = open_candidates(arguments.candidates, arguments.real, ("--candidates", "--real"), **below)
        check_writable(out, f"--out: {out.uri}")
        connect()
        from ims3_ray.stages.select.run_selection import select_features  # heavy: faiss

    began = time.perf_counter()
    machine = find_machine(config.workers)
    outcome = select_features(pool, config.select, ipc=config.ipc, seed=config.seed, machine=machine)
    seconds = time.perf_counter() - began
    out.write_json(name, outcome.document)
    print("\n".join(table(outcome.document)))
    work = f"{outcome.subgroups} subgroups on {outcome.shards} actors in {seconds:.1f} s"
    print(f"\n{work}, features read and bound included")
    print(*result_lines({"selection": arguments.out}, json_view(arguments.out)), sep="\n")


COVERAGE = {
    "balls": "mean covered share of real images",
    "distance": "mean 1 − d/2, d to the nearest chosen image",
}


def table(document: "Document") -> list[str]:
    """What a person wants to know first: the objective, its terms, the start, the bound."""
    terms, settings, start = document["terms"], document["settings"], document["start_objective"]
    how = f"{document['solver']}, {document['rounds']} rounds"
    rows = [
        ("objective", document["objective"], how),
        ("  attraction", terms["attraction"], "Σ log distance to the real class, low is close"),
        ("  separation", terms["separation"], "Σ log distance between classes, high is far"),
        ("closest to real", start, f"the selection gains {start - document['objective']:.6f}"),
    ]
    if best := document.get("subgroup_selection"):
        rows.append(("best subgroups", best["objective"], "of the same pool"))
    if settings["coverage"]:
        mean = terms["coverage"] / len(document["selection"])
        rows.append(("  coverage", mean, COVERAGE[str(settings["coverage_by"])]))
    bound, gap, of_gain = (document[name] for name in ("lower_bound", "gap", "gap_of_gain"))
    why = "not computed; select.lower_bound names a method"
    if bound is not None and gap is not None:
        gain = "" if of_gain is None else f", {100 * of_gain:.3f} % of the gain"
        why = f"gap {100 * gap:.3f} % of the objective{gain} ({document['certificate']})"
    lines = [*rows, ("lower bound", bound, why)]
    return [f"  {name:<16}{'–' if v is None else f'{v:.6f}':>18}   {what}" for name, v, what in lines]
