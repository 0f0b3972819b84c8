"""What there is to run, listed."""

import yaml

from ims3_ray.cli import COMMANDS, main, run_command
from ims3_ray.config.load import load_config, recipe_names


def test_every_recipe_is_listed_with_its_model_protocol_and_what_it_distils(capsys):
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, facts, sentence in zip(recipe_names(), lines[::2], lines[1::2], strict=True):
        config = load_config(name)
        assert facts.split()[0] == name
        assert config.model.path in facts
        assert config.evaluate.protocol in facts
        assert len(sentence.split()) > 5


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
    assert main(["distil"]) == 2
    assert capsys.readouterr().err == (
        "error: ims3 distil: no such command; did you mean distill? ims3 --help lists them\n"
    )
