"""Measure speed, memory and selection quality on this machine or cluster: `python -m benchmarks NAME …`.

    python -m benchmarks sample         a stage; also finetune, encode, invert, refine
    python -m benchmarks select         S³ selection
    python -m benchmarks scale          the whole pipeline over numbers of classes
    python -m benchmarks plan           hours, memory and disk on other GPUs, computed
    python -m benchmarks NAME --help    the options of one benchmark

Each prints its results as a Markdown table; --out also writes them as JSON.
"""

import argparse
import json
import sys
import tempfile
from importlib import import_module
from pathlib import Path

from ims3_ray.cli import Parser, guarded
from ims3_ray.errors import InputError

MODULES = {  # each has `add_arguments(parser)` and `run(arguments, work)`, which returns what --out writes
    "select": "selection",
    **dict.fromkeys(("sample", "finetune", "encode", "invert", "refine"), "stages"),
    "scale": "scale",
    "plan": "plan",
}


def main(words: list[str]) -> int:
    """Run one benchmark with its own words; return the exit code (2 for bad input, as `ims3` does)."""
    if words[:1] in ([], ["-h"], ["--help"]):
        print(__doc__)
        return 0 if words else 2
    return guarded(lambda: _run(words[0], words[1:]))


def _run(name: str, words: list[str]) -> None:
    if name not in MODULES:
        raise InputError(f"{name}: no such benchmark; choose {', '.join(MODULES)}")
    benchmark = import_module(f".{MODULES[name]}", __package__)
    parser = parser_of(name)
    arguments = parser.parse_intermixed_args(words)
    arguments.benchmark = name
    out = Path(arguments.out).absolute() if arguments.out else None
    if out and (out.is_dir() or not out.parent.is_dir()):
        raise InputError(f"--out: {arguments.out} is not a file in an existing folder; use results.json")
    with tempfile.TemporaryDirectory() as temporary:
        results = benchmark.run(arguments, Path(arguments.work or temporary).absolute())
    if out:
        out.write_text(json.dumps(results, indent=2) + "\n")


def parser_of(name: str) -> argparse.ArgumentParser:
    """The parser of one benchmark's words."""
    benchmark = import_module(f"{__package__}.{MODULES[name]}")
    as_written = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog=f"benchmarks {name}", description=benchmark.__doc__, formatter_class=as_written)
    parser.add_argument("--work", metavar="DIR", help="folder that keeps the inputs (default: temporary)")
    parser.add_argument("--out", metavar="JSON", help="also write the results to this file")
    benchmark.add_arguments(parser)
    parser.add_argument(
        "overrides", nargs="*", metavar="field=value", help="such as workers.shards=4 or model.path=DIR"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
