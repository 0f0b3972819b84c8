"""The files below a folder of this machine. Symbolic links are followed wherever they lead, and loops end.

Below each entry of the folder, a folder counts once however many links lead to it: two links that lead back
up would otherwise have more paths than could ever be listed. What is no file is told by name, never left out
in silence.
"""

import errno
import os
import stat

from ims3_ray.display import escape_unprintable

REASONS = {
    errno.ENOENT: "is a symbolic link to nothing",
    errno.ELOOP: "is a symbolic link that leads to itself",
}
TWICE = "leads to a folder that is listed already"


def listed(root: str, within: str = "") -> tuple[list[str], dict[str, str]]:
    """(names of the files, {name: why it is none}) below `root`, sorted; none where there is no folder.

    `within` lists what is below that folder of it alone.
    """
    files: list[str] = []
    odd: dict[str, str] = {}
    if not os.path.lexists(root):
        return files, odd
    top = _identity(os.stat(root))
    for name in [within] if within else sorted(os.listdir(root)):
        _below(root, name, {top}, files, odd)
    return sorted(files), {escape_unprintable(name): why for name, why in sorted(odd.items())}


def _below(root: str, first: str, seen: set[tuple[int, int]], files: list[str], odd: dict[str, str]) -> None:
    """Add what `first` is, and all below it; `seen` are folders that do not count again."""
    pending, links = [first], []  # links last: a folder counts by its own name rather than by a link's
    while pending or links:
        name = pending.pop() if pending else links.pop(0)
        try:
            folder = _look(f"{root}/{name}")
            if folder is None:
                files.append(name)
            elif folder in seen:
                odd[name] = TWICE
            else:
                seen.add(folder)
                for entry in sorted(os.scandir(f"{root}/{name}"), key=lambda entry: entry.name):
                    inner = f"{name}/{entry.name}"
                    if not entry.is_symlink() and entry.is_file() and _is_text(inner):
                        files.append(inner)
                    else:
                        (links if entry.is_symlink() else pending).append(inner)
        except FileNotFoundError:
            if os.path.islink(f"{root}/{name}"):  # else it was deleted since: a temporary file
                odd[name] = REASONS[errno.ENOENT]
        except OSError as error:
            odd[name] = REASONS.get(error.errno or 0) or f"can't be listed ({error.strerror or error})"


def _look(path: str) -> tuple[int, int] | None:
    """None for a file, the identity of a folder; OSError says why it is neither."""
    if not _is_text(path):
        raise OSError(errno.EILSEQ, "its name is no UTF-8")
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        return _identity(status)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")
    return None


def _is_text(path: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in path)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
