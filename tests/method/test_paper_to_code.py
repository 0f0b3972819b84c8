"""docs/paper-to-code.md names existing functions, and each cites the equations of its row."""

import ast
import re

from processes import ROOT

PAGE = (ROOT / "docs/paper-to-code.md").read_text()
PLACE = r"`([\w/]+\.py)(?:::(\w+))?`"


def definitions(path):
    tree = ast.parse((ROOT / "ims3_ray" / path).read_text())
    nodes = (node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef))
    return {node.name: f"{ast.get_docstring(tree)} {ast.get_docstring(node)}" for node in nodes}


def test_every_named_function_exists():
    places = re.findall(PLACE, PAGE)
    assert len(places) > 30
    for path, name in places:
        assert not name or name in definitions(path), f"{path}::{name}"


def test_the_functions_of_a_row_cite_its_equations():
    rows = [row.split("|")[1:] for row in PAGE.splitlines() if re.match(r"\| Eq\. \d", row)]
    assert len(rows) > 7
    for paper, functions, *_ in rows:
        (numbers,) = re.findall(r"^ Eq\. [\d–]+", paper)
        for path, name in re.findall(PLACE, functions):
            assert numbers.strip() in definitions(path)[name], f"{path}::{name} cites no {numbers}"


def test_every_statistic_and_distance_of_refinement_has_a_row():
    from ims3_ray.method.refine import OBJECTIVES

    for objective in OBJECTIVES.values():
        for function in (objective.measure, objective.distance):
            assert f"method/refine.py::{function.__name__}`" in PAGE
