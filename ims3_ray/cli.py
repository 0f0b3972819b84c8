"""The command line: `jobs/*.py` and the `ims3` console script are this module.

A person's mistake gives one line on standard error and exit code 2; an unexpected failure leaves its trace in
a log file and gives one line that says where, exit code 1.
"""

import argparse
import ast
import difflib
import importlib
import logging
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

from .errors import InputError, chain
from .storage.patience import is_full, no_space
from .text import one_line, redacted

COMMANDS = {  # name → module of this package with `add_arguments(parser)` and `run(arguments)`
    "ablate": "ims3_ray.jobs.ablate.command",
    "bench": "ims3_ray.jobs.bench.command",
    "convert": "ims3_ray.jobs.convert",
    "distill": "ims3_ray.jobs.distill.command",
    "evaluate": "ims3_ray.jobs.evaluate.command",
    "init": "ims3_ray.jobs.init",
    "pretrain": "ims3_ray.jobs.pretrain.command",
    "recipes": "ims3_ray.jobs.recipes",
    "runs": "ims3_ray.jobs.runs.command",
    "select": "ims3_ray.jobs.select",
    "sweep": "ims3_ray.jobs.sweep.command",
}
BAD_INPUT, FAILURE, INTERRUPTED, TERMINATED = 2, 1, 130, 143
STOPPED = "stopped; run the same command again to go on"


class Parser(argparse.ArgumentParser):
    """Words that it does not know are bad input like any other: one line."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; --help shows what {self.prog} takes")


def main(words: list[str] | None = None) -> int:
    """Run `ims3 COMMAND …`; gives the exit code."""
    words = sys.argv[1:] if words is None else words
    if words == ["--version"]:
        print(f"ims3 {version('ims3-ray')}")
        return 0
    if words[:1] in ([], ["-h"], ["--help"]):
        print(usage())
        return 0 if words else BAD_INPUT
    if words[0] not in COMMANDS:
        near = difflib.get_close_matches(words[0], COMMANDS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        return _say(InputError(f"ims3 {words[0]}: no such command; {hint}ims3 --help lists them"))
    return run_command(words[0], words[1:])


def usage() -> str:
    """The commands, each with the first sentence of its own help: read, since importing one takes a while."""
    lines = ["usage: ims3 COMMAND [field=value …]", ""]
    for name, module in COMMANDS.items():
        source = Path(__file__).parent.joinpath(*module.split(".")[1:]).with_suffix(".py")
        told = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
        sentence = " ".join(told.partition("\n\n")[0].split())
        lines.append(f"  {name:<10}{sentence}")
    lines += [
        "",
        "ims3 distill                     the bundled digits, in two or three minutes",
        "ims3 init --data DIR             a recipe for images of your own",
        "ims3 COMMAND --help              its options and every field; ims3 --version",
    ]
    return "\n".join(lines)


def run_command(name: str, words: list[str]) -> int:
    """Run one command with its own words; gives the exit code."""
    command = importlib.import_module(COMMANDS[name])
    as_written = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog=name, description=command.__doc__, formatter_class=as_written)
    command.add_arguments(parser)
    if {"-h", "--help"} & set(words):
        from .config.describe import help_text

        parser.epilog = help_text(name)
    warnings, logger = logging.StreamHandler(), logging.getLogger(__package__)
    logger.addHandler(warnings)
    try:
        return guarded(lambda: command.run(parser.parse_intermixed_args(words)))
    finally:
        logger.removeHandler(warnings)


def guarded(action: Callable[[], None]) -> int:
    """Run `action` and turn what goes wrong into one line and an exit code."""
    try:
        action()
    except KeyboardInterrupt:
        print(STOPPED, file=sys.stderr)
        return INTERRUPTED
    except SystemExit as error:
        if error.code != signal.SIGTERM:  # Ray's handler ends a driver so
            raise
        print(STOPPED, file=sys.stderr)
        return TERMINATED
    except Exception as error:  # the one place that shows what nobody expected
        if (given := bad_input_behind(error)) is not None:
            return _say(given)
        log = _write_log("".join(traceback.format_exception(error)))
        print(f"failed: {type(error).__name__}: {_first_line(error)}; the trace is in {log}", file=sys.stderr)
        return FAILURE
    return 0


def bad_input_behind(error: BaseException) -> InputError | None:
    """What a person can mend, from inside what Ray wraps around it: an InputError, or a full disk."""
    for inner in chain(error):
        if isinstance(inner, InputError):
            return inner
        if is_full(inner):
            return no_space(str(getattr(inner, "filename", None) or "a disk"), inner)
    return None


def _say(error: InputError) -> int:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return BAD_INPUT


def _write_log(trace: str) -> str:
    """The path of a new file with the trace, which its owner alone can read."""
    number, path = tempfile.mkstemp(prefix=f"ims3-{time.strftime('%Y%m%d-%H%M%S')}-", suffix=".log")
    with open(number, "w", encoding="utf-8", errors="backslashreplace") as stream:
        stream.write(redacted(trace))
    return path


def _first_line(error: BaseException) -> str:
    lines = [one_line(line) for line in redacted(str(error)).splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no message"
