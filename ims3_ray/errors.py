"""The one exception for what a person gave: shown as a single line, exit code 2."""

from collections.abc import Iterator

from .display import one_line, redact

MAX_LENGTH = 500  # characters of an error in a record


class InputError(ValueError):
    """Bad input. The message names the field or file, the rule, the value and the remedy, in one line.

    Names of files hold anything, and URIs credentials: what would break the line, or tell a secret, is
    replaced.
    """

    def __init__(self, message: str):
        super().__init__(one_line(redact(message)))


def describe_error(error: BaseException) -> str:
    """What was raised, for a record: on one line, without secrets, cut where it is long."""
    return one_line(redact(f"{type(error).__name__}: {error}"))[:MAX_LENGTH]


def error_chain(error: BaseException) -> Iterator[BaseException]:
    """The exception and all behind it: causes, contexts, and what Ray wraps.

    What a task of Ray raised comes as itself, without Ray's copy: that is of the same type, and its text a
    whole trace.
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
