"""The card describes how a run made its images; images are read and written in blocks."""

import hashlib
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from flat import png
from stored import artefact_of

from ims3_ray.config.load import load_config
from ims3_ray.data.distilled import DistilledSet
from ims3_ray.method.refine import OBJECTIVES
from ims3_ray.stages import export
from ims3_ray.stages.export import describe_method
from ims3_ray.storage import rows
from ims3_ray.storage.artifacts import DamagedError, complete, open_directory
from ims3_ray.storage.schemas import CANDIDATES

CHOSEN, IPC, SUBGROUPS = {"blue": 2, "green": 0, "red": 1}, 4, 3
PER_IMAGE = {"select.unit": "image", "finetune.epochs": 0}


@pytest.mark.parametrize(
    ("recipe", "changes", "expected", "absent"),
    [
        ("digits-paper", {}, ["Inversion-Matching", "Subgroup", "IMS3"], ["refined"]),
        ("digits-paper", {"finetune.epochs": 0}, ["diffusion model"], ["fine-tuned", "IMS3"]),
        ("digits-paper", {"select.subgroups": 1}, ["without selection"], ["Subgroup", "IMS3"]),
        ("digits-paper", PER_IMAGE, ["image by image"], ["fine-tuned", "Subgroup"]),
        ("digits-images", {}, ["image by image", "100 steps: their latents"], ["fine-tuned", "IMS3"]),
        ("digits", {}, ["Inversion-Matching", "Subgroup", "IMS3", "refined in"], ["image by image"]),
        ("digits", {"refine.start": "medoids"}, ["medoids", "refined"], ["sampled", "diffusion"]),
    ],
)
def test_card_describes_the_method_of_this_run(recipe, changes, expected, absent):
    text = describe_method(load_config(recipe, changes))
    assert [part for part in (*expected, *absent) if part in text] == expected


def test_card_describes_every_objective_differently():
    texts = {describe_method(load_config("digits", {"refine.objective": name})) for name in OBJECTIVES}
    assert len(texts) == len(OBJECTIVES)


@pytest.fixture
def pool(tmp_path):
    """Candidates in parts of 7, and a selection of one subgroup per class."""
    keys = [(c, g, k) for g in range(SUBGROUPS) for c in range(3) for k in range(IPC)]
    columns = dict(zip(("label", "subgroup", "index"), np.array(keys).T, strict=True))
    columns["image"] = np.array([png(40 * c + 10 * g + k) for c, g, k in keys], object)
    candidates = artefact_of(tmp_path / "candidates", CANDIDATES, columns)
    selection = open_directory(str(tmp_path / "selection"))
    selection.write_json("selection.json", {"unit": "subgroup", "ipc": IPC, "selection": CHOSEN})
    complete(selection, {"rows": 9})
    return candidates, selection


@pytest.fixture
def run_export(pool, tmp_path, monkeypatch):
    """Runs the stage with blocks of `block` images and its tasks in this process."""

    def run_export(block=1000):
        monkeypatch.setattr(export, "BLOCK", block)
        monkeypatch.setattr(export, "map_in_order", lambda f, work, most: itertools.starmap(f, work))
        monkeypatch.setattr(export.ray, "put", lambda value: value)
        context = SimpleNamespace(
            classes=tuple(CHOSEN),
            config=load_config("digits-paper", {"ipc": IPC}),
            licences={"weights": None, "images": None},
            machine=SimpleNamespace(cpus=2),
            tiles=None,
        )
        out = open_directory(str(tmp_path / str(block)))
        return out, export.run(context, out, *reversed(pool))

    return run_export


def test_block_size_does_not_change_the_exported_files(run_export):
    (out, details), *others = (run_export(block) for block in (1000, 5, 1))
    exported = [(e["class"], e["subgroup"], e["index"]) for e in details["images"]]
    assert exported == [(name, g, k) for name, g in CHOSEN.items() for k in range(IPC)]
    for entry in details["images"]:
        assert hashlib.sha256(out.read(entry["path"])).hexdigest() == details["checksums"][entry["path"]]
    for other, same in others:
        assert same == details
        names = ({n for n in each.files() if "parquet" not in n} for each in (out, other))
        assert next(names) == next(names)
        assert DistilledSet(other)._pngs == DistilledSet(out)._pngs


def test_each_part_with_selected_images_is_read_once(pool, run_export, monkeypatch):
    read, real = [], rows.read_part

    def counted(directory, name, table, columns=None):
        read.extend([name] if columns == ["image"] else [])
        return real(directory, name, table, columns)

    monkeypatch.setattr(rows, "read_part", counted)
    run_export()
    assert len(read) == len(set(read))
    assert set(read) < set(pool[0].files()), "parts without a selected image are not read"


def test_missing_part_of_the_candidates_is_an_error(pool, run_export):
    (pool[0] / "part-00001.parquet").delete()
    with pytest.raises(DamagedError, match="part-00001"):
        run_export()
