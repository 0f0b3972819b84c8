"""jobs/push.py: what arrives is what was made, and nothing that is there is written over unasked."""

import json
import sys

import pyarrow.parquet as pq
import pytest
from printed import next_commands
from tiny import CLASSES, tree

import ims3_ray
from ims3_ray.config.load import load_config
from ims3_ray.data.images import open_images
from ims3_ray.data.sources import PARQUET
from ims3_ray.jobs.share.push import parse_target
from ims3_ray.runs import records
from ims3_ray.storage.artifacts import MANIFEST, open_directory, read_manifest
from ims3_ray.storage.integrity import verify


def pngs(loaded):
    return list(zip(loaded._pngs, loaded.targets, strict=True))


def test_a_folder_and_the_hub_get_the_same_tree_with_all_that_the_run_has(make_run, output, hub, tmp_path):
    _, made = make_run()
    assert set(next_commands(output("push", made.uri, "--to", tmp_path / "mine"))) == {"verify"}
    output("push", made.uri, "--to", "someone/mine")
    files = tree(tmp_path / "mine")
    assert hub.holds("someone/mine") == files
    beside = {"adapter/adapter.safetensors", "adapter/manifest.json", "evaluation.json", "recipe.yaml"}
    beside |= {"teacher/teacher.safetensors", "teacher/manifest.json"}
    assert set(files) == {"README.md", "manifest.json", PARQUET, *beside}
    assert all(figure in files["README.md"] for figure in (b"94.50", b"25.0 %"))
    assert load_config(str(tmp_path / "mine" / "recipe.yaml")).results() == load_config("digits").results()


def test_the_manifest_names_every_file_s_checksum_and_the_order_of_the_classes(make_run, output, tmp_path):
    output("push", make_run()[1].uri, "--to", tmp_path / "mine")
    folder = open_directory(str(tmp_path / "mine"))
    manifest = read_manifest(folder)
    assert set(manifest["checksums"]) == set(folder.files()) - {"manifest.json"}
    assert manifest["classes"] == list(CLASSES)
    assert verify(folder) == ({}, 0)
    folder.write("adapter/adapter.safetensors", b"valueS")
    assert set(verify(folder)[0]) == {"adapter/adapter.safetensors"}


def test_a_pushed_set_is_read_back_without_an_extra(make_run, output, hub, tmp_path, monkeypatch):
    storage, made = make_run()
    output("push", made.uri, "--to", tmp_path / "mine")
    output("push", made.uri, "--to", "hf://someone/mine")
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


def test_a_run_is_found_by_its_key_its_name_and_its_set(make_run, output, refused, tmp_path):
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
        output("push", name, "--to", tmp_path / str(place), where)
        trees.append(tree(tmp_path / str(place)))
    assert trees[1:] == trees[:-1]
    record = storage.read_json(f"runs/{run}/run.json")
    stopped = {**record, "state": records.STOPPED, "written": "2999-01-01T00:00:00Z"}
    stopped["artifacts"] = {**record["artifacts"], "evaluation": f"{storage.uri}/evaluation/{'e' * 12}"}
    storage.write_json("runs/digits-stopped/run.json", stopped)
    output("push", made.uri, "--to", tmp_path / "finished", where)
    assert tree(tmp_path / "finished") == trees[0]
    assert "matches 2 sets" in refused("push", "digits", "--to", tmp_path / "odd", where)


def test_a_folder_that_was_pushed_is_pushed_on_as_it_is(make_run, output, hub, tmp_path):
    output("push", make_run()[1].uri, "--to", tmp_path / "mine")
    output("push", tmp_path / "mine", "--to", "someone/mine")
    assert hub.holds("someone/mine") == tree(tmp_path / "mine")


def test_a_dry_run_lists_files_sizes_and_licences_and_writes_nothing(make_run, output, hub, tmp_path):
    _, made = make_run()
    for target in (tmp_path / "mine", "someone/mine"):
        out = output("push", made.uri, "--to", target, "--dry-run")
        assert f"{made.filesystem.get_file_info(f'{made.path}/{PARQUET}').size / 1000:.3g} kB" in out
        assert all(
            word in out for word in (PARQUET, "adapter/adapter.safetensors", "apache-2.0", "cc-by-sa-3.0")
        )
    assert not (tmp_path / "mine").exists()
    with pytest.raises(KeyError):
        hub.holds("someone/mine")


@pytest.mark.parametrize("words", [[], ["--private"]])
def test_only_a_private_set_is_hidden(make_run, output, hub, words):
    output("push", make_run()[1].uri, "--to", "someone/mine", *words)
    assert hub.private == ({"datasets/someone/mine"} if words else set())


@pytest.mark.parametrize("place", ["hub", "folder"])
def test_other_content_is_written_over_only_when_asked(make_run, output, refused, hub, tmp_path, place):
    first, second = make_run()[1].uri, make_run(seed=1)[1].uri
    target = "someone/mine" if place == "hub" else tmp_path / "mine"

    def there():
        return hub.holds("someone/mine") if place == "hub" else tree(tmp_path / "mine")

    output("push", first, "--to", target)
    before = there()
    assert "there already" in output("push", first, "--to", target)
    assert "--replace" in refused("push", second, "--to", target, prints=True)
    assert there() == before
    output("push", second, "--to", target, "--replace")
    output("push", second, "--to", tmp_path / "fresh")
    assert there() == tree(tmp_path / "fresh")
    (tmp_path / "fresh" / "README.md").unlink()
    output("push", second, "--to", tmp_path / "fresh", "--replace")
    assert there() == tree(tmp_path / "fresh")
    (tmp_path / "fresh" / "mine.txt").touch()
    refused("push", first, "--to", tmp_path / "fresh", "--replace", prints=True)
    (tmp_path / "fresh" / "mine.txt").rename(tmp_path / "mine.txt")
    manifest = json.loads((path := tmp_path / "fresh" / MANIFEST).read_text())
    path.write_text(json.dumps(manifest | {"files": {**manifest["files"], "../mine.txt": 0}}))
    output("push", first, "--to", tmp_path / "fresh", "--replace")
    assert (tmp_path / "mine.txt").exists()


def test_a_folder_of_somebody_s_own_files_is_never_written_over(make_run, refused, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years")
    refused("push", make_run()[1].uri, "--to", tmp_path / "mine", "--replace", prints=True)
    assert tree(tmp_path / "mine") == {"thesis.tex": b"years"}


def test_licences_with_terms_are_asked_about_before_the_hub_hears_of_it(
    make_run, output, refused, hub, tmp_path
):
    _, made = make_run(**{"model.licence": "cc-by-nc-4.0"})
    line = refused("push", made.uri, "--to", "someone/mine", prints=True)
    assert "weights cc-by-nc-4.0" in line
    assert "--accept-licence" in line
    with pytest.raises(KeyError):
        hub.holds("someone/mine")
    output("push", made.uri, "--to", tmp_path / "mine")
    output("push", made.uri, "--to", "someone/mine", "--accept-licence")
    assert hub.holds("someone/mine")


def test_bad_input_is_one_line(make_run, refused, hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    storage, made = make_run()
    for told, *words in (
        ("neither ORG/NAME", made.uri, "--to", "mine"),
        ("neither ORG/NAME", made.uri, "--to", "hf://mine"),
        ("holds no distilled set", f"{made.uri}/nowhere", "--to", "./mine"),
        ("no run of", "0123", "--to", "./mine", f"storage={storage.uri}"),
        ("no run of", f"{storage.uri}/distilled/000000000000", "--to", "./mine"),
        ("ipc: is no field", made.uri, "--to", "./mine", "ipc=3"),
        ("does not serve it", "hf://someone/nothing", "--to", "./mine"),
    ):
        assert told in refused("push", *words)
    assert not (tmp_path / "mine").exists()


def test_no_token_a_refused_one_and_no_network_are_one_line_each(
    make_run, refused, hub, tmp_path, monkeypatch
):
    words = "push", make_run()[1].uri, "--to", "someone/mine"
    monkeypatch.setenv("HF_TOKEN", "hf_of-somebody-else")
    other = refused(*words, prints=True)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    without = refused(*words, prints=True)
    monkeypatch.setenv("HF_TOKEN", hub.TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    away = refused(*words, prints=True)
    for line, told in ((other, "refused"), (without, "HF_TOKEN"), (away, "network")):
        assert told in line
        assert "hf_of" not in line


def test_an_unfinished_and_a_damaged_run_are_refused(make_run, refused, tmp_path):
    _, made = make_run()
    words = "push", made.uri, "--to", tmp_path / "mine"
    (made / "README.md").delete()
    assert "README.md is not there" in refused(*words)
    (made / "manifest.json").delete()
    assert "not complete" in refused(*words)
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


def test_the_rows_are_what_the_hub_s_viewer_shows(make_run, output, tmp_path):
    output("push", make_run()[1].uri, "--to", tmp_path / "mine")
    schema = pq.read_schema(tmp_path / "mine" / PARQUET)
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}
    assert features["label"] == {"names": list(CLASSES), "_type": "ClassLabel"}
    card = (tmp_path / "mine" / "README.md").read_text()
    assert "path: data/train-*.parquet" in card
