"""The card describes how a run made its images; images are read and written in blocks."""

import hashlib
import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from ims3_ray.config.load import load_config
from ims3_ray.data.distilled import DistilledSet
from ims3_ray.data.transforms import encode_png
from ims3_ray.method.refine import OBJECTIVES
from ims3_ray.stages import export
from ims3_ray.stages.export import describe_method
from ims3_ray.storage import rows, schemas
from ims3_ray.storage.artifacts import DamagedError, complete, open_directory

IMAGES = {"select.unit": "image", "finetune.epochs": 0}


@pytest.mark.parametrize(
    ("recipe", "changes", "expected", "absent"),
    [
        ("digits-paper", {}, ("fine-tuned with Inversion-Matching", "Subgroup Sampling (IMS3"), ("refined",)),
        ("digits-paper", {"finetune.epochs": 0}, ("diffusion model, and",), ("fine-tuned", "IMS3")),
        ("digits-paper", {"select.subgroups": 1}, ("without selection",), ("Subgroup", "IMS3")),
        ("digits-paper", IMAGES, ("image by image",), ("fine-tuned", "Subgroup")),
        (
            "digits-images",
            {},
            ("image by image", "refined in 100 steps: their latents"),
            ("fine-tuned", "IMS3"),
        ),
        ("digits", {}, ("Inversion-Matching", "Subgroup Sampling (IMS3", "refined in"), ("image by image",)),
        (
            "digits",
            {"refine.start": "medoids"},
            ("k-means medoids", "refined"),
            ("sampled", "diffusion"),
        ),
    ],
)
def test_card_describes_the_method_of_this_run(recipe, changes, expected, absent):
    text = describe_method(load_config(recipe, changes))
    assert all(part in text for part in expected)
    assert not any(part in text for part in absent)


def test_card_describes_every_objective_differently():
    texts = [describe_method(load_config("digits", {"refine.objective": name})) for name in OBJECTIVES]
    assert len(set(texts)) == len(OBJECTIVES)


CLASSES, IPC, SUBGROUPS = ("blue", "green", "red"), 4, 3


@pytest.fixture
def pool(tmp_path):
    """Candidates in parts of 7, and a selection of one subgroup per class."""
    candidates, selection = (open_directory(str(tmp_path / noun)) for noun in ("candidates", "selection"))
    keys = [(c, g, k) for g in range(SUBGROUPS) for c in range(3) for k in range(IPC)]
    for part, start in enumerate(range(0, len(keys), 7)):
        label, subgroup, index = np.array(keys[start : start + 7]).T
        pixels = [np.full((3, 8, 8), 40 * c + 10 * g + k, np.uint8) for c, g, k in keys[start : start + 7]]
        columns = {
            "label": label,
            "subgroup": subgroup,
            "index": index,
            "seed": index,
            "image": np.array([encode_png(image) for image in pixels], object),
            "feature": np.ones((len(label), 2), np.float32),
        }
        candidates.write(f"part-{part:05d}.parquet", schemas.to_parquet(columns, schemas.CANDIDATES))
    complete(candidates, {"rows": len(keys)})
    document = {"unit": "subgroup", "ipc": IPC, "selection": {"blue": 2, "green": 0, "red": 1}}
    selection.write_json("selection.json", document)
    complete(selection, {"rows": 9})
    return candidates, selection


def run_export(pool, folder, block, monkeypatch):
    """Run the stage with blocks of `block` images and its tasks in this process."""
    monkeypatch.setattr(export, "BLOCK", block)
    monkeypatch.setattr(export, "map_in_order", lambda f, work, most: itertools.starmap(f, work))
    monkeypatch.setattr(export.ray, "put", lambda value: value)
    config = load_config("digits-paper", {"ipc": IPC})
    context = SimpleNamespace(
        classes=CLASSES,
        config=config,
        licences={"weights": None, "images": None},
        machine=SimpleNamespace(cpus=2),
    )
    out = open_directory(str(folder))
    return out, export.run(context, out, *reversed(pool))


def test_block_size_does_not_change_the_exported_files(pool, tmp_path, monkeypatch):
    runs = [run_export(pool, tmp_path / str(block), block, monkeypatch) for block in (1000, 5, 1)]
    out, details = runs[0]
    subgroups = {"blue": 2, "green": 0, "red": 1}
    assert [(e["class"], e["subgroup"], e["index"]) for e in details["images"]] == [
        (name, subgroups[name], k) for name in CLASSES for k in range(IPC)
    ]
    for entry in details["images"]:
        assert hashlib.sha256(out.read(entry["path"])).hexdigest() == details["checksums"][entry["path"]]
    for other, same in runs[1:]:
        assert same == details
        assert {n for n in other.files() if "parquet" not in n} == {
            n for n in out.files() if "parquet" not in n
        }
        assert DistilledSet(other)._pngs == DistilledSet(out)._pngs


def test_each_part_with_selected_images_is_read_once(pool, tmp_path, monkeypatch):
    read, real = [], rows.read_part

    def counted(directory, name, table, columns=None):
        read.extend([name] if columns == ["image"] else [])
        return real(directory, name, table, columns)

    monkeypatch.setattr(rows, "read_part", counted)
    run_export(pool, tmp_path / "out", 1000, monkeypatch)
    assert len(read) == len(set(read))
    assert set(read) < set(pool[0].files()), "parts without a selected image are not read"


def test_missing_part_of_the_candidates_is_an_error(pool, tmp_path, monkeypatch):
    (pool[0] / "part-00001.parquet").delete()
    with pytest.raises(DamagedError, match="part-00001"):
        run_export(pool, tmp_path / "out", 1000, monkeypatch)
