"""InputError, the exception for user mistakes (one line, exit code 2), and helpers to describe exceptions."""

import signal
from collections.abc import Iterator

from .display import one_line, redact

MAX_LENGTH = 500  # characters of an error in a record


class InputError(ValueError):
    """Bad input. The message names the field or file, the rule, the value and the remedy, in one line.

    Line breaks, control characters and credentials in the message are replaced.
    """

    def __init__(self, message: str):
        super().__init__(one_line(redact(message)))


class OutageError(InputError):
    """The storage answers no request. This says nothing about its files: they are not damaged."""


def is_termination(error: SystemExit) -> bool:
    """Whether SIGTERM raised it. Ray keeps the code only in a message if the signal comes in `ray.get`."""
    message = str(getattr(error, "ray_terminate_msg", ""))
    return error.code == signal.SIGTERM or message.endswith(f"Exit code: {int(signal.SIGTERM)}.")


def describe_error(error: BaseException) -> str:
    """Return type and message on one line for a record, without secrets, at most MAX_LENGTH characters.

    Bad input replaces the trace in which Ray wraps it.
    """
    error = next((inner for inner in error_chain(error) if isinstance(inner, InputError)), error)
    return one_line(redact(f"{type(error).__name__}: {error}"))[:MAX_LENGTH]


def error_chain(error: BaseException) -> Iterator[BaseException]:
    """Yield the exception and all behind it: causes, contexts, and exceptions that Ray wraps.

    A Ray task's exception is yielded itself. Ray's copy, of the same type with a trace as its text, is not.
    """
    pending, seen = [error], set()
    while pending:
        inner = pending.pop()
        if not isinstance(inner, BaseException) or id(inner) in seen:
            continue
        seen.add(id(inner))
        raised = getattr(inner, "cause", None)
        if not isinstance(raised, BaseException):
            yield inner
        wrapped = [raised, inner.__cause__, inner.__context__, getattr(inner, "controller_failure", None)]
        pending += reversed([*wrapped, *getattr(inner, "worker_failures", {}).values()])
