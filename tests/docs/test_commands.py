"""What the pages print is true of the code: commands parse, fields and files exist, links lead somewhere."""

import ast
import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from printed import FENCE, ROOT, commands, job, resolve

import ims3_ray
from benchmarks.__main__ import MODULES
from ims3_ray.cli import COMMANDS
from ims3_ray.config import settings
from ims3_ray.config.pretrain import Pretrain

PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("*/README.md")]
}
PRESENT = [page for page in PAGES if page != "CHANGELOG.md"]  # which speaks of what went
TOOLS = re.compile(
    "aws|export|git|ims3|install|kubectl|make|openssl|pipx?|pre-commit|prometheus|pytest|python|ray|sky|source|squeue|"
    "umask|unset|uvx?"
)
FILES = (".csv", ".db", ".html", ".json", ".jsonl", ".md", ".py", ".safetensors", ".toml", ".yaml")


def blocks(language: str) -> list[tuple[str, str]]:
    fences = [(page, *fence) for page, text in PAGES.items() for fence in FENCE.findall(text)]
    return [(page, body) for page, word, body in fences if word == language]


NOTEBOOK = "docs/quickstart.ipynb"
CELLS = ["".join(cell["source"]) for cell in json.loads((ROOT / NOTEBOOK).read_text())["cells"]]
SCRIPTS = blocks("bash") + [(NOTEBOOK, cell[1:]) for cell in CELLS if cell.startswith("!")]
OURS = re.compile(r"`((?:python (?:jobs/\S+|-m benchmarks \w+)|ims3 \w+) [^`]+)`")
INLINE = [
    (page, code)
    for page, text in PAGES.items()
    for code in OURS.findall(FENCE.sub("", text))
    if not set("…{}") & set(code) and not re.search(r"\b[A-Z]{2,}\b", code)  # … and STAGE are placeholders
]


@pytest.mark.parametrize(("page", "script"), SCRIPTS + INLINE)
def test_every_printed_command_is_one_that_runs(page: str, script: str) -> None:
    for words in commands(script):
        if (ours := job(words)) is None:
            assert TOOLS.fullmatch(Path(words[0]).name) or (ROOT / words[0]).is_file(), (page, words)
            continue
        resolve(*ours)


def test_every_command_is_printed_somewhere() -> None:
    printed = {ours[0] for _, script in SCRIPTS for words in commands(script) if (ours := job(words))}
    assert {name for name in printed if not name.startswith("benchmarks ")} == set(COMMANDS)
    assert {f"benchmarks {name}" for name in MODULES} <= printed | {"benchmarks encode", "benchmarks invert"}


@pytest.mark.parametrize(("page", "code"), blocks("python"))
def test_python_blocks_name_what_the_package_has(page: str, code: str) -> None:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ims3_ray"):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names), page
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "ims3_ray":
            assert node.attr in ims3_ray.__all__, page


def spans(page: str) -> list[str]:
    """The code spans of prose and tables."""
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", PAGES[page]))


def fields_of(kind: type, prefix: str = "") -> Iterator[str]:
    for name, field in kind.model_fields.items():
        yield prefix + name
        for inner in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(inner, type) and hasattr(inner, "model_fields"):
                yield from fields_of(inner, f"{prefix}{name}.")


@pytest.mark.parametrize("page", PRESENT)
def test_fields_named_in_the_text_exist(page: str) -> None:
    """Every `section.field`, with a value or without."""
    known = {*fields_of(settings.Config), *fields_of(Pretrain)}
    sections = {field.split(".")[0] for field in known if "." in field}
    dotted = re.findall(r"(?<![\w./-])([a-z_]+(?:\.[a-z_]+)+)(?![\w/(*-])", " ".join(spans(page)))
    named = {name for name in dotted if name.split(".")[0] in sections and not name.endswith(FILES)}
    assert named <= known, page


@pytest.mark.parametrize("page", PRESENT)
def test_files_and_modules_named_in_the_text_exist(page: str) -> None:
    """From the root, or below the package."""
    for span in spans(page):
        if place := re.match(r"(?:ims3_ray|jobs|cluster|tests|docs|\.ci)/[a-z_0-9./-]*+(?![\w:])", span):
            assert list(ROOT.glob(place[0])) or list(ROOT.glob(f"ims3_ray/{place[0]}")), (page, span)
        if module := re.fullmatch(r"ims3_ray((?:\.[a-z_0-9]+)+)", span):
            assert module[1][1:] in ims3_ray.__all__ or importlib.import_module(span), (page, span)


def anchors(text: str) -> set[str]:
    """As code hosts make them of headings."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", PAGES[page])):
        if target.startswith(("https://", "mailto:")):
            continue
        place, _, anchor = target.partition("#")
        path = (ROOT / page).parent / place if place else ROOT / page
        assert path.is_file(), (page, target)
        assert not anchor or anchor in anchors(path.read_text(encoding="utf-8")), (page, target)


def linked(page: str) -> set[Path]:
    links = re.findall(r"\]\(([^)#\s]+)", PAGES[page])
    return {((ROOT / page).parent / link).resolve() for link in links}


def test_every_page_is_linked_from_the_index_and_the_index_from_the_readme() -> None:
    pages = {ROOT / page for page in PAGES if page.startswith("docs/") and page != "docs/README.md"}
    assert pages <= linked("docs/README.md")
    assert ROOT / "docs/README.md" in linked("README.md")


def test_pages_are_short_enough_to_read() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 140
    for page, text in PAGES.items():
        long = [line for line in text.splitlines() if len(line) > 110 and not line.lstrip().startswith("|")]
        assert not long, (page, long)
