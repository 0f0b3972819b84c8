"""List the recipes: what each distils, by which model, how long.

    python jobs/recipes.py
    python jobs/recipes.py --show imagewoof      the YAML itself

One for images of your own is begun by ims3 init.
"""

import argparse
import re
import textwrap

from ims3_ray.config.load import load_config, recipe_names, recipe_text

INDENT = "    "


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--show", metavar="NAME", help="print this recipe as it is written")


def run(arguments: argparse.Namespace) -> None:
    if arguments.show is None:
        print("\n".join(table()))
    else:
        print(recipe_text(arguments.show)[1], end="")


def table() -> list[str]:
    """A recipe's name, and below it what its first sentence says, what it takes, where and how long."""
    lines = []
    for name in recipe_names():
        config, comment = load_config(name), _comment(recipe_text(name)[1])
        classes = config.data.classes
        images = config.data.train or (f"{len(classes)} classes of yours" if classes else "images of yours")
        sentence = re.split(r"(?<=[a-z)])[:.] ", comment)[0].rstrip(":.")
        where, time = _stated(comment, "Hardware"), _stated(comment, "Time(?: and memory)?")
        facts = f"{images}; {config.model.path}; scored by {config.evaluate.protocol}; ipc {config.ipc}"
        lines.append(name)
        for text in (f"{sentence}.", facts, f"{where}; time {time}"):
            lines += textwrap.wrap(text, 80, initial_indent=INDENT, subsequent_indent=INDENT)
    return lines


def hardware(name: str) -> str:
    """What a recipe takes, as the comment that it begins with says."""
    return _stated(_comment(recipe_text(name)[1]), "Hardware")


def _stated(comment: str, word: str) -> str:
    return re.findall(rf"{word}: (.*?)[.;] ", comment)[0]


def _comment(text: str) -> str:
    """What a recipe begins with, on one line."""
    return " ".join(re.findall(r"\A(?:#.*\n)+", text)[0].replace("#", " ").split())
