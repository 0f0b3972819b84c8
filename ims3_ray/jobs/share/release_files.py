"""The file tree that is pushed: a distilled set as the hub shows it, with recipe, evaluation and models.

README.md                            card, with the stated accuracy
data/train-00000-of-00001.parquet    image, label (ClassLabel), subgroup, index, seed
recipe.yaml                          the run's recipe: `ims3 distill --recipe recipe.yaml` repeats it
evaluation.json                      if the run was evaluated
adapter/, probes/, teacher/          artefacts, if the run has them
manifest.json                        written last: size and SHA-256 of every file and image, and the
                                     classes in label order

The class folders' PNGs hold the Parquet file's bytes and are left out: many files make a hub slow.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import yaml

from ims3_ray.data.distilled import read_classes
from ims3_ray.errors import InputError
from ims3_ray.evaluation.results import Evaluation, format_accuracy
from ims3_ray.runs.mlflow_tracker import RECIPE_FILE
from ims3_ray.storage.artifacts import MANIFEST, DamagedError, Directory, complete, read_manifest
from ims3_ray.storage.directory import CHUNK, Stream
from ims3_ray.storage.integrity import verify

from .release import DISTILLED, EVALUATION, Release, accuracies

CARD, PNG_FOLDER = "README.md", "train/"


@dataclass(frozen=True)
class File:
    size: int  # bytes
    sha256: str
    write: Callable[[Stream], None]


@dataclass(frozen=True)
class ReleaseFiles:
    """All files by name, except the manifest; `details` are the manifest's other fields."""

    files: Mapping[str, File]
    details: Mapping[str, object]

    @property
    def checksums(self) -> dict[str, str]:
        return {name: file.sha256 for name, file in self.files.items()}

    def write(self, out: Directory) -> None:
        """Write the tree into an empty folder, the manifest last."""
        for name, file in self.files.items():
            out.write_stream(name, file.write)
        complete(out, {**self.details, "checksums": self.checksums})


def release_files(release: Release) -> ReleaseFiles:
    """The tree of a release, every byte verified first.

    Raises InputError for a damaged or incomplete artefact.
    """
    files = _artifact_files(release.distilled)
    manifest = read_manifest(release.distilled)
    details = {name: value for name, value in (manifest or {}).items() if name not in ("files", "checksums")}
    if release.is_pushed:
        return ReleaseFiles(files, details)
    files = {name: file for name, file in files.items() if not name.startswith(PNG_FOLDER)}
    files[CARD] = _in_memory(release.distilled.read(CARD) + _card_end(release).encode())
    recipe = yaml.safe_dump(dict(release.recipe), sort_keys=False, allow_unicode=True)
    files[RECIPE_FILE] = _in_memory(recipe.encode())
    for folder, artifact in release.models.items():
        files |= {f"{folder}/{name}": file for name, file in _artifact_files(artifact).items()}
        files[f"{folder}/{MANIFEST}"] = _in_memory(artifact.read(MANIFEST))
    if release.evaluation:
        files[EVALUATION] = _in_memory(json.dumps(release.evaluation, indent=2).encode())
    return ReleaseFiles(files, details | {"classes": read_classes(release.distilled)})


def _artifact_files(artifact: Directory) -> dict[str, File]:
    """An artefact's verified files by name, except its manifest."""
    manifest = read_manifest(artifact)
    if manifest is None:
        raise InputError(f"{artifact.uri}: is not complete; give the command that makes it again")
    damaged, _ = verify(artifact)
    if damaged:
        raise DamagedError(artifact, damaged)
    checksums = manifest.get("checksums", {})

    def copier(name: str) -> Callable[[Stream], None]:
        def copy(stream: Stream) -> None:
            with artifact.open_file(name) as source:
                shutil.copyfileobj(source, stream, CHUNK)

        return copy

    return {
        name: File(size, checksums.get(name) or artifact.sha256(name), copier(name))
        for name, size in manifest["files"].items()
    }


def _in_memory(content: bytes) -> File:
    def write(stream: Stream) -> None:
        stream.write(content)

    return File(len(content), hashlib.sha256(content).hexdigest(), write)


def _card_end(release: Release) -> str:
    """The card's last sections: accuracy, copies, and how to load the set."""
    lines = ["", "## Accuracy", ""]
    if release.evaluation:
        lines += [
            f"On the {release.evaluation['split']} images: mean and 95 % interval over seeds, percent.",
            "",
        ]
        for label, of in accuracies(release.evaluation).items():
            lines.append(f"- `{label}`: {format_accuracy(of)} ({of['count']} seeds)")
        if numerics := release.evaluation.get("numerics"):
            lines.append(f"- The classifiers were trained in {numerics}; the published protocols use fp32.")
        more = "" if "teacher" in release.evaluation else ", class order and this accuracy"
        lines += ["", f"`ims3 verify` checks checksums{more}."]
        lines += _copies(release.evaluation)
    else:
        lines.append("Not measured.")
    lines += ["", "```python", 'ims3_ray.load_distilled("hf://ORG/NAME")  # a torch Dataset', "```", ""]
    return "\n".join(lines)


def _copies(evaluation: Evaluation) -> list[str]:
    copy_rate = evaluation["coverage"].get(DISTILLED, {}).get("copy_rate")
    if not isinstance(copy_rate, float):
        return []
    share = f"{100 * copy_rate:.1f} % of the images are as close to a training image, in feature space"
    return ["", "## Privacy", "", f"{share}, as the closest percent of training images are to each other."]
