"""`ims3 init` writes a recipe that runs, for data sets of different sizes and forms."""

import re
import shlex
import shutil
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from processes import python
from tiny import CLASSES, THREE, write_images

from ims3_ray.cli import run_command
from ims3_ray.config.load import load_config, load_settings, parse_overrides
from ims3_ray.config.pretrain import Pretrain
from ims3_ray.data.images import open_images
from ims3_ray.jobs.pretrain.rows import split_images
from ims3_ray.jobs.recipe_draft import HUB
from ims3_ray.storage.artifacts import open_storage


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ims3_ray.jobs.distill.estimate.RATE_S", 0.01)
    return tmp_path


def write_grey(folder, side, classes=CLASSES):
    for shade, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for index in range(12):
            Image.new("L", (side, side), 20 * index + shade).save(folder / name / f"{index}.png")


def init(*words):
    assert run_command("init", list(words)) == 0
    return load_config("flowers.yaml")


def runs(config, tiny_model):
    """Whether a dry run accepts the recipe, with a model in place of the one that pretraining would write."""
    if config.source == "generator":
        shutil.copytree(tiny_model, config.model.path)
    return run_command("distill", ["--recipe", "flowers.yaml", "--dry-run"]) == 0


def test_train_and_test_folders_give_a_recipe_that_runs_and_is_never_overwritten(
    here, tiny_model, capsys, refused
):
    write_images(here / "flowers/train", 40, seed=0)
    write_images(here / "flowers/test", 4, seed=1)
    (here / "flowers/train/teal").mkdir()
    config = init("--data", "flowers", "--model", "own")
    out, text = capsys.readouterr().out, (here / "flowers.yaml").read_text()
    places = f"{here}/flowers/train", f"{here}/flowers/test"
    assert (config.ipc, config.data.train, config.data.test) == (10, *places)
    assert (config.evaluate.protocol, config.model.path) == ("quick", f"{here}/flowers-model")
    assert all(
        words in text for words in ("120 images of 3 classes", "blue 40, green 40, red 40", "20×20", "'teal'")
    )
    times = [line.partition("  # ") for line in out.splitlines() if line.startswith("next ")]
    commands = [command.removeprefix("next    ") for command, *_ in times]
    assert [time.split()[-1] for *_, time in times] == ["h", "min"]
    assert all(f"#   {command}\n" in text for command in commands)
    assert f"--out {config.model.path} data.train={config.data.train} image_size=32" in commands[0]
    assert commands[1].endswith("ims3 distill --recipe flowers.yaml")
    assert runs(config, tiny_model)
    assert "flowers.yaml exists" in refused("init", "--data", "flowers")
    assert (here / "flowers.yaml").read_text() == text


@pytest.mark.parametrize(
    ("per_class", "ipc", "protocol", "split", "neighbours"),
    [(40, 10, "quick-val", 0.1, 5), (5, 2, "quick-val", 0.1, 3), (1, 1, "none", 0.0, 5)],
)
def test_without_test_images_a_split_is_held_out_and_numbers_fit_small_classes(
    here, tiny_model, per_class, ipc, protocol, split, neighbours
):
    write_images(here / "flowers", per_class, seed=0)
    config = init("--data", "flowers", "--model", "own" if per_class > 5 else "none")
    assert (config.ipc, config.evaluate.protocol, config.evaluate.neighbours) == (ipc, protocol, neighbours)
    assert config.data.validation_split == split
    assert ("validation_split" in (here / "flowers.yaml").read_text()) == bool(split)
    assert runs(config, tiny_model)


@pytest.mark.parametrize("per_class", [6, 40])
def test_the_printed_training_of_a_generator_takes_batches_that_the_images_fill(here, per_class):
    write_images(here / "flowers", per_class, seed=0)
    init("--data", "flowers", "--model", "own")
    (command,) = re.findall("# .* pretrain (.*)", (here / "flowers.yaml").read_text())
    config = load_settings(Pretrain, parse_overrides(shlex.split(command)[2:]))
    options = {"name": "", "seed": 0, "max_bad_fraction": 0.0}
    images = open_images(config.data.train, open_storage("runs"), **options)
    assert config.data.validation_split == 0.1
    trained, _ = split_images(config, images.split(config.data.validation_split)[0])
    assert config.transformer.batch_size <= len(trained)


@pytest.mark.parametrize(
    ("model", "classes", "path", "class_map", "protocol"),
    [
        ("own", CLASSES, "flowers-model", None, "quick-val"),
        (HUB, CLASSES, HUB, "new", "minimax-val"),
        (HUB, THREE, HUB, None, "minimax-val"),
    ],
)
def test_the_model_decides_the_protocol_and_grey_images_are_not_mirrored(
    here, model, classes, path, class_map, protocol
):
    write_grey(here / "flowers", 28 if model == "own" else 300, classes)
    config = init("--data", "flowers", "--model", model)
    assert config.model.path.removeprefix(f"{here}/") == path
    assert (config.data.mirror, config.data.class_map) == (False, class_map)
    assert config.evaluate.protocol == protocol
    assert ("data.mirror=false" in (here / "flowers.yaml").read_text()) == (model == "own")


def test_the_next_commands_take_a_folder_of_any_name(here, capsys):
    write_grey(here / "flowers: a", 28)
    assert run_command("init", ["--data", "flowers: a", "--model", "own", f"storage='{here}/my: runs'"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("next "))
    _, *words = shlex.split(line.partition("  # ")[0].removeprefix("next    "))
    overrides = parse_overrides([word for word in words if re.match(r"[a-z_.]+=", word)])
    assert (overrides["data.train"], overrides["storage"]) == (f"{here}/flowers: a", f"{here}/my: runs")
    assert overrides["data.mirror"] is False


def test_of_a_data_set_with_several_splits_the_test_split_is_scored(here, tiny_model):
    for split, seed in (("train", 0), ("test", 1)):
        files = sorted(write_images(here / split, 12, seed).glob("*/*.png"))
        images = [{"bytes": path.read_bytes(), "path": None} for path in files]
        table = pa.table({"image": images, "label": [path.parent.name for path in files]})
        (here / "flowers").mkdir(exist_ok=True)
        pq.write_table(table, here / "flowers" / f"{split}-00000-of-00001.parquet")
    config = init("--data", "flowers")
    assert config.data.train == config.data.test == f"{here}/flowers"
    file = "flowers/train-00000-of-00001.parquet"
    assert run_command("init", ["--data", file, "--out", "file.yaml"]) == 0
    assert runs(config, tiny_model)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--data one", "at least 2 class folders"),
        ("--data missing", "does not exist"),
        ("--data two --test other", "'cat', 'dog'"),
        ("--data two --out two.txt", ".yaml"),
        ("--data two --out nowhere/two.yaml", "nowhere"),
        ("--data two ipc=5", "ipc"),
        ("--data two storage=two/runs", "within"),
        ("--data two --model nowhere", "none or own"),
        ("--data few --model own", "3 images to train on, a generator needs 5"),
        ("--data two --model own --image-size 50", "image_size: 50 is no multiple of 4"),
        ("", "--data"),
    ],
)
def test_bad_input_gives_one_line_and_writes_nothing(here, refused, words, expected):
    write_images(here / "one", 3, seed=0, classes=["only"])
    write_images(here / "few", 4, seed=0)
    write_images(here / "two", 6, seed=0)
    write_images(here / "other", 3, seed=0, classes=["cat", "dog"])
    assert expected in refused("init", *words.split())
    assert not list(here.rglob("*.yaml"))


def test_without_a_gpu_real_images_are_distilled_and_a_generator_is_the_alternative(here, capsys, output):
    write_grey(here / "flowers", 100)
    config = init("--data", "flowers")
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert (config.source, config.image_size, config.evaluate.protocol) == ("real", 64, "quick-val")
    assert re.fullmatch(r"\S*ims3 distill --recipe flowers\.yaml  # about \d+ min", lines["next"])
    assert re.search(r"--model own --image-size (32|64) --out flowers-own\.yaml  # .* h", lines["or"])
    output("distill", "--recipe", "flowers.yaml", "--dry-run")


def test_hours_limit_the_size_of_a_generator_and_a_size_is_taken_as_it_is(here, capsys):
    write_grey(here / "flowers", 100)
    init("--data", "flowers", "--model", "own", "--hours", "0")
    assert "image_size=32" in capsys.readouterr().out
    (here / "flowers.yaml").unlink()
    init("--data", "flowers", "--model", "own", "--image-size", "48")
    assert "image_size=48" in capsys.readouterr().out


def test_a_machine_with_too_little_memory_is_refused_with_a_smaller_size(here, refused, monkeypatch):
    write_grey(here / "flowers", 100)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=1e9))
    line = refused("init", "--data", "flowers", "--model", "own", "--image-size", "64")
    assert re.search(r"memory: .* has 1 GB; use --image-size 32, or --model none", line)


def test_bad_input_is_refused_before_heavy_imports(here):
    write_images(here / "flowers", 3, seed=0)
    script = (
        "import sys; from ims3_ray.cli import run_command; "
        "code = run_command('init', ['--data', 'flowers', '--model', 'nowhere']); "
        "sys.exit(code - 2 or sum(name in sys.modules for name in ('ray', 'torch', 'mlflow')))"
    )
    python(script, check=True)
