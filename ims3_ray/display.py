"""Format text for display: tables, numbers with units, and untrusted text without control characters,
credentials or markup.
"""

import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

# control characters, marks that change the direction of text, lone surrogates, zero-width characters
UNPRINTABLE = r"\x00-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff"
HIDDEN = "***"
SECRET_VARIABLES = (  # environment variables whose values are never displayed
    "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AZURE_STORAGE_KEY", "HF_TOKEN", "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN", "RAY_AUTH_TOKEN",
)  # fmt: skip
MIN_SECRET = 6  # characters; hiding shorter values would hide words
_USER = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^\s'\"]*)@")
_SECRET_FIELD = re.compile(
    r"([?&;][^=&;\s]*(?:secret|token|passw|pwd|credential|signature|access_?key|sig)[^=&;\s]*=)[^&;\s'\"]+",
    re.IGNORECASE,
)
_PUBLIC_USERS = ("abfs", "abfss", "gs", "gcs", "hdfs", "viewfs")  # schemes with a container or name before @


def first_few(values: Iterable[object], most: int = 5, show: Callable[[object], str] = repr) -> str:
    """Return the first `most` values, and the number of the others: "1, 2 and 7 more"."""
    texts = [show(value) for value in values]
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")


def noun(number: int, plural: str) -> str:
    """Return the plural, or its singular for 1: "images", "image"."""
    return re.sub("(?<=ss)es$|s$", "", plural) if number == 1 else plural


def format_bytes(num_bytes: float) -> str:
    """Return three digits and a unit: "12.3 GB"."""
    for unit, power in {"TB": 1e12, "GB": 1e9, "MB": 1e6, "kB": 1e3}.items():
        if num_bytes >= 0.9995 * power:  # below, rounding gives 1e+03
            return f"{num_bytes / power:.3g} {unit}"
    return f"{num_bytes:.0f} B"


def align_columns(rows: Sequence[Sequence[str]], left: Collection[int], indent: int = 0) -> list[str]:
    """Return rows of cells as lines; columns in `left` are left-aligned, the others right-aligned.

    On a terminal, columns that do not fit its width follow in a further table, below the first column.
    """
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    padded = [
        [cell.ljust(width) if index in left else cell.rjust(width) for cell in column]
        for index, (column, width) in enumerate(zip(columns, widths, strict=True))
    ]
    room = shutil.get_terminal_size().columns - indent if sys.stdout.isatty() else math.inf
    blocks, used = [[padded[0]]], widths[0]
    for column, width in zip(padded[1:], widths[1:], strict=True):
        if used + 2 + width > room and len(blocks[-1]) > 1:
            blocks, used = [*blocks, [padded[0]]], widths[0]
        blocks[-1].append(column)
        used += 2 + width
    tables = (["  ".join(row).rstrip() for row in zip(*block, strict=True)] for block in blocks)
    lines = [line for number, table in enumerate(tables) for line in ([""] if number else []) + table]
    return [f"{' ' * indent}{line}".rstrip() for line in lines]


def describe_mismatch(found: Mapping[str, object], expected: Mapping[str, object]) -> str:
    """Return the names that are missing, left over or of another shape; "" if both mappings agree."""
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
    """Replace line breaks by blanks, and escape other control characters (`\\x1b`)."""
    return escape_unprintable(re.sub(r"[ ]*[\t-\r\x1c-\x1e\x85\u2028\u2029]+[ ]*", " ", text).strip())


def escape_unprintable(name: str) -> str:
    """Escape each control character: `a\\nb`."""
    return re.sub(f"[{UNPRINTABLE}]", lambda match: match[0].encode("unicode_escape").decode(), name)


def redact(text: str) -> str:
    """Hide credentials in URIs and the values of SECRET_VARIABLES."""
    text = redact_uris(text)
    for value in {os.environ.get(name, "") for name in SECRET_VARIABLES}:
        if len(value) >= MIN_SECRET:
            text = text.replace(value, HIDDEN)
    return text


def redact_uris(text: str) -> str:
    """Hide user and password in URIs, and the values of fields such as `?secret_key=`."""

    def masked(match: re.Match) -> str:
        scheme, user = match[1], match[2]
        is_path = "/" in user and ":" not in user  # https://host/path@version
        is_public = scheme.lower() in _PUBLIC_USERS and ":" not in user
        return match[0] if is_path or is_public else f"{scheme}://{HIDDEN}@"

    return _SECRET_FIELD.sub(rf"\1{HIDDEN}", _USER.sub(masked, text))


def confirm(question: str) -> bool:
    """Ask the user; without an answer, it is a no."""
    print(f"{question} [y/N] ", end="", flush=True)  # input() would write it to stderr
    try:
        return input().strip().lower() in ("y", "yes")
    except EOFError:
        print()
        return False


def markdown_text(text: str) -> str:
    """Return one line of Markdown in which nothing is a tag, a link or emphasis."""
    return re.sub(r"[\\`*\[\]<>&|~$]|(?<!\w)_|_(?!\w)", lambda match: f"&#{ord(match[0])};", one_line(text))


def markdown_code(text: str) -> str:
    """Return the text as code in Markdown, between more backticks than it contains."""
    text = one_line(text)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    blank = " " if len(fence) > 1 else ""
    return f"{fence}{blank}{text}{blank}{fence}"
