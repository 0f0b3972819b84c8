"""Commands that pages and jobs print, and whether they are ones that run."""

import argparse
import importlib
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from processes import ROOT

from benchmarks.__main__ import parser_of
from ims3_ray.cli import COMMANDS
from ims3_ray.config import load, settings
from ims3_ray.config.pretrain import Pretrain
from ims3_ray.evaluation.probes import check_probe_protocol
from ims3_ray.jobs.evaluate.command import parse_sets
from ims3_ray.jobs.runs.command import read_mode
from ims3_ray.jobs.runs.filters import read_condition
from ims3_ray.jobs.share.push import parse_target
from ims3_ray.jobs.sweep.rows import named_rows
from ims3_ray.jobs.sweep.search_space import read_space

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


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
    if words[0] == "sbatch":
        words = ["ims3", *words[words.index("cluster/slurm.sh") + 1 :]]
    words = words[: words.index(">")] if ">" in words else words  # a file that takes the output
    if Path(words[0]).name == "ims3":
        return None if words[1] == "--print-completion" else (words[1], words[2:])
    if words[:3] == ["python", "-m", "benchmarks"]:
        return f"benchmarks {words[3]}", words[4:]
    if len(words) > 1 and words[0].endswith("python") and Path(words[1]).parent.name == "jobs":
        script = (ROOT / "jobs" / Path(words[1]).name).read_text()  # a missing one fails here
        return re.search(r'job\("(\w+)"', script)[1], words[2:]
    return None


def parsed(name: str, words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
    importlib.import_module(COMMANDS[name]).add_arguments(parser)
    return parser.parse_intermixed_args(words)


def resolve_recipe(arguments: argparse.Namespace, overrides: dict) -> str:
    recipe = "digits" if arguments.recipe.endswith(".yaml") else arguments.recipe  # a file is the reader's
    config = load.load_config(recipe, overrides)
    if config.refine.steps:
        check_probe_protocol(config.probe, config.evaluate.protocol)
    return recipe


def resolve_runs(arguments: argparse.Namespace, overrides: dict) -> None:
    read_mode(arguments)
    for text in arguments.where:
        read_condition(text)
    assert set(overrides) <= {"storage"}


def resolve_sweep(arguments: argparse.Namespace, overrides: dict) -> None:
    recipe = resolve_recipe(arguments, overrides)
    if arguments.rows:
        assert arguments.rows.endswith(".yaml") or arguments.rows in named_rows()
    elif not arguments.space[0].endswith(".yaml"):
        read_space(arguments.space, recipe, overrides)


def resolve_evaluate(arguments: argparse.Namespace, overrides: dict) -> None:
    parse_sets(arguments.sets)
    load.load_settings(settings.Evaluating, overrides)


def resolve_push(arguments: argparse.Namespace, overrides: dict) -> None:
    parse_target(arguments.to)
    assert set(overrides) <= {"storage"}


def resolve_settings(kind: type) -> Callable[[argparse.Namespace, dict], object]:
    return lambda arguments, overrides: load.load_settings(kind, overrides)


RESOLVE: dict[str, Callable[[argparse.Namespace, dict], object]] = {
    **dict.fromkeys(("convert", "view"), lambda arguments, overrides: None),
    **dict.fromkeys(("doctor", "init"), lambda arguments, overrides: load.load_config("digits", overrides)),
    "distill": resolve_recipe,
    "evaluate": resolve_evaluate,
    "pretrain": resolve_settings(Pretrain),
    "push": resolve_push,
    "runs": resolve_runs,
    "select": resolve_settings(settings.Selecting),
    "sweep": resolve_sweep,
    "verify": resolve_settings(settings.Evaluating),
}


def resolve(name: str, words: list[str]) -> None:
    """Raises what the command would, for words that it refuses before any work."""
    if name.startswith("benchmarks "):
        arguments = parser_of(name.removeprefix("benchmarks ")).parse_intermixed_args(words)
        if hasattr(arguments, "recipe"):
            resolve_recipe(arguments, load.parse_overrides(arguments.overrides))
        return
    arguments = parsed(name, words)
    RESOLVE[name](arguments, load.parse_overrides(getattr(arguments, "overrides", [])))


def next_commands(out: str) -> dict[str, list[str]]:
    """By name, the words of the commands that a job's last lines print; each of ours is one that runs."""
    last = out.rstrip().rpartition("\n\n")[2].splitlines()
    told = {line[:15].strip(): shlex.split(line[15:]) for line in last}
    following = {name: words for name, words in told.items() if shutil.which(words[0])}
    assert 1 <= len(following) <= 2, out
    for words in following.values():
        if (ours := job(words)) is not None:
            resolve(*ours)
    return following
