"""Retries of storage operations: transient errors are repeated, a full disk is one error line."""

import errno
import logging
import math
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, wait_exponential_jitter

from ims3_ray.display import one_line, redact
from ims3_ray.errors import InputError, OutageError, error_chain

MAX_RETRY_S = 120.0
MAX_PAUSE_S = 15.0  # between tries
PAUSES = wait_exponential_jitter(max=MAX_PAUSE_S)  # from 1 s, doubling, and up to 1 s more
QUIET_S = 10.0  # without an error: the next error is logged again
MAX_CHARACTERS = 200  # of an error
GO_ON = "run the same command again to go on"
_logger = logging.getLogger(__name__)

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_TEXT = re.compile(
    r"HTTP status 507|StorageFull|QuotaExceeded|\(os error 28\)"
)  # the last from safetensors
_LASTING = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
_LASTING_ANSWER = re.compile(
    r"ACCESS_DENIED|NO_SUCH_BUCKET|INVALID_(ACCESS_KEY_ID|CLIENT_TOKEN_ID|SIGNATURE)"
    r"|SIGNATURE_DOES_NOT_MATCH|UNRECOGNIZED_CLIENT|HTTP status (?!408|429)4\d\d"
)

Result = TypeVar("Result")


@dataclass
class _Outage:
    """Errors of one service, as seen by this process."""

    since: float | None  # the first error without a success after it
    latest: float  # error


_outages: dict[str, _Outage] = {}
_lock = threading.Lock()


def with_retries(place: str, act: Callable[[], Result]) -> Result:
    """Returns `act()`, which reads or writes at `place` (URI or local path) and is safe to repeat.

    Transient errors of a service behind a URI are retried for MAX_RETRY_S from the first error. All threads
    share that clock until an operation succeeds. The first error is logged as a warning. Raises OutageError
    if the time is over, InputError if no space is left, and any other error at once.
    """
    service = re.match(r"[^/]+://[^/?]*|", place)[0]  # pyright: ignore[reportOptionalSubscript]: it matches ""
    end = math.inf

    def is_transient(error: BaseException) -> bool:
        nonlocal end
        cause = _storage_error(error)
        if cause is not None and is_disk_full(cause):
            raise disk_full_error(place, cause) from error
        if cause is None or not service or not _may_pass(cause):
            return False
        end = min(end, _record(service, place, cause) + MAX_RETRY_S)
        return True

    def give_up(state: RetryCallState) -> Result:
        error = state.outcome.exception() if state.outcome else None
        why = _short(_storage_error(error) or error) if error else ""
        raise OutageError(f"{place}: answers with an error ({why}) for {MAX_RETRY_S:g} s; {GO_ON}") from error

    retrying = Retrying(
        retry=retry_if_exception(is_transient),
        wait=lambda state: min(PAUSES(state), end - time.monotonic()),
        stop=lambda _: time.monotonic() >= end,
        retry_error_callback=give_up,
    )
    result = retrying(act)
    if service in _outages:
        _outages[service].since = None
    return result


def disk_full_error(place: str, error: BaseException) -> InputError:
    """Returns the error for a full disk or an exhausted quota."""
    return InputError(
        f"{place}: no space left ({_short(error)}); free some or choose another storage=…, then {GO_ON}"
    )


def is_disk_full(error: BaseException) -> bool:
    return (isinstance(error, OSError) and error.errno in _FULL) or bool(_FULL_TEXT.search(str(error)))


def _storage_error(error: BaseException) -> OSError | None:
    """Returns the OSError behind `error`; None if it was reported as InputError or is an interrupt."""
    if not isinstance(error, Exception):
        return None
    cause = next((inner for inner in error_chain(error) if isinstance(inner, OSError | InputError)), None)
    return cause if isinstance(cause, OSError) else None


def _may_pass(error: OSError) -> bool:
    return not isinstance(error, _LASTING) and not _LASTING_ANSWER.search(str(error))


def _record(service: str, place: str, error: OSError) -> float:
    """Returns the time since which `service` has failed. Logs the error if it is a new one."""
    with _lock:
        now, outage = time.monotonic(), _outages.get(service)
        quiet = math.inf if outage is None else now - outage.latest
        if quiet > (QUIET_S if outage and outage.since is None else MAX_RETRY_S):
            line = (
                f"{place} answers with an error ({_short(error)}); trying again for up to {MAX_RETRY_S:g} s"
            )
            _logger.warning("%s", one_line(redact(line)))
        since = now if outage is None or outage.since is None or quiet > MAX_RETRY_S else outage.since
        _outages[service] = _Outage(since, now)
        return since


def _short(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return one_line(redact(text))[:MAX_CHARACTERS]
