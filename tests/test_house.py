"""The size and order of the house: what CONTRIBUTING asks of every file, and no linter holds."""

import ast
from pathlib import Path
from typing import get_args

from ims3_ray.config.evaluation import Baseline, NetworkName, ProtocolName, scored_split
from ims3_ray.evaluation.protocols import PROTOCOLS
from ims3_ray.evaluation.results import SET_TITLES
from ims3_ray.models.classifiers import DEFAULT_WIDTH, SMALLEST_IMAGE
from ims3_ray.stages.evaluate.baselines import CORESETS

ROOT = Path(__file__).parents[1]
FILES = {path: path.read_text(encoding="utf-8") for path in (ROOT / "ims3_ray").rglob("*.py")}


def test_files_and_functions_are_short_enough_to_read() -> None:
    long_files = {str(path) for path, text in FILES.items() if len(text.splitlines()) > 300}
    functions = [
        (path, node)
        for path, text in FILES.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    long_functions = {f"{path} {f.name}" for path, f in functions if f.end_lineno - f.lineno >= 50}
    assert not long_files | long_functions


def test_the_front_door_is_six_modules() -> None:
    assert {path.stem for path in (ROOT / "ims3_ray").glob("*.py")} == {
        "__init__",
        "__main__",
        "cli",
        "errors",
        "progress",
        "display",
    }


def test_the_tests_mirror_the_package() -> None:
    folders = {path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")}
    apart = {Path("benchmarks"), Path("docs"), Path("gpu")}
    assert not {
        f
        for f in folders - apart
        if not any((ROOT / "ims3_ray" / f).with_suffix(s).exists() for s in ("", ".py"))
    }


def test_every_named_baseline_and_network_is_known_wherever_it_must_be() -> None:
    assert {"random", *CORESETS} == set(get_args(Baseline)) <= set(SET_TITLES)
    assert set(DEFAULT_WIDTH) == set(SMALLEST_IMAGE) == set(get_args(NetworkName))
    assert {name for name in PROTOCOLS if not name.endswith("-val")} == set(get_args(ProtocolName))
    assert all(protocol.split == scored_split(name) for name, protocol in PROTOCOLS.items())
