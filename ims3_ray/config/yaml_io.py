"""YAML that people write: plain data, every key once, and a word on why where it is none."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

Refuse = Callable[[str], Exception]
MERGE = "tag:yaml.org,2002:merge"  # `<<`, which may stand again


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        if node.id == "mapping":  # else YAML's own refuses it
            seen = set[tuple[str, str]]()
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode) or key.tag == MERGE:
                    continue
                if (key.tag, key.value) in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands twice")
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def read_text(path: Path, refuse: Refuse) -> str:
    """The text of a file in UTF-8. Raises `refuse(why)` where it can't be read as that."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise refuse(f"is no text in UTF-8 ({error})") from error
    except OSError as error:
        raise refuse(f"can't be read ({error.strerror or error})") from error


def read_yaml(text: str, refuse: Refuse) -> Any:
    """What YAML text holds. Raises `refuse(why)`, of a few words, where it is none.

    A key that stands twice in a mapping is refused, since the first would be lost in silence.
    """
    try:
        return _Loader(text).get_single_data()
    except RecursionError as error:
        raise refuse("is nested too deeply") from error
    except (yaml.YAMLError, ValueError, LookupError, AttributeError) as error:  # of dates and numbers
        raise refuse(f"is not valid YAML: {' '.join(str(error).split())[:200]}") from error
