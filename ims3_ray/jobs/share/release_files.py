"""The tree of files that is pushed: a distilled set as the hub shows it, and what it was made and scored by.

README.md                            the card, with the accuracy that is stated
data/train-00000-of-00001.parquet    image, label (ClassLabel), subgroup, index, seed
recipe.yaml                          of the run: `ims3 distill --recipe recipe.yaml` makes it again
evaluation.json                      where it was scored
adapter/, probes/, teacher/          artefacts, where the run has them
manifest.json                        written last: every file's size and SHA-256, every image's, and the
                                     classes in the order that labels count

The PNGs of the class folders are the Parquet file's bytes, and stay behind: many files make a hub slow.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import yaml

from ims3_ray.data.distilled import read_classes
from ims3_ray.errors import InputError
from ims3_ray.evaluation.membership import in_words as attack_in_words
from ims3_ray.evaluation.results import Evaluation
from ims3_ray.evaluation.table import in_words
from ims3_ray.runs.mlflow_tracker import RECIPE_FILE
from ims3_ray.storage.artifacts import MANIFEST, DamagedError, Directory, complete, read_manifest
from ims3_ray.storage.directory import CHUNK, Stream
from ims3_ray.storage.integrity import verify

from .claims import DISTILLED, accuracies
from .release import EVALUATION, Product

CARD, LEFT_BEHIND = "README.md", "train/"
Fill = Callable[[Stream], None]


@dataclass(frozen=True)
class File:
    """A file of the tree, which `fill` writes to a stream a piece at a time."""

    size: int  # bytes
    sha256: str
    fill: Fill


@dataclass(frozen=True)
class Bundle:
    """`files` by name, but the manifest, of which `details` are the rest."""

    files: Mapping[str, File]
    details: Mapping[str, object]

    @property
    def checksums(self) -> dict[str, str]:
        return {name: file.sha256 for name, file in self.files.items()}

    def write(self, out: Directory) -> None:
        """Write the tree into an empty folder, its manifest last."""
        for name, file in self.files.items():
            out.write_stream(name, file.fill)
        complete(out, {**self.details, "checksums": self.checksums})


def bundle(product: Product) -> Bundle:
    """The tree of a product, every byte of which is held against its checksum first.

    InputError for what is damaged or was never completed.
    """
    files = _files(product.distilled)
    manifest = read_manifest(product.distilled)
    details = {name: value for name, value in (manifest or {}).items() if name not in ("files", "checksums")}
    if product.is_shared:
        return Bundle(files, details)
    files = {name: file for name, file in files.items() if not name.startswith(LEFT_BEHIND)}
    files[CARD] = _of_bytes(product.distilled.read(CARD) + _stated(product).encode())
    recipe = yaml.safe_dump(dict(product.recipe), sort_keys=False, allow_unicode=True)
    files[RECIPE_FILE] = _of_bytes(recipe.encode())
    for noun, artifact in product.models.items():
        files |= {f"{noun}/{name}": file for name, file in _files(artifact).items()}
        files[f"{noun}/{MANIFEST}"] = _of_bytes(artifact.read(MANIFEST))
    if product.evaluation:
        files[EVALUATION] = _of_bytes(json.dumps(product.evaluation, indent=2).encode())
    return Bundle(files, details | {"classes": read_classes(product.distilled)})


def _files(artifact: Directory) -> dict[str, File]:
    """By name, but the manifest; checked."""
    manifest = read_manifest(artifact)
    if manifest is None:
        raise InputError(f"{artifact.uri}: is not complete; give the command that makes it again")
    damaged, _ = verify(artifact)
    if damaged:
        raise DamagedError(artifact, damaged)
    checksums = manifest.get("checksums", {})
    return {
        name: File(size, checksums.get(name) or artifact.sha256(name), _copier(artifact, name))
        for name, size in manifest["files"].items()
        if name != MANIFEST
    }


def _copier(source: Directory, name: str) -> Fill:
    def fill(stream: Stream) -> None:
        with source.filesystem.open_input_file(f"{source.path}/{name}") as given:
            shutil.copyfileobj(given, stream, CHUNK)

    return fill


def _of_bytes(content: bytes) -> File:
    def fill(stream: Stream) -> None:
        stream.write(content)

    return File(len(content), hashlib.sha256(content).hexdigest(), fill)


def _stated(product: Product) -> str:
    """The end of the card: what it is said to be worth, and how one sees for oneself."""
    lines = ["", "## Accuracy", ""]
    if product.evaluation:
        split, scored = product.evaluation["split"], accuracies(product.evaluation)
        lines += [f"On the {split} images, in percent, mean and 95 % interval of the seeds:", ""]
        lines += [f"- `{label}`: {in_words(of)} ({of['count']} seeds)" for label, of in scored.items()]
        lines += ["", "`ims3 verify` holds checksums, class order and accuracy against what is said here."]
        lines += _privacy(product.evaluation)
    else:
        lines.append("Not measured.")
    lines += ["", "```python", 'ims3_ray.load_distilled("hf://ORG/NAME")  # a torch Dataset', "```", ""]
    return "\n".join(lines)


def _privacy(evaluation: Evaluation) -> list[str]:
    """What is known of the training images behind the set: how near it is to them, and who can be told."""
    lines, near = [], evaluation["coverage"].get(DISTILLED, {})
    if isinstance(copied := near.get("copy_rate"), float):
        share = f"{100 * copied:.1f} % of the images are as near to a training image, in feature space"
        lines.append(f"- {share}, as the nearest percent of these are to each other.")
    if membership := evaluation["sets"][DISTILLED].get("membership"):
        lines.append(f"- {attack_in_words(membership)}")
    return ["", "## Privacy", "", *lines] if lines else []
