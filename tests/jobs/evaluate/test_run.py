"""jobs/evaluate.py: anybody's image set scored, and what is refused."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import write_images

from ims3_ray.cli import main
from ims3_ray.errors import InputError
from ims3_ray.evaluation.statistics import augmentation_robust_score
from ims3_ray.jobs.evaluate.command import parse_sets

TINY = [
    "evaluate.protocol=smoke",
    "evaluate.neighbours=3",
    "evaluate.seeds=2",
    "embed.batch_size={cpu: 7, cuda: 7}",
    "workers.actors=2",
]


@pytest.fixture
def words(tiny_model, tiny_images, tmp_path):
    places = {
        "data.train": tiny_images / "train",
        "data.test": tiny_images / "test",
        "embed.extractor": tiny_model,
    }
    out = ["--out", str(tmp_path / "evaluation.json")]
    return [*TINY, *(f"{f}={p}" for f, p in places.items()), f"storage={tmp_path / 'storage'}", *out]


def parquet_of(folder, path):
    files = sorted(folder.glob("*/*.png"))
    pq.write_table(
        pa.table({"image": [f.read_bytes() for f in files], "class": [f.parent.name for f in files]}), path
    )
    return path


@pytest.mark.slow
def test_folders_and_parquet_of_one_set_have_the_same_figures(ray_cluster, words, tmp_path, output):
    folder = write_images(tmp_path / "mine", 5, seed=7)
    parquet = parquet_of(folder, tmp_path / "train.parquet")
    sets = "--set", folder, "--set", parquet
    out = output("evaluate", *sets, "--augmentation-robust", *words)
    document = json.loads((tmp_path / "evaluation.json").read_text())
    mine, same = (document["sets"][name] for name in ("mine", "train"))
    assert mine == same
    assert mine["images"] == 15
    assert len(mine["last"]["values"]) == 2
    assert document["coverage"]["mine"] == document["coverage"]["train"]
    assert set(document["sets"]) == {"mine", "train", "random", "full"}
    assert document["sets"]["random"]["images"] == 15
    accuracies = [
        (sets["mine"]["last"]["mean"], sets["random"]["last"]["mean"])
        for sets in (document["sets"], document["networks"]["smoke-plain-v2/convnet3-w8"])
    ]
    assert mine["augmentation_robust_score"] == augmentation_robust_score(*accuracies)
    assert document["given"]["mine"]["per_class"] == {"blue": 5, "green": 5, "red": 5}
    assert "train: 15 of 15 images are also in mine" in " ".join(document["audit"]["warnings"])
    lines = ("accuracy on the test images, smoke-v2", "random real", "full real", "warning: train: 15 of 15")
    lines += ("augmentation-robust 0.", "smoke-plain-v2")
    assert all(line in out for line in lines)


@pytest.mark.slow
def test_swapped_classes_end_an_evaluation_before_a_classifier_trains(
    ray_cluster, words, tmp_path, capsys, monkeypatch
):
    folder = write_images(tmp_path / "theirs", 5, seed=7)
    for name, other in (("red", "kept"), ("blue", "red"), ("kept", "blue")):
        (folder / name).rename(folder / other)
    monkeypatch.setattr("ims3_ray.jobs.evaluate.run.train_all", None)  # which would train
    assert main(["evaluate", "--set", str(folder), *words]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: --set theirs: 2 of 3 classes look swapped: images of 'blue' like 'red'")
    assert not (tmp_path / "evaluation.json").exists()


@pytest.mark.slow
def test_uneven_sets_and_copies_of_test_images_are_told(ray_cluster, words, tiny_images, tmp_path, output):
    folder = write_images(tmp_path / "mine", 3, seed=7)
    mixed = write_images(tmp_path / "mixed", 3, seed=8)
    for name, other in (("red", "kept"), ("blue", "red"), ("kept", "blue")):
        (mixed / name).rename(mixed / other)
    for place in range(2):
        shutil.copy(tiny_images / "test" / "red" / f"00{place}.png", folder / "red" / f"copy{place}.png")
    more = ["evaluate.full=false", "data.max_bad_fraction=0"]
    out = output("evaluate", "--set", f"ours={folder}", *words, *more)
    document = json.loads((tmp_path / "evaluation.json").read_text())
    assert document["sets"]["random"]["images"] == document["sets"]["ours"]["images"] == 11
    (pair,) = [e for e in document["audit"]["exact"] if e["sets"] == ["data.test", "ours"]]
    assert pair["count"] == 2
    assert ["red/000.png", "red/copy0.png"] in pair["pairs"]
    assert "ours: 2 of 11 images are also in data.test" in out
    out = output("evaluate", "--trust-labels", "--set", mixed, *words, *more)
    assert "classes look swapped" in out


def bad(tmp_path, images):
    """Words → what the one line must name."""
    good, fewer, more, many, skewed = (tmp_path / n for n in ("good", "fewer", "more", "many", "skewed"))
    write_images(good, 2, seed=7)
    write_images(fewer, 2, seed=7, classes=("blue", "green"))
    write_images(more, 2, seed=7, classes=("blue", "green", "red", "teal"))
    write_images(many, 13, seed=7)
    write_images(skewed, 2, seed=7)
    (skewed / "red" / "000.png").rename(skewed / "blue" / "x.png")
    junk = write_images(tmp_path / "junk", 2, seed=7)
    (junk / "red" / "x.png").write_bytes(b"no image")
    one = [f"--set={good}"]
    return [
        ([f"--set={fewer}"], ["--set fewer", "'red'", "no image of 1"]),
        ([f"--set={more}"], ["--set more", "'teal'"]),
        ([f"--set={junk}"], ["--set junk", "red/x.png"]),
        ([f"--set={tmp_path / 'absent'}"], ["--set absent", "does not exist"]),
        ([f"--set={many}"], ["--set many", "13 images", "evaluate.baselines"]),
        ([f"--set=random={good}"], ["--set", "'random'"]),
        ([*one, *one], ["--set", "two sets", "'good'"]),
        ([*one, "evaluate.protocol=quick-val"], ["data.validation", "quick-val"]),
        ([*one, "evaluate.protocol=none"], ["evaluate.protocol"]),
        ([*one, "evaluate.protocol=best"], ["best", "minimax"]),
        ([*one, f"--set={skewed}"], ["--set skewed", "another set"]),
        ([*one, "evaluate.networks=[convnet6]"], ["convnet6", "16"]),
        ([*one, "evaluate.protocol=soft-32"], ["evaluate.teacher", "soft-32 needs one"]),
        ([*one, "evaluate.neighbours=12"], ["data.train", "evaluate.neighbours=12"]),
        ([*one, "data.train=null"], ["data.train", "is not set"]),
        ([*one, f"data.test={images / 'train'}"], ["data.test", "training folder"]),
        ([*one, "ipc=3"], ["ipc", "unknown field"]),
        ([*one, f"embed.extractor={tmp_path / 'absent'}"], ["absent"]),
        ([*one, f"--out={good}"], ["--out", "folder"]),
        ([*one, "--augmentation-robust", "evaluate.protocol=dc-fashion"], ["dc-fashion", "no augmentation"]),
        ([*one, "--augmentation-robust", "evaluate.baselines=[]"], ["add random"]),
    ]


def test_bad_input_gives_one_line_and_exit_code_2(words, tiny_images, tmp_path, refused):
    for extra, named in bad(tmp_path, tiny_images):
        line = refused("evaluate", *words, *extra)
        assert all(word in line for word in named), (extra, named, line)
    assert not (tmp_path / "evaluation.json").exists()


def test_a_set_is_called_by_its_name_or_by_its_place():
    assert parse_sets(["a/b/mine/", "x.parquet", "ours=s3://bucket/a=b", "/data/label=3/set"]) == {
        "mine": "a/b/mine/",
        "x": "x.parquet",
        "ours": "s3://bucket/a=b",
        "set": "/data/label=3/set",
    }
    with pytest.raises(InputError, match="two sets"):
        parse_sets(["a/x", "b/x"])
