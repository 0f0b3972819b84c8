"""List the recipes that come with the package: what each distils, by which model, and how it is scored.

python jobs/recipes.py
python jobs/recipes.py --show imagewoof                 the YAML itself, to begin one of your own with
"""

import argparse
import re

from ims3_ray.config.load import load_config, recipe_names, recipe_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--show", metavar="NAME", help="print this recipe as it is written")


def run(arguments: argparse.Namespace) -> None:
    if arguments.show is None:
        print("\n".join(table()))
    else:
        print(recipe_text(arguments.show)[1], end="")


def table() -> list[str]:
    """A line a recipe, and what its first sentence says below."""
    lines = []
    for name in recipe_names():
        config = load_config(name)
        classes = config.data.classes
        images = config.data.train or (f"{len(classes)} classes of yours" if classes else "images of yours")
        facts = f"{images}; {config.model.path}; scored by {config.evaluate.protocol}; ipc {config.ipc}"
        lines += [f"{name:<20} {facts}", f"{'':<20} {_first_sentence(recipe_text(name)[1])}"]
    return lines


def _first_sentence(text: str) -> str:
    """Of the comment that a recipe begins with."""
    comment = " ".join(re.findall(r"\A(?:#.*\n)+", text)[0].replace("#", " ").split())
    return re.split(r"(?<=[a-z)])[:.] ", comment)[0].rstrip(":.")
