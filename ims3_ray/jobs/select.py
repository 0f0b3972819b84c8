"""Select one subgroup of candidates a class (S³), from any generator: close to the real class, far from the
others.

python jobs/select_subgroups.py --candidates candidates.parquet --real real.parquet --out selection.json
select.alpha=0.4

candidates.parquet: class, subgroup, index, feature (list of float32), a row an image
real.parquet: class, feature, a row a real image, or a row a class where they are centroids already
Either may be a folder of Parquet files or a URI.
"""

import argparse
import time
from typing import Any

from ims3_ray.cluster.machine import connect, find_machine
from ims3_ray.config.load import load_settings, parse_overrides
from ims3_ray.config.settings import Selecting
from ims3_ray.errors import InputError
from ims3_ray.stages.select.features import open_candidates
from ims3_ray.storage.artifacts import open_directory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--candidates", required=True, metavar="PARQUET", help="features of the candidates")
    parser.add_argument("--real", required=True, metavar="PARQUET", help="features of the real images")
    parser.add_argument(
        "--out",
        required=True,
        metavar="JSON",
        help="where the selection is written; replaced where it exists",
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
    below = {"subgroup": config.select.subgroups}
    pool = open_candidates(arguments.candidates, arguments.real, ("--candidates", "--real"), **below)
    connect()
    from ims3_ray.stages.select.solve import select_features  # heavy: faiss

    began = time.perf_counter()
    machine = find_machine(config.workers)
    made = select_features(pool, config.select, ipc=config.ipc, seed=config.seed, machine=machine)
    seconds = time.perf_counter() - began
    out.write_json(name, made.document)
    print("\n".join(table(made.document)))
    print(
        f"\n{made.subgroups} subgroups on {made.shards} actors in {seconds:.1f} s, features read and bound included"
    )
    print(f"selection      {arguments.out}")


def table(document: dict[str, Any]) -> list[str]:
    """What a person wants to know first: the objective, its terms, the start, the bound."""
    terms, bound, gain = (
        document["terms"],
        document["lower_bound"],
        document["start_objective"] - document["objective"],
    )
    rows = [
        ("objective", f"{document['objective']:.6f}", f"{document['solver']}, {document['rounds']} rounds"),
        ("  attraction", f"{terms['attraction']:.6f}", "Σ log distance to the real class, low is close"),
        ("  separation", f"{terms['separation']:.6f}", "Σ log distance between classes, high is far"),
        ("closest to real", f"{document['start_objective']:.6f}", f"the selection gains {gain:.6f}"),
    ]
    if document["unit"] == "image" and document["subgroup_selection"]:
        rows.append(
            ("best subgroups", f"{document['subgroup_selection']['objective']:.6f}", "of the same pool")
        )
    if document["settings"]["coverage"]:
        what = {
            "balls": "mean covered share of real images",
            "distance": "mean 1 − d/2, d to the nearest chosen image",
        }
        covered = f"{terms['coverage'] / len(document['selection']):.6f}"
        rows.append(("  coverage", covered, what[document["settings"]["coverage_by"]]))
    if bound is not None:
        of_gain = (
            "" if document["gap_of_gain"] is None else f", {100 * document['gap_of_gain']:.3f} % of the gain"
        )
        gap = f"gap {100 * document['gap']:.3f} % of the objective{of_gain} ({document['certificate']})"
        rows.append(("lower bound", f"{bound:.6f}", gap))
    else:
        rows.append(("lower bound", "–", "not computed; select.certify names a method"))
    return [f"  {name:<16}{value:>18}   {what}" for name, value, what in rows]
