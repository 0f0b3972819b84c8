"""jobs/push.py: what arrives is what was made, and nothing that is there is written over unasked."""

import json
import sys

import pyarrow.parquet as pq
import pytest
from printed import next_commands
from tiny import CLASSES, tree

import ims3_ray
from ims3_ray.cli import main
from ims3_ray.config.load import load_config
from ims3_ray.data.images import open_images
from ims3_ray.data.sources import PARQUET
from ims3_ray.jobs.share.push import parse_target
from ims3_ray.storage.artifacts import open_directory, read_manifest
from ims3_ray.storage.integrity import verify


@pytest.fixture
def push(capsys):
    """Runs the command; gives its exit code, and what it printed."""

    def run(*words):
        capsys.readouterr()
        return main(["push", *map(str, words)]), *capsys.readouterr()

    return run


def pngs(loaded):
    return list(zip(loaded._pngs, loaded.targets, strict=True))


def test_a_folder_and_the_hub_get_the_same_tree_with_all_that_the_run_has(make_run, push, hub, tmp_path):
    _, made = make_run()
    code, out, _ = push(made.uri, "--to", tmp_path / "mine")
    assert code == 0
    assert set(next_commands(out)) == {"verify"}
    assert push(made.uri, "--to", "someone/mine")[0] == 0
    files = tree(tmp_path / "mine")
    assert hub.holds("someone/mine") == files
    beside = {"adapter/adapter.safetensors", "adapter/manifest.json", "evaluation.json", "recipe.yaml"}
    beside |= {"teacher/teacher.safetensors", "teacher/manifest.json"}
    assert set(files) == {"README.md", "manifest.json", PARQUET, *beside}
    assert all(figure in files["README.md"] for figure in (b"94.50", b"25.0 %"))
    assert load_config(str(tmp_path / "mine" / "recipe.yaml")).results() == load_config("digits").results()


def test_the_manifest_names_every_file_s_checksum_and_the_order_of_the_classes(make_run, push, tmp_path):
    push(make_run()[1].uri, "--to", tmp_path / "mine")
    folder = open_directory(str(tmp_path / "mine"))
    manifest = read_manifest(folder)
    assert set(manifest["checksums"]) == set(folder.files()) - {"manifest.json"}
    assert manifest["classes"] == list(CLASSES)
    assert verify(folder) == ({}, 0)
    folder.write("adapter/adapter.safetensors", b"valueS")
    assert set(verify(folder)[0]) == {"adapter/adapter.safetensors"}


def test_a_pushed_set_is_read_back_without_an_extra(make_run, push, hub, tmp_path, monkeypatch):
    storage, made = make_run()
    push(made.uri, "--to", tmp_path / "mine")
    push(made.uri, "--to", "hf://someone/mine")
    monkeypatch.setitem(sys.modules, "datasets", None)  # importing it fails
    here, there = ims3_ray.load_distilled(made.uri), ims3_ray.load_distilled("hf://someone/mine")
    assert pngs(here) == pngs(there)
    assert here.classes == there.classes == list(CLASSES)
    for name in ("data.train", "--set mine"):
        own, *pushed = (
            open_images(place, storage, name=name, seed=0, max_bad_fraction=0.0)
            for place in (made.uri, str(tmp_path / "mine"), "hf://someone/mine")
        )
        for images in pushed:
            assert (images.ids, images.labels.tolist()) == (own.ids, own.labels.tolist())
        assert pushed[1].place == "hf://someone/mine"
    assert (storage / "unpacked").folders()


def test_a_run_is_found_by_its_key_its_name_and_its_set(make_run, push, tmp_path):
    storage, made = make_run()
    make_run(seed=1)
    (run,) = [
        name
        for name in (storage / "runs").folders()
        if made.name in str(storage.read(f"runs/{name}/run.json"))
    ]
    where = f"storage={storage.uri}"
    trees = []
    for place, name in enumerate((made.uri, run, run.removeprefix("digits-"), made.name[:8])):
        assert push(name, "--to", tmp_path / str(place), where)[0] == 0, name
        trees.append(tree(tmp_path / str(place)))
    assert trees[1:] == trees[:-1]
    code, _, err = push("digits", "--to", tmp_path / "odd", where)
    assert (code, err.count("\n")) == (2, 1)
    assert "matches 2 sets" in err


def test_a_folder_that_was_pushed_is_pushed_on_as_it_is(make_run, push, hub, tmp_path):
    push(make_run()[1].uri, "--to", tmp_path / "mine")
    assert push(tmp_path / "mine", "--to", "someone/mine")[0] == 0
    assert hub.holds("someone/mine") == tree(tmp_path / "mine")


def test_a_dry_run_lists_files_sizes_and_licences_and_writes_nothing(make_run, push, hub, tmp_path):
    _, made = make_run()
    for target in (tmp_path / "mine", "someone/mine"):
        code, out, _ = push(made.uri, "--to", target, "--dry-run")
        assert code == 0
        assert f"{made.filesystem.get_file_info(f'{made.path}/{PARQUET}').size / 1000:.3g} kB" in out
        assert all(
            word in out for word in (PARQUET, "adapter/adapter.safetensors", "apache-2.0", "cc-by-sa-3.0")
        )
    assert not (tmp_path / "mine").exists()
    with pytest.raises(KeyError):
        hub.holds("someone/mine")


@pytest.mark.parametrize("place", ["hub", "folder"])
def test_other_content_is_written_over_only_when_asked(make_run, push, hub, tmp_path, place):
    first, second = make_run()[1].uri, make_run(seed=1)[1].uri
    target = "someone/mine" if place == "hub" else tmp_path / "mine"

    def there():
        return hub.holds("someone/mine") if place == "hub" else tree(tmp_path / "mine")

    push(first, "--to", target)
    before = there()
    assert "there already" in push(first, "--to", target)[1]
    code, _, err = push(second, "--to", target)
    assert (code, err.count("\n")) == (2, 1)
    assert "--replace" in err
    assert there() == before
    assert push(second, "--to", target, "--replace")[0] == 0
    push(second, "--to", tmp_path / "fresh")
    assert there() == tree(tmp_path / "fresh")
    (tmp_path / "fresh" / "mine.txt").touch()
    assert push(first, "--to", tmp_path / "fresh", "--replace")[0] == 2


def test_a_folder_of_somebody_s_own_files_is_never_written_over(make_run, push, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years")
    code, _, err = push(make_run()[1].uri, "--to", tmp_path / "mine", "--replace")
    assert (code, err.count("\n")) == (2, 1)
    assert tree(tmp_path / "mine") == {"thesis.tex": b"years"}


def test_licences_with_terms_are_asked_about_before_the_hub_hears_of_it(make_run, push, hub, tmp_path):
    licence = {"model.licence": "cc-by-nc-4.0"}
    _, made = make_run(**licence)
    code, _, err = push(made.uri, "--to", "someone/mine")
    assert (code, err.count("\n")) == (2, 1)
    assert "weights cc-by-nc-4.0" in err
    assert "--accept-licence" in err
    with pytest.raises(KeyError):
        hub.holds("someone/mine")
    assert push(made.uri, "--to", tmp_path / "mine")[0] == 0
    assert push(made.uri, "--to", "someone/mine", "--accept-licence")[0] == 0
    assert hub.holds("someone/mine")


def refused(tmp_path):
    """Words → what the one line must name."""
    return [
        (["{set}", "--to", "mine"], "neither ORG/NAME"),
        (["{set}", "--to", "hf://mine"], "neither ORG/NAME"),
        (["{set}/nowhere", "--to", "./mine"], "holds no distilled set"),
        (["0123", "--to", "./mine", "storage={storage}"], "no run of"),
        (["{storage}/distilled/000000000000", "--to", "./mine"], "no run of"),
        (["{set}", "--to", "./mine", "ipc=3"], "ipc: is no field"),
        (["hf://someone/nothing", "--to", "./mine"], "does not serve it"),
    ]


def test_bad_input_is_one_line(make_run, push, hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    storage, made = make_run()
    for words, told in refused(tmp_path):
        code, _, err = push(*(word.format(set=made.uri, storage=storage.uri) for word in words))
        assert (code, err.count("\n")) == (2, 1), (words, err)
        assert told in err, err
    assert not (tmp_path / "mine").exists()


def test_no_token_a_refused_one_and_no_network_are_one_line_each(make_run, push, hub, tmp_path, monkeypatch):
    _, made = make_run()
    monkeypatch.setenv("HF_TOKEN", "hf_of-somebody-else")
    refused = push(made.uri, "--to", "someone/mine")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    without = push(made.uri, "--to", "someone/mine")
    monkeypatch.setenv("HF_TOKEN", hub.TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    away = push(made.uri, "--to", "someone/mine")
    for (code, _, err), told in ((refused, "refused"), (without, "HF_TOKEN"), (away, "network")):
        assert (code, err.count("\n")) == (2, 1), err
        assert told in err
        assert "hf_of" not in err


def test_an_unfinished_and_a_damaged_run_are_refused(make_run, push, tmp_path):
    _, made = make_run()
    (made / "README.md").delete()
    code, _, err = push(made.uri, "--to", tmp_path / "mine")
    assert (code, err.count("\n")) == (2, 1)
    assert "README.md is not there" in err
    (made / "manifest.json").delete()
    assert "not complete" in push(made.uri, "--to", tmp_path / "mine")[2]
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize(
    ("place", "name"),
    [
        *((place, "org/name") for place in ("org/name", "hf://org/name")),
        *((place, None) for place in ("./org/name", "/data/x", "../x", "~/x", "s3://bucket/x")),
    ],
)
def test_a_target_says_by_its_beginning_what_it_is(place, name):
    assert parse_target(place) == name


def test_the_rows_are_what_the_hub_s_viewer_shows(make_run, push, tmp_path):
    push(make_run()[1].uri, "--to", tmp_path / "mine")
    schema = pq.read_schema(tmp_path / "mine" / PARQUET)
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}
    assert features["label"] == {"names": list(CLASSES), "_type": "ClassLabel"}
    card = (tmp_path / "mine" / "README.md").read_text()
    assert "path: data/train-*.parquet" in card
