"""User mistakes, by command: one line that names the field or file, exit code 2, and no cluster."""

import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from flat import png
from tiny import write_images

DEEP = "[" * 3000
OWN = ["data.class_map=new", "evaluate.protocol=none", "refine.steps=0", "ipc=1"]
FEATURES = {"class": ["a", "b"] * 2, "feature": [[1.0, 2.0], [2.0, 3.0], [3.0, 1.0], [2.0, 2.0]]}
ROWS = "baseline: a\nrows: [{name: a, overrides: {%s}}]"


@pytest.fixture
def rejected(tmp_path, refused, monkeypatch):
    """rejected(pattern, command, *words): asserts one error line with the pattern, and no cluster."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("a cluster was started"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(tmp_path)

    def check(pattern, *words):
        line = refused(*words)
        assert re.fullmatch(f"error: .*{pattern}.*\n", line), line
        assert len(line) < 3000

    return check


FILES = {  # command → (text, expected)
    "distill --recipe": [
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
    "sweep --rows": [
        (b"\xff", "own.yaml"),
        (DEEP, "own.yaml"),
        (ROWS % "storage: elsewhere", "'a'.*storage"),
        (ROWS % "workers: {actors: 2}", "'a'.*workers"),
        (ROWS % "1: 2", "1: "),
    ],
}


@pytest.mark.parametrize(
    ("command", "text", "expected"),
    [(command, *case) for command, cases in FILES.items() for case in cases],
    ids=range(15),
)
def test_malformed_recipe_or_rows(rejected, tmp_path, command, text, expected):
    (tmp_path / "own.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    rejected(expected, *command.split(), "own.yaml")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("command", "word", "expected"),
    [
        ("distill --dry-run", f"ipc={DEEP}", "ipc: "),
        ("distill --dry-run", 'data.train="a\\0b"', "data.train: "),
        ("distill --dry-run", 'storage="\\ud800"', "storage: "),
        ("distill --dry-run", "model.path=" + "x" * 5000, "path is longer"),
        ("distill --dry-run", "storage=s3://", "bucket"),
        ("distill --dry-run", "storage=/proc/x", "storage: /proc/x"),
        ("distill --dry-run", "model.path=my-model", "my-model"),
        ("sweep --rows refine", "--seeds=99999999999", "--seeds: 99999999999"),
        ("sweep --rows refine", "--ipc=²", "--ipc"),
        ("sweep --rows refine", "--pool-images=-1", "--pool-images: -1"),
        ("pretrain --out=model", "transformer.heads=3", "transformer.hidden_size: 128"),
        ("pretrain --out=model", "image_size=33", "image_size: 33"),
        ("pretrain --out=model", "vae.channels=[12]", "vae.channels.0: "),
        ("pretrain --out=model", "vae.batch_size=1", "vae.batch_size: 1"),
        ("pretrain --out=model", "extractor.network=convnet6", "extractor.network: convnet6"),
        ("pretrain --out=model", "--out=s3://x/y", "--out: s3://x/y"),
    ],
    ids=lambda value: value[:20],
)
def test_impossible_value(rejected, command, word, expected):
    rejected(expected, *command.split(), word)


def test_storage_within_the_images(rejected, tmp_path):
    images = write_images(tmp_path / "images", 4, seed=0)
    before = sorted(images.rglob("*"))
    for place in (images, images / "runs", images / "red" / "runs"):
        rejected("storage: .*data.train", "distill", f"data.train={images}", *OWN, f"storage={place}")
        rejected("data.train", "pretrain", "--out=model", f"data.train={images}", f"storage={place}")
    assert sorted(images.rglob("*")) == before


def select(table, out):
    pq.write_table(pa.table(FEATURES), "real.parquet")
    pq.write_table(pa.table(FEATURES | table), "candidates.parquet")
    return "select", "--candidates=candidates.parquet", "--real=real.parquet", f"--out={out}"


@pytest.mark.parametrize("number", [-1, 2**63 + 5])
@pytest.mark.parametrize("column", ["subgroup", "index"])
def test_candidate_number_out_of_range(rejected, column, number):
    keys = {"subgroup": [0, 0, 1, 1], "index": [0, 0, 0, 0]}
    keys[column] = pa.array([number, 0, 1, 1], pa.int64() if number < 0 else pa.uint64())
    rejected(f"--candidates: .*{column}.*{number}", *select(keys, "selection.json"))


def test_label_out_of_range(rejected):
    table = {"image": [png(1), png(2)], "label": pa.array([1, 2**63], pa.uint64())}
    pq.write_table(pa.table(table), "set.parquet")
    rejected(f"row 1.*{2**63}", "distill", "--dry-run", "data.train=set.parquet", *OWN)


@pytest.mark.parametrize("out", ["/proc/x/y.json", "file/y.json"])
def test_unwritable_output(rejected, tmp_path, out):
    (tmp_path / "file").touch()
    rejected("--out: ", *select({"subgroup": [0, 0, 1, 1], "index": [0] * 4}, out))
