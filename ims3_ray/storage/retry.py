"""A storage in trouble: errors that pass are waited out, a full disk stops a run with one line."""

import errno
import logging
import math
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, wait_exponential

from ims3_ray.display import one_line, redact
from ims3_ray.errors import InputError, error_chain

PATIENCE_S = 120.0
LONGEST_PAUSE_S = 15.0  # between tries
PAUSES = wait_exponential(max=LONGEST_PAUSE_S)  # 1 s, each twice the one before
QUIET_S = 10.0  # without an error: the next one is told again
SHOWN = 200  # characters of an error
GO_ON = "run the same command again to go on"
_logger = logging.getLogger(__name__)

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_TEXT = re.compile(
    r"HTTP status 507|StorageFull|QuotaExceeded|\(os error 28\)"
)  # the last of safetensors
_LASTING = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
_LASTING_ANSWER = re.compile(
    r"ACCESS_DENIED|NO_SUCH_BUCKET|INVALID_(ACCESS_KEY_ID|CLIENT_TOKEN_ID|SIGNATURE)"
    r"|SIGNATURE_DOES_NOT_MATCH|UNRECOGNIZED_CLIENT|HTTP status (?!408|429)4\d\d"
)

Result = TypeVar("Result")


@dataclass
class _Trouble:
    """With one service, in this process."""

    since: float | None  # the first error with no success after it
    latest: float  # error


_troubles: dict[str, _Trouble] = {}
_lock = threading.Lock()


def with_retries(place: str, act: Callable[[], Result]) -> Result:
    """What `act()` gives, which reads or writes at `place`, a URI or local path, and is safe to repeat.

    Errors that a service behind a URI may get over are waited out for PATIENCE_S from the first, on a clock
    that all threads share until something succeeds. The first is logged as a warning. Raises InputError, in
    one line, when that time is over, and where no space is left; any other error at once.
    """
    service = re.match(r"[^/]+://[^/?]*|", place)[0]  # pyright: ignore[reportOptionalSubscript]: it matches ""
    end = math.inf

    def passes(error: BaseException) -> bool:
        nonlocal end
        behind = _storage_error(error)
        if behind is not None and is_full(behind):
            raise no_space(place, behind) from error
        if behind is None or not service or not _may_pass(behind):
            return False
        end = min(end, _note(service, place, behind) + PATIENCE_S)
        return True

    def give_up(state: RetryCallState) -> Result:
        error = state.outcome.exception() if state.outcome else None
        why = _short(_storage_error(error) or error) if error else ""
        raise InputError(f"{place}: answers with an error ({why}) for {PATIENCE_S:g} s; {GO_ON}") from error

    retrying = Retrying(
        retry=retry_if_exception(passes),
        wait=lambda state: min(PAUSES(state), end - time.monotonic()),
        stop=lambda _: time.monotonic() >= end,
        retry_error_callback=give_up,
    )
    result = retrying(act)
    if service in _troubles:
        _troubles[service].since = None
    return result


def no_space(place: str, error: BaseException) -> InputError:
    """What a person reads about a full disk, or a store whose quota is used up."""
    return InputError(
        f"{place}: no space left ({_short(error)}); free some or choose another storage=…, then {GO_ON}"
    )


def is_full(error: BaseException) -> bool:
    """Whether it says that a disk or a store has no space left."""
    return (isinstance(error, OSError) and error.errno in _FULL) or bool(_FULL_TEXT.search(str(error)))


def _storage_error(error: BaseException) -> OSError | None:
    """The OSError behind what was raised, unless it was told as an InputError, or a person stops it."""
    if not isinstance(error, Exception):
        return None
    known = next((inner for inner in error_chain(error) if isinstance(inner, OSError | InputError)), None)
    return known if isinstance(known, OSError) else None


def _may_pass(error: OSError) -> bool:
    return not isinstance(error, _LASTING) and not _LASTING_ANSWER.search(str(error))


def _note(service: str, place: str, error: OSError) -> float:
    """Since when `service` has failed; says so where this is news."""
    with _lock:
        now, trouble = time.monotonic(), _troubles.get(service)
        quiet = math.inf if trouble is None else now - trouble.latest
        if quiet > (QUIET_S if trouble and trouble.since is None else PATIENCE_S):
            line = f"{place} answers with an error ({_short(error)}); trying again for up to {PATIENCE_S:g} s"
            _logger.warning("%s", one_line(redact(line)))
        since = now if trouble is None or trouble.since is None or quiet > PATIENCE_S else trouble.since
        _troubles[service] = _Trouble(since, now)
        return since


def _short(error: BaseException) -> str:
    return one_line(redact(getattr(error, "strerror", None) or str(error) or type(error).__name__))[:SHOWN]
