"""The hash of a model: its weights and configuration count, other files do not."""

import pytest

from ims3_ray.storage.artifacts import open_directory
from ims3_ray.storage.checksums import content_hash

COUNTED = ("model_index.json", "transformer/config.json", "transformer/diffusion_pytorch_model.safetensors")
IGNORED = ("README.md", "LICENSE", ".gitattributes", "vae/README.md", "a.png", ".cache/huggingface/a.json")


@pytest.fixture
def model(tmp_path):
    for name in (*COUNTED, *IGNORED):
        path = tmp_path / "model" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "model"


@pytest.fixture
def hash_of(tmp_path):
    return lambda place: content_hash(place, open_directory(str(tmp_path / "storage")))


@pytest.mark.parametrize("name", COUNTED)
def test_changed_weights_or_configuration_change_the_hash(model, hash_of, name):
    hashes, other = [hash_of(model)], (model / name).with_name("other.json")
    (model / name).write_text("other")
    hashes.append(hash_of(model))
    (model / name).rename(other)
    hashes.append(hash_of(model))
    other.unlink()
    assert len({*hashes, hash_of(model)}) == 4


@pytest.mark.parametrize("name", IGNORED)
def test_other_files_do_not_change_the_hash(model, hash_of, name):
    before = hash_of(model)
    (model / name).write_text("other")
    assert hash_of(model) == before
    (model / name).unlink()
    assert hash_of(model) == before


def test_a_single_file_is_hashed_for_any_name(tmp_path, hash_of):
    path = tmp_path / "dit.weights"
    path.write_bytes(b"1")
    before = hash_of(path)
    path.write_bytes(b"23")
    assert hash_of(path) != before
