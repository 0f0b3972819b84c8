"""What the pages print is true of the code: commands parse, fields and files exist, links lead somewhere."""

import argparse
import ast
import importlib
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import ims3_ray
from ims3_ray.cli import COMMANDS
from ims3_ray.config import load, pretrain, settings
from ims3_ray.jobs.evaluate.command import named_sets
from ims3_ray.jobs.runs.command import read_mode
from ims3_ray.jobs.runs.conditions import read_conditions
from ims3_ray.jobs.sweep.space import read_space

ROOT = Path(__file__).parents[2]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "cluster/README.md"]
}
PRESENT = [page for page in PAGES if page != "CHANGELOG.md"]  # which speaks of what went
TOOLS = re.compile("aws|export|git|install|kubectl|make|openssl|pip|pre-commit|pytest|python|ray|umask|uv")
FILES = (".csv", ".db", ".html", ".json", ".jsonl", ".md", ".py", ".safetensors", ".toml", ".yaml")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(language: str) -> list[tuple[str, str]]:
    return [
        (page, body) for page, text in PAGES.items() for word, body in FENCE.findall(text) if word == language
    ]


def commands(script: str) -> Iterator[list[str]]:
    """The words of every command of a script: continued lines joined, comments dropped, lists taken apart."""
    for line in script.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&;|()")
        lexer.whitespace_split, words = True, []
        for word in [*lexer, ";"]:
            if word and set(word) <= set("&;|()"):
                if words:
                    yield words
                words = []
            elif words or not re.fullmatch(r"[A-Z_]+=.*", word):  # a variable in front of a command
                words.append(word)


def job(words: list[str]) -> tuple[str, list[str]] | None:
    """(command, its words) where `words` start one of ours."""
    if words[:3] == ["ray", "job", "submit"] and "--" in words:
        words = words[words.index("--") + 1 :]
    if words[0] == "ims3":
        return words[1], words[2:]
    if len(words) > 1 and words[0].endswith("python") and words[1].startswith("jobs/"):
        script = (ROOT / words[1]).read_text()  # a missing one fails here
        return re.search(r'run_command\("(\w+)"', script)[1], words[2:]
    return None


def parsed(name: str, words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
    importlib.import_module(COMMANDS[name]).add_arguments(parser)
    return parser.parse_intermixed_args(words)


def resolve_recipe(arguments: argparse.Namespace, overrides: dict) -> str:
    recipe = "digits" if arguments.recipe.endswith(".yaml") else arguments.recipe  # a file is the reader's
    load.load_config(recipe, overrides)
    return recipe


def resolve_runs(arguments: argparse.Namespace, overrides: dict) -> None:
    read_mode(arguments)
    read_conditions(arguments.where)
    assert set(overrides) <= {"storage"}


def resolve_sweep(arguments: argparse.Namespace, overrides: dict) -> None:
    recipe = resolve_recipe(arguments, overrides)
    if not arguments.space[0].endswith(".yaml"):
        read_space(arguments.space, recipe, overrides)


def resolve_ablate(arguments: argparse.Namespace, overrides: dict) -> None:
    resolve_recipe(arguments, overrides)
    assert (ROOT / f"ims3_ray/jobs/ablate/rows/{arguments.rows}.yaml").is_file()


def resolve_evaluate(arguments: argparse.Namespace, overrides: dict) -> None:
    named_sets(arguments.sets)
    load.load_settings(settings.Evaluating, overrides)


RESOLVE: dict[str, Callable[[argparse.Namespace, dict], object]] = {
    "ablate": resolve_ablate,
    "bench": resolve_recipe,
    "convert": lambda arguments, overrides: None,
    "distill": resolve_recipe,
    "evaluate": resolve_evaluate,
    "init": lambda arguments, overrides: load.load_config("digits", overrides),
    "pretrain": lambda arguments, overrides: load.load_settings(pretrain.Pretrain, overrides),
    "recipes": lambda arguments, overrides: None,
    "runs": resolve_runs,
    "select": lambda arguments, overrides: load.load_settings(settings.Selecting, overrides),
    "sweep": resolve_sweep,
}
SCRIPTS = blocks("bash")
INLINE = [
    (page, code)
    for page, text in PAGES.items()
    for code in re.findall(r"`((?:python jobs/\S+|ims3 \w+) [^`]+)`", FENCE.sub("", text))
    if not set("…{}") & set(code) and not re.search(r"\b[A-Z]{2,}\b", code)  # … and STAGE are placeholders
]


@pytest.mark.parametrize(("page", "script"), SCRIPTS + INLINE)
def test_every_printed_command_is_one_that_runs(page: str, script: str) -> None:
    for words in commands(script):
        if (ours := job(words)) is None:
            assert TOOLS.fullmatch(Path(words[0]).name), (page, words)
            continue
        name, arguments = ours[0], parsed(*ours)
        RESOLVE[name](arguments, load.parse_overrides(getattr(arguments, "overrides", [])))


def test_every_command_is_printed_somewhere() -> None:
    printed = {ours[0] for _, script in SCRIPTS for words in commands(script) if (ours := job(words))}
    assert printed == set(COMMANDS)


@pytest.mark.parametrize(("page", "code"), blocks("python"))
def test_python_blocks_name_what_the_package_has(page: str, code: str) -> None:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ims3_ray"):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names), page
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "ims3_ray"
        ):
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
    known = {*fields_of(settings.Config), *fields_of(pretrain.Pretrain)}
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


def test_every_page_is_linked_from_the_index_and_from_the_first_screen() -> None:
    pages = {ROOT / page for page in PAGES if page.startswith("docs/") and page != "docs/README.md"}
    for index in ("README.md", "docs/README.md"):
        links = re.findall(r"\]\(([^)#\s]+)", PAGES[index])
        assert pages <= {((ROOT / index).parent / link).resolve() for link in links}, index


def test_pages_are_short_enough_to_read() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 160
    for page, text in PAGES.items():
        long = [line for line in text.splitlines() if len(line) > 110 and not line.lstrip().startswith("|")]
        assert not long, (page, long)
