"""The command line of `ims3` and of `jobs/*.py`.

A user's mistake prints one line on standard error, exit code 2. An unexpected failure prints one line with
the path of a log, which holds the output of libraries and the trace, exit code 1.
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
from .errors import InputError, error_chain, is_termination
from .jobs import COMMANDS
from .jobs.next_steps import shell_command
from .storage.retry import disk_full_error, is_disk_full

FAILURE, BAD_INPUT, INTERRUPTED, BROKEN_PIPE, TERMINATED = 1, 2, 130, 141, 143
STOPPED = "stopped; run the same command again to go on"
COMPLETION = "--print-completion"
SHELLS = ("bash", "zsh", "tcsh")


class Parser(argparse.ArgumentParser):
    """Reports unknown arguments as an InputError."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; {self.prog} --help lists the arguments")


class WarningLines(logging.Handler):
    """Prints each warning of this package as a line."""

    def emit(self, record: logging.LogRecord) -> None:
        _print_message(self.format(record))


def job(name: str) -> int:
    """Run `python jobs/<name>.py …` and return the exit code."""
    return _as_process(lambda: run_command(name, sys.argv[1:]))


def _as_process(run: Callable[[], int]) -> int:
    """Let SIGTERM stop the run like Ctrl-C. Keep the library log if the run fails; delete it otherwise."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(signal.SIGTERM))
    with suppress(OSError):  # on a full disk, the run itself reports the error
        progress.redirect_library_output()
    code = 0
    try:
        code = run()
    finally:
        if code != FAILURE and (log := progress.library_log()):
            log.unlink(missing_ok=True)
    return code


def main(words: list[str] | None = None) -> int:
    """Run `ims3 COMMAND …` and return the exit code; without `words`, as this process's command line."""
    if words is None:
        return _as_process(lambda: main(sys.argv[1:]))
    if words == ["--version"]:
        print(f"ims3 {version('ims3-ray')}")
        return 0
    if words[:1] in ([], ["-h"], ["--help"]):
        print(usage())
        return 0 if words else BAD_INPUT
    if words[0] == COMPLETION:
        return guarded(lambda: _print_completion(words[1:]))
    if words[0] not in COMMANDS:
        near = difflib.get_close_matches(words[0], COMMANDS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        return _report(InputError(f"ims3 {words[0]}: no such command; {hint}ims3 --help lists them"))
    return run_command(words[0], words[1:])


def usage() -> str:
    """List the commands with the first sentence of their help, without importing their modules."""
    lines = ["usage: ims3 COMMAND [field=value …]", ""]
    for name, module in COMMANDS.items():
        source = Path(__file__).parent.joinpath(*module.split(".")[1:]).with_suffix(".py")
        docstring = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
        sentence = " ".join(docstring.partition("\n\n")[0].split())
        lines.append(f"  {name:<11}{sentence}")
    lines += [
        "",
        "ims3 distill                     the bundled digits, in two or three minutes",
        "ims3 init --data DIR             a recipe for images of your own",
        "ims3 COMMAND --help              its options and every field; ims3 --version",
        f"ims3 {COMPLETION} SHELL    shell completion, for {', '.join(SHELLS)}",
    ]
    return "\n".join(lines)


def _print_completion(words: list[str]) -> None:
    """Print a completion script with all commands, options, recipes and fields, made by shtab."""
    if len(words) != 1 or words[0] not in SHELLS:
        raise InputError(f"{COMPLETION}: name one shell: {', '.join(SHELLS)}")
    import shtab

    from .config.field_docs import fields
    from .config.load import recipe_names

    parser = argparse.ArgumentParser("ims3")
    commands = parser.add_subparsers()
    for name, module in COMMANDS.items():
        command = commands.add_parser(name, help=name)  # shtab skips parsers without help
        importlib.import_module(module).add_arguments(command)
        for action in command._actions:  # argparse has no public list
            if action.dest == "overrides":
                action.choices = [f"{field}=" for field in fields(name)]
            elif action.dest in ("recipe", "show"):
                action.choices = recipe_names()
            elif action.choices:
                action.choices = list(action.choices)  # shtab takes a dict for subcommands
    print(shtab.complete(parser, words[0]))


def run_command(name: str, words: list[str]) -> int:
    """Run one command with its arguments and return the exit code."""

    def action() -> None:
        command = importlib.import_module(COMMANDS[name])
        raw = argparse.RawDescriptionHelpFormatter
        parser = Parser(prog=shell_command(name), description=command.__doc__, formatter_class=raw)
        command.add_arguments(parser)
        if {"-h", "--help"} & set(words):
            from .config.field_docs import help_text

            parser.epilog = help_text(name)
        command.run(parser.parse_intermixed_args(words))

    warnings, logger = WarningLines(), logging.getLogger(__package__)
    logger.addHandler(warnings)
    try:
        return guarded(action)
    finally:
        logger.removeHandler(warnings)


def guarded(action: Callable[[], None]) -> int:
    """Run `action`; turn an exception into one line on standard error and an exit code."""
    try:
        action()
        sys.stdout.flush()
    except KeyboardInterrupt:
        _print_message(STOPPED)
        return INTERRUPTED
    except SystemExit as error:
        if not is_termination(error):
            raise
        _print_message(STOPPED)
        return TERMINATED
    except Exception as error:  # the only place that catches unexpected failures
        if isinstance(error, BrokenPipeError) and _has_no_reader():
            return BROKEN_PIPE
        if (mistake := bad_input_behind(error)) is not None:
            return _report(mistake)
        log = _write_log("".join(traceback.format_exception(error)))
        _print_message(f"failed: {type(error).__name__}: {_first_line(error)}; the trace is in {log}")
        return FAILURE
    return 0


def _has_no_reader() -> bool:
    """Whether the reader of standard output has gone, as `head` does; further output is then discarded."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
    return True


def bad_input_behind(error: BaseException) -> InputError | None:
    """Return the InputError behind an exception, which Ray may have wrapped, or one for a full disk."""
    for inner in error_chain(error):
        if isinstance(inner, InputError):
            return inner
        if isinstance(inner, OSError) and inner.errno == errno.ENAMETOOLONG:
            return InputError(
                f"a path is longer than the file system allows ({one_line(str(inner))[:200]}); shorten it"
            )
        if is_disk_full(inner):
            return disk_full_error(str(getattr(inner, "filename", None) or "a disk"), inner)
    return None


def _report(error: InputError) -> int:
    _print_message(f"error: {' '.join(str(error).split())}")
    return BAD_INPUT


def _print_message(line: str) -> None:
    progress.print_line(line, progress.message_stream())


def _write_log(trace: str) -> str:
    """Append the trace to the library log, or a new one, which only its owner can read; return its path."""
    path = progress.library_log() or progress.create_log()
    with path.open("a", encoding="utf-8", errors="backslashreplace") as stream:
        stream.write(redact(trace))
    return str(path)


def _first_line(error: BaseException) -> str:
    lines = [one_line(line) for line in redact(str(error)).splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no message"
