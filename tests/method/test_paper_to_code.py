"""docs/paper-to-code.md names existing functions."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_named_function_exists():
    places = re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", (ROOT / "docs/paper-to-code.md").read_text())
    assert len(places) > 30
    for path, name in places:
        tree = ast.parse((ROOT / "ims3_ray" / path).read_text())
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        assert not name or name in names, f"{path}::{name}"
