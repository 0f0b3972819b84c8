"""The hash of a model: its weights and configuration count, other files do not."""

import pytest

from ims3_ray.storage.artifacts import open_directory
from ims3_ray.storage.checksums import content_hash

COUNTED = ("model_index.json", "transformer/config.json", "transformer/diffusion_pytorch_model.safetensors")
IGNORED = (
    "README.md",
    "LICENSE",
    ".gitattributes",
    "vae/README.md",
    "samples.png",
    ".cache/huggingface/a.json",
)


@pytest.fixture
def model(tmp_path):
    for name in (*COUNTED, *IGNORED):
        path = tmp_path / "model" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "model"


@pytest.fixture
def storage(tmp_path):
    return open_directory(str(tmp_path / "storage"))


@pytest.mark.parametrize("name", COUNTED)
def test_changed_weights_or_configuration_change_the_hash(model, storage, name):
    before = content_hash(model, storage)
    (model / name).write_text("other")
    changed = content_hash(model, storage)
    (model / name).rename((model / name).with_name("other.json"))
    renamed = content_hash(model, storage)
    (model / name).with_name("other.json").unlink()
    assert len({before, changed, renamed, content_hash(model, storage)}) == 4


@pytest.mark.parametrize("name", IGNORED)
def test_other_files_do_not_change_the_hash(model, storage, name):
    before = content_hash(model, storage)
    (model / name).write_text("other")
    assert content_hash(model, storage) == before
    (model / name).unlink()
    assert content_hash(model, storage) == before


def test_a_single_file_is_hashed_for_any_name(tmp_path, storage):
    (tmp_path / "dit.weights").write_bytes(b"1")
    before = content_hash(tmp_path / "dit.weights", storage)
    (tmp_path / "dit.weights").write_bytes(b"23")
    assert content_hash(tmp_path / "dit.weights", storage) != before
