"""`ims3 convert` with bad input: one line, exit code 2, no weights read, nothing written."""

import shutil

import pytest
from tiny_generator import edit, small_adapter

from ims3_ray.models.finetuned import ADAPTER, save_adapter
from ims3_ray.storage.artifacts import complete, open_directory


def bad(tmp_path, folder):
    """(bad words, what the line must name); tests/models has more invalid checkpoints."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept.txt").write_text("kept")
    shutil.copytree(folder / "vae", tmp_path / "unfit")
    edit(tmp_path / "unfit" / "config.json", lambda held: held.update(layers_per_block=2))
    adapters = {"classes": {"num_classes": 7}, "depth": {"depth": 4}}
    for name, changes in adapters.items():
        small_adapter(tmp_path / name, **changes)
    for name in ("unfinished", "truncated", "lost", "damaged", "diverged"):
        values = small_adapter(tmp_path / name)
    values["ema"]["y_embedder.embedding_table.weight"].fill_(float("nan"))
    diverged = open_directory(str(tmp_path / "diverged"))
    save_adapter(diverged, values["last"], values["ema"])
    complete(diverged, {})
    (tmp_path / "unfinished" / "manifest.json").unlink()
    (tmp_path / "lost" / ADAPTER).unlink()
    data = (tmp_path / "truncated" / ADAPTER).read_bytes()
    (tmp_path / "truncated" / ADAPTER).write_bytes(data[:100])
    (tmp_path / "damaged" / ADAPTER).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters" / "manifest.json").write_text("[1]")
    born = ("--checkpoint", folder)
    return [
        ((*born, "--vae", tmp_path / "unfit"), ["unfit", "VAE", "missing"]),
        (("--checkpoint", tmp_path / "missing"), ["missing", "no such model"]),
        ((*born, "--out", tmp_path / "full"), ["full", "new or empty"]),
        ((*born, "--out", tmp_path / "full" / "kept.txt" / "below"), ["kept.txt", "below"]),
        ((*born, "--out", "s3://bucket/model"), ["--out", "s3://bucket/model", "local"]),
        ((*born, "--adapter", tmp_path / "classes"), ["classes", "of this checkpoint", "another shape"]),
        ((*born, "--adapter", tmp_path / "depth"), ["depth", "left over: blocks.1.attention_scale"]),
        ((*born, "--adapter", tmp_path / "unfinished"), ["unfinished", "no manifest.json"]),
        ((*born, "--adapter", tmp_path / "lost"), ["lost", ADAPTER, "not there"]),
        ((*born, "--adapter", tmp_path / "truncated"), ["truncated", ADAPTER, "100 bytes"]),
        ((*born, "--adapter", tmp_path / "damaged"), ["damaged", ADAPTER, "damaged"]),
        ((*born, "--adapter", tmp_path / "diverged"), ["diverged", ADAPTER, "not finite"]),
        ((*born, "--adapter", tmp_path / "adapters"), ["adapters", "manifest"]),
        ((*born, "--adapter", tmp_path / "nowhere"), ["nowhere", "incomplete adapter"]),
    ]


def test_bad_input_gives_one_line_and_exit_code_2_before_any_weights_are_read(
    tmp_path, folder, refused, monkeypatch
):
    cases = bad(tmp_path, folder)
    monkeypatch.setattr(
        "ims3_ray.models.finetuned.load_transformer", lambda *a, **k: pytest.fail("read weights")
    )
    before = sorted(tmp_path.rglob("*"))
    for words, named in cases:
        words = words if "--out" in words else (*words, "--out", tmp_path / "out")
        line = refused("convert", *words)
        assert [word for word in named if word not in line] == [], line
        assert sorted(tmp_path.rglob("*")) == before
