"""What people are shown of what others gave: on one line, without control characters or secrets, as text and
no markup.
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping

# Besides control characters: the marks that turn the direction of a line, lone surrogates, and what isn't
# printed at all.
UNPRINTABLE = r"\x00-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff"
HIDDEN = "***"
SECRET_VARIABLES = (  # environment variables whose values are shown nowhere
    "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AZURE_STORAGE_KEY", "HF_TOKEN", "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN", "RAY_AUTH_TOKEN",
)  # fmt: skip
MIN_SECRET = 6  # characters: what is shorter would blot out words
_USER = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^\s'\"]*)@")
_SECRET_FIELD = re.compile(
    r"([?&;][^=&;\s]*(?:secret|token|passw|pwd|credential|signature|access_?key|sig)[^=&;\s]*=)[^&;\s'\"]+",
    re.IGNORECASE,
)
# there, what stands before @ is a container or a name
_PUBLIC_USERS = ("abfs", "abfss", "gs", "gcs", "hdfs", "viewfs")


def first_few(values: Iterable[object], most: int = 5, show: Callable[[object], str] = repr) -> str:
    """The first few of them, and how many more there are."""
    shown = [show(value) for value in values]
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")


def noun(number: int, plural: str) -> str:
    """What so many are called: "images", and of one "image"."""
    return re.sub("(?<=ss)es$|s$", "", plural) if number == 1 else plural


def format_bytes(num_bytes: float) -> str:
    """As a person reads it: "12.3 GB"."""
    for unit, power in {"TB": 1e12, "GB": 1e9, "MB": 1e6, "kB": 1e3}.items():
        if num_bytes >= 0.9995 * power:  # else three digits of it are 1e+03
            return f"{num_bytes / power:.3g} {unit}"
    return f"{num_bytes:.0f} B"


def describe_mismatch(found: Mapping[str, object], expected: Mapping[str, object]) -> str:
    """The names that are missing, left over or of another shape; "" where both hold the same."""
    problems = {
        "missing": [name for name in expected if name not in found],
        "left over": [name for name in found if name not in expected],
        "of another shape": [
            f"{name} is {found[name]}, not {shape}"
            for name, shape in expected.items()
            if name in found and found[name] != shape
        ],
    }
    return "; ".join(f"{problem}: {first_few(names, 3, str)}" for problem, names in problems.items() if names)


def one_line(text: str) -> str:
    """The same on one line: breaks are blanks, other control characters `\\x1b`."""
    return escape_unprintable(re.sub(r"[ ]*[\t-\r\x1c-\x1e\x85\u2028\u2029]+[ ]*", " ", text).strip())


def escape_unprintable(name: str) -> str:
    """A name that someone else chose, every control character in it as its escape: `a\\nb`."""
    return re.sub(f"[{UNPRINTABLE}]", lambda found: found[0].encode("unicode_escape").decode(), name)


def redact(text: str) -> str:
    """Without credentials in URIs, and without the values of SECRETS."""
    text = redact_uris(text)
    for value in {os.environ.get(name, "") for name in SECRET_VARIABLES}:
        if len(value) >= MIN_SECRET:
            text = text.replace(value, HIDDEN)
    return text


def redact_uris(text: str) -> str:
    """URIs in it without user and password, and without the values of fields such as `?secret_key=`."""

    def masked(found: re.Match) -> str:
        scheme, user = found[1], found[2]
        is_path = "/" in user and ":" not in user  # https://host/path@version
        is_public = scheme.lower() in _PUBLIC_USERS and ":" not in user
        return found[0] if is_path or is_public else f"{scheme}://{HIDDEN}@"

    return _SECRET_FIELD.sub(rf"\1{HIDDEN}", _USER.sub(masked, text))


def markdown_text(text: str) -> str:
    """The same in Markdown: on one line, and nothing in it is a tag, a link or emphasis."""
    return re.sub(r"[\\`*\[\]<>&|~$]|(?<!\w)_|_(?!\w)", lambda found: f"&#{ord(found[0])};", one_line(text))


def markdown_code(text: str) -> str:
    """The same as code in Markdown, between more backticks than it holds."""
    text = one_line(text)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    blank = " " if len(fence) > 1 else ""
    return f"{fence}{blank}{text}{blank}{fence}"
