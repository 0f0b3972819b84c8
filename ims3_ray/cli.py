"""The command line: `jobs/*.py` and the `ims3` console script are this module.

A person's mistake gives one line on standard error and exit code 2; an unexpected failure leaves its trace in
a log file, after what libraries wrote, and gives one line that says where, exit code 1.
"""

import argparse
import ast
import difflib
import errno
import importlib
import logging
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

from . import progress
from .display import one_line, redact
from .errors import InputError, error_chain
from .jobs import COMMANDS
from .storage.retry import disk_full_error, is_disk_full

BAD_INPUT, FAILURE, INTERRUPTED, UNHEARD, TERMINATED = 2, 1, 130, 141, 143
STOPPED = "stopped; run the same command again to go on"


class Parser(argparse.ArgumentParser):
    """Words that it does not know are bad input like any other: one line."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; --help shows what {self.prog} takes")


class Warnings(logging.Handler):
    """Ours, a line each."""

    def emit(self, record: logging.LogRecord) -> None:
        progress.print_line(self.format(record), progress.message_stream())


def job(name: str) -> int:
    """The process `python jobs/<name>.py …`; gives its exit code."""
    return _as_process(lambda: run_command(name, sys.argv[1:]))


def _as_process(run: Callable[[], int]) -> int:
    """SIGTERM stops it as Ctrl-C does. What libraries wrote stays where it failed, and until it has ended."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(signal.SIGTERM))
    with suppress(OSError):  # no room for a file, and none for work either, which says so
        progress.redirect_library_output()
    code = 0
    try:
        code = run()
    finally:
        if code != FAILURE and (log := progress.library_log()):
            log.unlink(missing_ok=True)
    return code


def main(words: list[str] | None = None) -> int:
    """Run `ims3 COMMAND …`, by default as the process that was started so; gives the exit code."""
    if words is None:
        return _as_process(lambda: main(sys.argv[1:]))
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
        lines.append(f"  {name:<11}{sentence}")
    lines += [
        "",
        "ims3 distill                     the bundled digits, in two or three minutes",
        "ims3 init --data DIR             a recipe for images of your own",
        "ims3 COMMAND --help              its options and every field; ims3 --version",
    ]
    return "\n".join(lines)


def run_command(name: str, words: list[str]) -> int:
    """Run one command with its own words; gives the exit code."""

    def action() -> None:
        command = importlib.import_module(COMMANDS[name])
        as_written = argparse.RawDescriptionHelpFormatter
        parser = Parser(prog=name, description=command.__doc__, formatter_class=as_written)
        command.add_arguments(parser)
        if {"-h", "--help"} & set(words):
            from .config.field_docs import help_text

            parser.epilog = help_text(name)
        command.run(parser.parse_intermixed_args(words))

    warnings, logger = Warnings(), logging.getLogger(__package__)
    logger.addHandler(warnings)
    try:
        return guarded(action)
    finally:
        logger.removeHandler(warnings)


def guarded(action: Callable[[], None]) -> int:
    """Run `action` and turn what goes wrong into one line and an exit code."""
    try:
        action()
        sys.stdout.flush()
    except KeyboardInterrupt:
        _tell(STOPPED)
        return INTERRUPTED
    except SystemExit as error:
        if error.code != signal.SIGTERM:  # Ray's handler ends a driver so, and ours
            raise
        _tell(STOPPED)
        return TERMINATED
    except Exception as error:  # the one place that shows what nobody expected
        if isinstance(error, BrokenPipeError) and _is_unheard():
            return UNHEARD
        if (given := bad_input_behind(error)) is not None:
            return _say(given)
        log = _write_log("".join(traceback.format_exception(error)))
        _tell(f"failed: {type(error).__name__}: {_first_line(error)}; the trace is in {log}")
        return FAILURE
    return 0


def _is_unheard() -> bool:
    """Whether the reader of what is printed has gone, as `head` does; the rest is then printed nowhere."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
    return True


def bad_input_behind(error: BaseException) -> InputError | None:
    """What a person can mend, from inside what Ray wraps around it: an InputError, or a full disk."""
    for inner in error_chain(error):
        if isinstance(inner, InputError):
            return inner
        if isinstance(inner, OSError) and inner.errno == errno.ENAMETOOLONG:
            return InputError(
                f"a path is longer than a file's can be ({one_line(str(inner))[:200]}); shorten it"
            )
        if is_disk_full(inner):
            return disk_full_error(str(getattr(inner, "filename", None) or "a disk"), inner)
    return None


def _say(error: InputError) -> int:
    _tell(f"error: {' '.join(str(error).split())}")
    return BAD_INPUT


def _tell(line: str) -> None:
    progress.print_line(line, progress.message_stream())


def _write_log(trace: str) -> str:
    """The path of the file with the trace, which its owner alone can read."""
    path = progress.library_log() or progress.create_log()
    with path.open("a", encoding="utf-8", errors="backslashreplace") as stream:
        stream.write(redact(trace))
    return str(path)


def _first_line(error: BaseException) -> str:
    lines = [one_line(line) for line in redact(str(error)).splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no message"
