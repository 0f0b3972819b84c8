"""What there is to run, listed."""

import re

import yaml

from ims3_ray.cli import COMMANDS, main, run_command
from ims3_ray.config.load import load_config, recipe_names


def test_every_recipe_is_listed_with_its_model_protocol_time_and_what_it_distils(capsys):
    assert main(["recipes"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    listed = dict(re.findall(r"^(\S+)\n((?: {4}.*\n)+)", out, re.MULTILINE))
    assert list(listed) == recipe_names()
    for name, facts in listed.items():
        config = load_config(name)
        assert config.model.path in facts
        assert f"scored by {config.evaluate.protocol}" in facts
        assert re.search(r"time (\d+ s \(measured\)|not yet\s+measured)\n", facts), facts
        assert len(facts.splitlines()[0].split()) > 5


def test_a_recipe_shown_is_one_to_begin_with(tmp_path, capsys):
    assert run_command("recipes", ["--show", "imagewoof"]) == 0
    path = tmp_path / "imagewoof.yaml"
    path.write_text(capsys.readouterr().out)
    assert yaml.safe_load(path.read_text())["ipc"] == 10
    assert load_config(str(path)) == load_config("imagewoof")
    assert run_command("recipes", ["--show", "imagewolf"]) == 2
    assert "imagewoof" in capsys.readouterr().err


def test_help_has_a_sentence_a_command_and_a_wrong_name_gets_a_line(capsys):
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"\n  {name} " in said for name in COMMANDS)
    assert max(map(len, said.splitlines())) <= 80
    assert main(["distil"]) == 2
    assert capsys.readouterr().err == (
        "error: ims3 distil: no such command; did you mean distill? ims3 --help lists them\n"
    )
