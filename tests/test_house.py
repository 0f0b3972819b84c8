"""Size, structure and wording of the package: rules of CONTRIBUTING that no linter checks."""

import ast
from pathlib import Path
from typing import get_args

from ims3_ray.config.evaluation import Baseline, NetworkName, ProtocolName, scored_split
from ims3_ray.evaluation.protocols import PROTOCOLS
from ims3_ray.evaluation.results import SET_TITLES
from ims3_ray.jobs import COMMANDS
from ims3_ray.models.classifiers import DEFAULT_WIDTH, SMALLEST_IMAGE
from ims3_ray.stages.evaluate.baselines import CORESETS

ROOT = Path(__file__).parents[1]
FILES = {path: path.read_text(encoding="utf-8") for path in (ROOT / "ims3_ray").rglob("*.py")}


# A commit that raises one of these limits states the reason.
MAX_PACKAGE_BYTES, MAX_PACKAGE_FILES, MAX_TEST_BYTES = 1_369_800, 217, 898_100
MAX_COMMANDS, MAX_FIELDS = 12, 150
MAX_FILE_LINES, MAX_FUNCTION_LINES = 300, 49
VAGUE_OPENINGS = {"Of", "What", "Who", "Whoever", "That", "Where"}


def test_package_and_tests_keep_within_their_size() -> None:
    test_files = (ROOT / "tests").rglob("*.py")
    assert sum(path.stat().st_size for path in FILES) <= MAX_PACKAGE_BYTES
    assert len(FILES) <= MAX_PACKAGE_FILES
    assert sum(path.stat().st_size for path in test_files) <= MAX_TEST_BYTES


def test_commands_and_fields_keep_within_their_number() -> None:
    rows = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8").splitlines()
    assert len(COMMANDS) <= MAX_COMMANDS
    assert 0 < sum(row.startswith("| `") for row in rows) <= MAX_FIELDS


def test_docstrings_begin_with_a_verb_or_a_noun() -> None:
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    openings = [
        (str(path), docstring.split()[0])
        for path, text in FILES.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, documented) and (docstring := ast.get_docstring(node))
    ]
    assert not [(path, word) for path, word in openings if word.strip(",:") in VAGUE_OPENINGS]


def test_files_and_functions_are_short_enough_to_read() -> None:
    long_files = {str(path) for path, text in FILES.items() if len(text.splitlines()) > MAX_FILE_LINES}
    functions = [
        (path, node)
        for path, text in FILES.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    long_functions = {
        f"{path} {f.name}" for path, f in functions if f.end_lineno - f.lineno > MAX_FUNCTION_LINES
    }
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
