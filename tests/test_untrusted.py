"""Untrusted files are data: nothing in them is executed, leaves its folder, or becomes markup."""

import ast
import contextlib
import io
import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
import yaml
from flat import labelled, opened, png
from stored import write_set
from tiny import tree, write_images
from tiny_generator import small_dit, small_vae

import ims3_ray
from ims3_ray.config.load import load_config, parse_overrides
from ims3_ray.data.classes import class_map
from ims3_ray.data.distilled import PARQUET, DistilledImage, Method, card
from ims3_ray.display import markdown_code, markdown_text
from ims3_ray.errors import InputError
from ims3_ray.method.seeding import generator
from ims3_ray.models import classifiers
from ims3_ray.models.checkpoints import load_transformer
from ims3_ray.models.convert import save_pipeline
from ims3_ray.models.extractor import load_extractor, save_extractor
from ims3_ray.models.files import find_weights, read_tensors
from ims3_ray.models.finetuned import check_adapter, inspect_adapter
from ims3_ray.models.vae import read_vae
from ims3_ray.stages.select.candidates import REAL_KEYS, open_features
from ims3_ray.storage.artifacts import MANIFEST, PREVIOUS, DamagedError, complete, open_directory
from ims3_ray.storage.integrity import reopen

KNOWN = ("blue", "green", "red")
MARKUP = ["<script>alert(1)</script>", "[x](javascript:alert(1))", "`x`", "*x*", "_x_"]
MARKUP += ["{{ 7*7 }}", "{% raw %}", "a & b", "~~x~~"]


@pytest.fixture
def bomb(tmp_path):
    """An object that creates the file `bomb.ran` if unpickled; fails the test if the file exists."""

    class Bomb:
        ran = tmp_path / "ran"

        def __reduce__(self):
            return open, (str(self.ran), "w")

    with pytest.raises(TypeError):  # unpickling returns a file, which cannot be pickled
        pickle.dumps(pickle.loads(pickle.dumps(Bomb())))
    assert Bomb.ran.exists()
    Bomb.ran.unlink()
    yield Bomb()
    assert not Bomb.ran.exists()


def test_reading_weights_executes_nothing(tmp_path, bomb):
    save_pipeline(small_dit(), small_vae(), tmp_path / "model", id2label=[str(i) for i in range(10)])
    for part, load in (("transformer", load_transformer), ("vae", read_vae)):
        (weights,) = find_weights(tmp_path / "model" / part)
        weights.unlink()
        torch.save({"x": bomb}, weights.with_suffix(".bin"))
        with pytest.raises(InputError):
            load(tmp_path / "model" / part)
    for name in ("a.pt", "a.bin", "a.safetensors"):
        (tmp_path / name).write_bytes(pickle.dumps(bomb))
        with pytest.raises(InputError):
            read_tensors([tmp_path / name])


def test_reading_an_extractor_executes_nothing(tmp_path, bomb):
    own, theirs = tmp_path / "own", tmp_path / "timm"
    timm.models.save_for_hf(timm.create_model("test_resnet.r160_in1k"), theirs, safe_serialization=False)
    (weights,) = theirs.glob("*.bin")
    torch.save({"x": bomb}, weights)
    network = classifiers.build("convnet3", 3, 16, generator("x"), width=8)
    save_extractor(network, own, mean=(0.5,) * 3, deviation=(0.5,) * 3)
    (weights,) = own.glob("*.safetensors")
    weights.write_bytes(pickle.dumps(bomb))
    for spec in (f"timm:{theirs}", str(own)):
        with pytest.raises(InputError):
            load_extractor(spec)


def test_reading_an_adapter_executes_nothing(tmp_path, bomb):
    directory = open_directory(str(tmp_path))
    directory.write("adapter.safetensors", pickle.dumps(bomb))
    complete(directory, {"own_classes": ["../../x"]})
    with pytest.raises(InputError):
        check_adapter(inspect_adapter(directory.uri), small_dit().config, "ema")


def test_reading_parquet_and_arrays_executes_nothing(tmp_path, bomb):
    marks = {"name": "arrow.py_extension_type", "metadata": pickle.dumps(bomb)}
    marks = {f"ARROW:extension:{name}": value for name, value in marks.items()}
    columns = {
        "class": pa.array(KNOWN),
        "feature": pa.array([[1.0, 2.0]] * 3, pa.list_(pa.float32())),
        "image": pa.array([png(v) for v in (1, 2, 3)]),
    }
    schema = pa.schema([pa.field(name, column.type, metadata=marks) for name, column in columns.items()])
    pq.write_table(pa.table(columns, schema=schema), tmp_path / "a.parquet")
    assert open_features(str(tmp_path / "a.parquet"), "--real", REAL_KEYS).index()[0] == list(KNOWN)
    assert len(labelled(tmp_path / "a.parquet", tmp_path, KNOWN)) == 3
    folder = write_images(tmp_path / "set", 2, seed=0)
    np.save(folder / "red" / "a.npy", np.array([bomb], dtype=object), allow_pickle=True)
    np.savez(folder / "red" / "b.npz", x=np.array([bomb], dtype=object))
    (folder / "red" / "c.pkl").write_bytes(pickle.dumps(bomb))
    images = opened(folder, tmp_path, limit=0.9)
    assert sorted(images.bad) == ["red/a.npy", "red/b.npz", "red/c.pkl"]


def test_yaml_gives_only_plain_data(tmp_path):
    ran = tmp_path / "ran"
    text = f"a: !!python/object/apply:builtins.open [{ran}, w]\nb: 1\n"
    (tmp_path / "x.yaml").write_text(text)
    path = str(tmp_path / "x.yaml")
    for read, *given in (
        (load_config, path),
        (class_map, ("a", "b"), None, 3, path),
        (parse_overrides, [f"ipc={text.splitlines()[0][3:]}"]),
    ):
        with pytest.raises(InputError):
            read(*given)
    assert not ran.exists()


def test_the_package_never_unpickles_or_evaluates():
    unsafe = {"eval", "exec", "unsafe_load", "full_load", "Unpickler", "yaml.load", "os.system"}
    for path in Path(ims3_ray.__file__).parent.rglob("*.py"):
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            name = ast.unparse(call.func)
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            assert name.split(".")[0] not in ("pickle", "cloudpickle", "joblib", "marshal"), path
            assert name not in unsafe, path
            assert not name.endswith((".unsafe_load", ".full_load")), path
            assert name != "torch.load" or keywords.get("weights_only") == "True", path
            assert name != "np.load" or keywords.get("allow_pickle", "False") == "False", path
            assert keywords.get("shell") != "True", path
            assert "trust_remote_code" not in keywords, path


def distilled_set(folder):
    images = [DistilledImage(label, 0, 0, 0, 1, png(40 * label)) for label in range(3)]
    write_set(open_directory(str(folder)), images, KNOWN, 1)
    return folder


def test_paths_in_a_manifest_or_parquet_stay_in_their_folder(tmp_path):
    folder, outside = distilled_set(tmp_path / "theirs"), tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.png").write_bytes(png(200))
    manifest = json.loads((folder / MANIFEST).read_text())
    for entry in manifest["images"]:
        entry |= {"path": "../outside/secret.png", "class": "../../outside"}
    files, manifest["files"] = manifest["files"], {"../outside/secret.png": 1, "/etc/passwd": 1}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    before = tree(tmp_path)
    with pytest.raises(DamagedError) as error:
        labelled(folder, tmp_path, KNOWN)
    reopen(open_directory(str(folder)), error.value.files)
    assert {name for name in before if name not in tree(tmp_path)} == {f"theirs/{MANIFEST}"}
    (folder / PREVIOUS).unlink()
    (folder / MANIFEST).write_text(json.dumps(manifest | {"files": files}))
    before = tree(tmp_path)
    images = labelled(folder, tmp_path, KNOWN)
    assert images.paths == ("blue/0.png", "green/0.png", "red/0.png")
    cells = [{"bytes": png(v), "path": "../../outside/made.png"} for v in (1, 2, 3)]
    for label in ("green", "../outside", "/tmp/x"):
        expected = contextlib.nullcontext() if label in KNOWN else pytest.raises(InputError)
        pq.write_table(pa.table({"image": cells, "label": ["red", "blue", label]}), tmp_path / "a.parquet")
        with expected:
            assert len(labelled(tmp_path / "a.parquet", tmp_path, KNOWN)) == 3
    changed = {name for name, data in tree(tmp_path).items() if before.get(name) != data}
    assert changed
    assert all(name.startswith("storage/") or name == "a.parquet" for name in changed)


def test_a_set_with_a_foreign_parquet_is_refused(tmp_path):
    place, pixels = open_directory(str(tmp_path)), pa.table({"pixels": [1]})
    foreign = pixels.replace_schema_metadata({"huggingface": "{}"})
    for table in (pa.table({"image": [b"x"], "label": [0]}), foreign):
        sink = io.BytesIO()
        pq.write_table(table, sink)
        for parquet in (sink.getvalue(), sink.getvalue()[:40]):
            place.write(PARQUET, parquet)
            complete(place, {})
            with pytest.raises(InputError, match=PARQUET):
                ims3_ray.load_distilled(str(tmp_path))


def test_an_index_of_weights_names_no_file_outside_its_folder(tmp_path):
    secret, model = tmp_path / "secret.safetensors", tmp_path / "m"
    secret.write_bytes(b"x")
    model.mkdir()
    for part in ("../secret.safetensors", str(secret)):
        index = json.dumps({"weight_map": {"a": part}})
        (model / "diffusion_pytorch_model.safetensors.index.json").write_text(index)
        with pytest.raises(InputError, match=r"secret\.safetensors"):
            find_weights(model)


def test_names_in_a_card_are_text_and_leave_its_front_matter_intact():
    ordinary = ["golden_retriever", "n02086240", "great white shark", "Größe (blau)", "a-b.c"]
    assert [*map(markdown_text, ordinary)] == ordinary
    assert [*map(markdown_code, ordinary)] == [f"`{name}`" for name in ordinary]
    odd = [*MARKUP, 'x"\n---\nlicense: mit\n---', "\n# heading", "![](http://x/y.png)"]
    licence = {"id": "other", "name": odd[-3], "link": odd[-1]}
    licences = {"weights": licence, "images": licence}
    text = card(len(odd), odd, "`` x\n# y", "x\n# y", "0" * 12, licences, Method("synthetic", "drawn."))
    _, front, body = text.split("---\n", 2)
    assert {"license": "other", "license_name": odd[-3]}.items() <= yaml.safe_load(front).items()
    headings = [line for line in body.splitlines() if line.startswith("#")]
    assert headings == [body.splitlines()[0], "## Licences"]
    assert not any(mark in body for mark in ("<script", "](", "`x`", "*x*", " _x_"))
    assert "---" not in body.splitlines()
