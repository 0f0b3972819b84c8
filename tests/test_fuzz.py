"""Random input of every kind: success or one line with exit code 2, and files stay unchanged.

200 cases by default, ten times as many with `-m slow`.
"""

import contextlib
import io
import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from flat import encoded, opened, png
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import tree

from ims3_ray import cli
from ims3_ray.config.load import load_config, parse_overrides, recipe_text
from ims3_ray.config.settings import Config
from ims3_ray.display import UNPRINTABLE
from ims3_ray.jobs.sweep.plan import row_sweep
from ims3_ray.jobs.sweep.rows import read_rows
from ims3_ray.jobs.sweep.search_space import read_space
from ims3_ray.stages.select.candidates import open_candidates
from ims3_ray.storage.artifacts import complete, open_directory, read_manifest
from ims3_ray.storage.integrity import verify

CASES = 25  # of each
SETTINGS = {"deadline": None, "derandomize": True, "database": None}
SETTINGS["suppress_health_check"] = list(HealthCheck)
FIELDS = [
    f"{name}.{inner}" if inner else name
    for name, field in Config.model_fields.items()
    for inner in ("", *getattr(field.annotation, "model_fields", ()))
]
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.dates())
SCALARS |= st.text(max_size=12) | st.binary(max_size=4)
KEYS = st.sampled_from(FIELDS + list(Config.model_fields)) | st.text(max_size=8) | st.integers(-2, 2)
NESTED = {"extend": lambda held: st.lists(held, max_size=3) | st.dictionaries(KEYS, held, max_size=3)}
PLAIN = st.recursive(SCALARS, **NESTED, max_leaves=8)
NAMES = st.sampled_from(["red", "blue", "..", "a/b", "con", "é" * 200, "\x1b[2J"]) | st.text(max_size=8)
TEXTS = st.text(max_size=40) | PLAIN.map(yaml.safe_dump)
NUMBERS = st.integers(-3, 12) | st.sampled_from([-(2**63), 2**63 - 1])
KINDS = ("JPEG", "GIF", "WEBP", "TIFF", "BMP")
IMAGES = [png(9), *(encoded(Image.new("RGB", (9, 7)), kind) for kind in KINDS)]


def torn(data):
    """Bytes with some changed, cut off or prepended."""
    edits = st.lists(st.tuples(st.integers(0, len(data) - 1), st.integers(0, 255)), max_size=6)
    return st.builds(edited, st.just(data), edits, st.integers(0, len(data)), st.binary(max_size=3))


def edited(data, edits, end, before):
    changed = bytearray(data)
    for place, byte in edits:
        changed[place] = byte
    return before + bytes(changed[: end or len(data)])


def recipe(folder, data):
    (folder / "own.yaml").write_bytes(data)
    load_config(str(folder / "own.yaml")).results()


def overrides(_, words):
    load_config("digits", parse_overrides([f"{field}={text}" for field, text in words])).identity()


def rows(folder, data):
    (folder / "rows.yaml").write_bytes(data)
    row_sweep("digits", {}, read_rows(str(folder / "rows.yaml")), (1,), (0,)).points()


def space(folder, words):
    (folder / "space.yaml").write_text(yaml.safe_dump(dict(words)))
    for given_words in ([f"{field}={text}" for field, text in words], [str(folder / "space.yaml")]):
        read_space(given_words, "digits", {}).first()


def parquet(data_or_columns, path):
    """Write any bytes, or any columns that pyarrow accepts."""
    if isinstance(data_or_columns, bytes):
        path.write_bytes(data_or_columns)
        return
    with contextlib.suppress(pa.ArrowException, OverflowError, UnicodeEncodeError):
        pq.write_table(pa.table(data_or_columns), path)


def image_rows(folder, columns):
    parquet(columns, folder / "set.parquet")
    opened(folder / "set.parquet", folder, limit=0.5)


def candidates(folder, columns):
    pq.write_table(pa.table(CANDIDATES), folder / "real.parquet")
    parquet(columns, folder / "candidates.parquet")
    pool = open_candidates(str(folder / "candidates.parquet"), str(folder / "real.parquet"), ("--a", "--b"))
    for table in (pool.candidates, pool.real):
        list(table.read(pool.classes))


def manifest(folder, data):
    artefact = open_directory(str(folder / "artefact"))
    artefact.write("part.bin", b"1234")
    complete(artefact, {"stage": "encode", "rows": 1})
    artefact.write("manifest.json", data)
    with unchanged(folder):
        read_manifest(artefact)
        verify(artefact)


def images(folder, files):
    data = open_directory(str(folder / "images"))
    data.delete()
    for place, content in enumerate(files):
        data.write(f"{'red' if place % 2 else 'blue'}/{place}", content)
    with unchanged(folder / "images"):
        opened(folder / "images", folder, limit=0.9)


@contextlib.contextmanager
def unchanged(folder):
    before = tree(folder)
    try:
        yield
    finally:
        assert tree(folder) == before


def saved(columns):
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


CANDIDATES = {"class": ["a", "b"], "subgroup": [0, 0], "index": [0, 0], "feature": [[1.0, 2.0], [3.0, 1.0]]}
SET = {"image": [png(1), png(2), png(3)], "label": ["red", "blue", "red"]}
MANIFEST = {"format": 1, "files": {"part.bin": 4}, "images": [], "rows": 1}
MANIFEST["checksums"] = {"part.bin": "0" * 64}


def several(number, *of):
    """Lists of `number` values, all of one of the kinds."""
    return st.one_of(st.lists(kind, min_size=number, max_size=number) for kind in of)


ROW_KEYS = st.sampled_from(["name", "note", "overrides", "real"])
ROW = st.dictionaries(ROW_KEYS, PLAIN | st.just("a"), max_size=4)
ROWS = st.fixed_dictionaries({"baseline": SCALARS, "rows": st.lists(ROW, max_size=3)})
FEW_ROWS = b"baseline: a\nrows: [{name: a, overrides: {im.weight: 0}}, {name: b, real: random}]"
ENCODED = st.sampled_from(IMAGES)
SETS = {"image": several(3, ENCODED | st.binary(max_size=9) | st.none())}
SETS["label"] = several(3, NAMES, NUMBERS | st.none())
POOLS = {"class": several(2, NAMES | st.none(), NUMBERS), "subgroup": several(2, NUMBERS | st.none())}
POOLS["index"] = several(2, NUMBERS, st.just("0"))
POOLS["feature"] = several(2, st.lists(st.floats(width=32), max_size=3) | st.none())
CHANGED = st.dictionaries(st.sampled_from([*MANIFEST]), PLAIN).map(
    lambda changes: json.dumps(MANIFEST | changes, default=str).encode()
)
INPUTS = {  # name → (strategy, reader)
    "recipe": (torn(recipe_text("digits")[1].encode()) | TEXTS.map(str.encode) | st.binary(), recipe),
    "overrides": (st.lists(st.tuples(st.sampled_from(FIELDS), TEXTS), max_size=3), overrides),
    "rows": (torn(FEW_ROWS) | ROWS.map(lambda held: yaml.safe_dump(held).encode()), rows),
    "space": (st.lists(st.tuples(st.sampled_from(FIELDS), TEXTS | st.just("1:9:log")), max_size=2), space),
    "set": (torn(saved(SET)) | st.fixed_dictionaries(SETS), image_rows),
    "candidates": (torn(saved(CANDIDATES)) | st.fixed_dictionaries(POOLS), candidates),
    "manifest": (torn(json.dumps(MANIFEST).encode()) | CHANGED, manifest),
    "images": (st.lists(ENCODED.flatmap(torn) | ENCODED, min_size=2, max_size=4), images),
}


@pytest.mark.parametrize("cases", [CASES, pytest.param(10 * CASES, marks=pytest.mark.slow)])
@pytest.mark.parametrize("what", INPUTS)
def test_any_input_is_accepted_or_rejected_in_one_line(what, cases, tmp_path):
    strategy, read = INPUTS[what]

    @settings(max_examples=cases, **SETTINGS)
    @given(strategy)
    def try_it(value):
        err = io.StringIO()
        with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
            code = cli.guarded(lambda: read(tmp_path, value))
        printed = err.getvalue()
        assert code in (0, cli.BAD_INPUT), printed
        assert not printed if code == 0 else re.fullmatch(f"error: [^{UNPRINTABLE}]+\n", printed), printed

    try_it()
