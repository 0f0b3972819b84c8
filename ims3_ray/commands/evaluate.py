"""Score any labelled image set as a distilled one is scored: classifiers over seeds, real images beside them, coverage, audit.

    python jobs/evaluate.py --set SET data.train=TRAIN data.test=TEST evaluate.protocol=minimax \\
        evaluate.networks=[resnetap10,resnet18] evaluate.seeds=3 --out evaluation.json
    python jobs/evaluate.py --set ours=runs/distilled/… --set theirs=theirs.parquet data.train=… data.test=…

SET is a folder or URI with one folder of images a class, a distilled set of this project, or Parquet as Hugging Face datasets
writes it: column image (struct {bytes, path} or binary), and label (integer or ClassLabel) or class (string).
"""

import argparse
import re
from collections.abc import Mapping
from typing import Any

from .. import cluster
from ..artifacts import open_directory
from ..errors import InputError
from ..overrides import load_evaluating, parse_overrides

NAMED = re.compile(r"([A-Za-z0-9_.-]+)=(.+)")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set", required=True, action="append", dest="sets", metavar="[NAME=]SET", help="what is scored; may be given again"
    )
    parser.add_argument(
        "--out", default="evaluation.json", metavar="JSON", help="where the figures are written; replaced where it exists"
    )
    parser.add_argument("overrides", nargs="*", metavar="field=value", help="such as data.train=DIR or evaluate.seeds=5")


def run(arguments: argparse.Namespace) -> None:
    config = load_evaluating(parse_overrides(arguments.overrides))
    locations = named_sets(arguments.sets)
    cluster.refuse_impossible(config.workers)
    folder, _, name = arguments.out.rpartition("/")
    out = open_directory(folder or ("/" if arguments.out.startswith("/") else "."))
    if not name or out.has_directory(name):
        raise InputError(f"--out: {arguments.out} is a folder; name a file, such as evaluation.json")
    from .. import evaluating  # heavy: torch, faiss

    prepared = evaluating.prepare(config, locations)
    cluster.connect()
    document = evaluating.score(prepared, cluster.machine(config.workers))
    out.write_json(name, document)
    print()
    print("\n".join(table(document)))
    print(f"\nevaluation     {arguments.out}")


def named_sets(words: list[str]) -> dict[str, str]:
    """{name: place} of the sets given; one without a name is called as its file or folder is."""
    sets: dict[str, str] = {}
    for word in words:
        match = NAMED.fullmatch(word)
        name, place = match.groups() if match else (word.rstrip("/").rsplit("/", 1)[-1].removesuffix(".parquet"), word)
        if not place or not name:
            raise InputError(f"--set: {word!r} names no set; write --set PLACE or --set NAME=PLACE")
        if name in sets:
            raise InputError(f"--set: two sets are called {name!r}; write --set NAME=PLACE to tell them apart")
        sets[name] = place
    return sets


def table(document: Mapping[str, Any]) -> list[str]:
    """Accuracies by network and set, coverage, and what the audit found."""
    networks = document.get("networks") or {document["protocol"]: document["sets"]}
    lines = []
    for label, sets in networks.items():
        lines.append(f"accuracy on the {document['split']} images, {label}, mean ± 95 % interval over seeds")
        lines += accuracy_lines(sets, document["coverage"])
    lines.append("  (last is the figure; best looks at the scored images and is a diagnostic)")
    lines.append("")
    warnings = document["audit"]["warnings"]
    return lines + ([f"warning: {line}" for line in warnings] or ["audit: nothing found"])


def accuracy_lines(sets: Mapping[str, Any], coverage: Mapping[str, Any]) -> list[str]:
    """A line a set, below their heading."""
    width = max(12, *(len(_title(name)) + 1 for name in sets))
    lines = [f"  {'set':<{width}}{'images':>8}  {'last':>14}  {'best':>14}   coverage  low-density"]
    for name, of_set in sets.items():
        covered = coverage.get(name)
        shown = f"{covered['coverage']:11.3f}{covered['low_density_coverage']:13.3f}" if covered else ""
        cells = [f"{100 * of_set[w]['mean']:6.2f} ± {100 * of_set[w]['interval']:.2f}" for w in ("last", "best")]
        lines.append(f"  {_title(name):<{width}}{of_set['images']:>8}  {cells[0]:>14}  {cells[1]:>14}{shown}")
    return lines


def _title(name: str) -> str:
    """A baseline's name in words."""
    kind, _, images = name.partition(" ")
    titles = {"random": "random real", "full": "full real", "k_center": "k-centre"}
    return f"{titles.get(kind, kind)} {images}".rstrip()
