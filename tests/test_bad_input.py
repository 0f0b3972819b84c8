"""User mistakes, by command: one line that names the field or file, exit code 2, and no cluster."""

import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
from flat import png
from tiny import write_images

from ims3_ray.cli import main

DEEP = "[" * 3000
OWN = ["data.class_map=new", "evaluate.protocol=none", "refine.steps=0", "ipc=1"]
FEATURES = [[1.0, 2.0], [2.0, 3.0], [3.0, 1.0], [2.0, 2.0]]


@pytest.fixture
def rejected(tmp_path, capsys, monkeypatch):
    """rejected(pattern, command, *words): asserts one error line with the pattern, and no cluster."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("a cluster was started"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(tmp_path)

    def check(pattern, *words):
        capsys.readouterr()
        code = main([*map(str, words)])
        out, err = capsys.readouterr()
        assert (code, out) == (2, ""), err
        assert re.fullmatch(f"error: .*{pattern}.*\n", err), err
        assert len(err) < 3000

    return check


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (bytes(range(256)), "own.yaml"),
        (DEEP, "own.yaml"),
        ("1: 2", "1: "),
        ("sample: {1: 2}", r"sample\.1"),
        ("ipc: 1\nseed: 0\nipc: 2", "'ipc'"),
        ("sample: {steps: 3, steps: 4}", "'steps'"),
        ("ipc: 2020-13-41", "own.yaml"),
        ("ipc: &a [*a]", "ipc: "),
        ("recipe: ../../../evil", "recipe: "),
        ("\n".join(f"field{i}: 1" for i in range(500)), "field0.*492"),
    ],
    ids=range(10),
)
def test_malformed_recipe(rejected, tmp_path, text, expected):
    (tmp_path / "own.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    rejected(expected, "distill", "--recipe", "own.yaml")


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("recipe=../../../evil", "recipe: "),
        ("sample={1: 2}", "1: "),
        (f"ipc={DEEP}", "ipc: "),
        ('data.train="a\\0b"', "data.train: "),
        ('storage="\\ud800"', "storage: "),
        ("model.path=" + "x" * 5000, "path is longer"),
        ("storage=s3://", "names no bucket"),
        ("storage=/proc/x", "storage: /proc/x"),
        ("model.path=my-model", "my-model"),
    ],
    ids=lambda value: value[:12],
)
def test_impossible_override(rejected, word, expected):
    rejected(expected, "distill", "--dry-run", word)


@pytest.mark.parametrize("words", [["--price=2"], ["--dry-run", "--price=-1"], ["--dry-run", "--price=nan"]])
def test_invalid_price(rejected, words):
    rejected("--price: ", "distill", *words)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--seeds=99999999999"], "--seeds: 99999999999"),
        (["--ipc=²"], "--ipc"),
        (["--pool-images=-1"], "--pool-images: -1"),
    ],
)
def test_invalid_numbers_of_a_comparison(rejected, words, expected):
    rejected(expected, "sweep", "--rows", "refine", *words)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"\xff", "rows.yaml"),
        (DEEP.encode(), "rows.yaml"),
        (b"baseline: a\nrows: [{name: a, overrides: {storage: elsewhere}}]", "'a'.*storage"),
        (b"baseline: a\nrows: [{name: a, overrides: {workers: {actors: 2}}}]", "'a'.*workers"),
        (b"baseline: a\nrows: [{name: a, overrides: {1: 2}}]", "1: "),
    ],
    ids=range(5),
)
def test_malformed_rows(rejected, tmp_path, text, expected):
    (tmp_path / "rows.yaml").write_bytes(text)
    rejected(expected, "sweep", "--rows", "rows.yaml")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("text", [b"\xff", DEEP.encode(), b"ipc: [1]\nipc: [2]"], ids=range(3))
def test_malformed_search_space(rejected, tmp_path, text):
    (tmp_path / "space.yaml").write_bytes(text)
    rejected("--space space.yaml: ", "sweep", "storage=runs", "--space", "space.yaml")


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("transformer.heads=3", "transformer.hidden_size: 128"),
        ("image_size=33", "image_size: 33"),
        ("transformer.patch_size=3", "image_size: "),
        ("vae.channels=[12]", "vae.channels.0: "),
        ("vae.batch_size=1", "vae.batch_size: 1"),
        ("extractor.network=convnet9", "extractor.network: .*'convnet9'"),
        ("extractor.network=convnet6", "extractor.network: convnet6"),
        ("--out=s3://x/y", "--out: s3://x/y"),
        ("--out=/proc/x/y", "--out: /proc/x"),
    ],
    ids=lambda value: value[:20],
)
def test_impossible_pretraining(rejected, word, expected):
    rejected(expected, "pretrain", "--out=model", word)


def test_storage_within_the_images(rejected, tmp_path):
    images = write_images(tmp_path / "images", 4, seed=0)
    before = sorted(images.rglob("*"))
    for place in (images, images / "runs", images / "red" / "runs"):
        rejected("storage: .*data.train", "distill", f"data.train={images}", *OWN, f"storage={place}")
        rejected("data.train", "pretrain", "--out=model", f"data.train={images}", f"storage={place}")
    assert sorted(images.rglob("*")) == before


@pytest.mark.parametrize(
    "held",
    [
        pytest.param(None, marks=pytest.mark.slow),
        {},
        pytest.param([1], marks=pytest.mark.slow),
        pytest.param({"ema": {}}, marks=pytest.mark.slow),
        dict.fromkeys([1], torch.ones(2)),
    ],
    ids=range(5),
)
def test_checkpoint_without_a_model(rejected, tmp_path, held):
    if held is None:
        (tmp_path / "dit.pt").touch()
    else:
        torch.save(held, tmp_path / "dit.pt")
    rejected("dit.pt: ", "distill", "--dry-run", "model.path=dit.pt", "model.vae=package://digits")


@pytest.mark.parametrize("number", [-1, 2**63 + 5])
@pytest.mark.parametrize("column", ["subgroup", "index"])
def test_candidate_number_out_of_range(rejected, tmp_path, column, number):
    keys = {"subgroup": [0, 0, 1, 1], "index": [0, 0, 0, 0]}
    keys[column] = pa.array([number, 0, 1, 1], pa.int64() if number < 0 else pa.uint64())
    table = {"class": ["a", "b"] * 2, "feature": FEATURES}
    pq.write_table(pa.table(table), tmp_path / "real.parquet")
    pq.write_table(pa.table(table | keys), tmp_path / "candidates.parquet")
    words = ("--candidates=candidates.parquet", "--real=real.parquet", "--out=selection.json")
    rejected(f"--candidates: .*{column}.*{number}", "select", *words)


def test_label_out_of_range(rejected, tmp_path):
    table = {"image": [png(1), png(2)], "label": pa.array([1, 2**63], pa.uint64())}
    pq.write_table(pa.table(table), tmp_path / "set.parquet")
    rejected(f"row 1.*{2**63}", "distill", "--dry-run", "data.train=set.parquet", *OWN)


@pytest.mark.parametrize("out", ["/proc/x/y.json", "file/y.json"])
def test_unwritable_output(rejected, tmp_path, out):
    table = {"class": ["a", "b"] * 2, "feature": FEATURES, "subgroup": [0, 0, 1, 1], "index": [0] * 4}
    pq.write_table(pa.table(table), tmp_path / "both.parquet")
    (tmp_path / "file").touch()
    words = ("--candidates=both.parquet", "--real=both.parquet", f"--out={out}")
    rejected("--out: ", "select", *words)
