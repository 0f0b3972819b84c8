"""Print what completes commands, recipes and fields in a shell.

    ims3 completion bash > ~/.local/share/bash-completion/completions/ims3
    ims3 completion zsh > ~/.zfunc/_ims3      a folder of your fpath
    ims3 completion fish > ~/.config/fish/completions/ims3.fish

All words stand in what is printed, so that nothing is started when a key is
pressed: print it again after an upgrade.
"""

import argparse
from collections.abc import Callable, Mapping
from importlib import import_module

from ims3_ray.config.field_docs import fields
from ims3_ray.config.load import recipe_names

from . import COMMANDS

Words = Mapping[str, list[str]]  # by command: its options and choices, and its fields with a = behind
OF_RECIPES = ("--recipe", "--show")  # options that a recipe's name follows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help=f"{', '.join(SHELLS)}")


def run(arguments: argparse.Namespace) -> None:
    print(SHELLS[arguments.shell]({name: words(name) for name in COMMANDS}), end="")


def words(command: str) -> list[str]:
    """What may follow the command."""
    parser = argparse.ArgumentParser()
    import_module(COMMANDS[command]).add_arguments(parser)
    known = []
    for action in parser._actions:  # no public way to ask
        known += action.option_strings or list(action.choices or ())
    return [*known, *(f"{field}=" for field in fields(command))]


def bash(words: Words) -> str:
    """Files where nothing else is meant; no space behind a field's =."""
    cases = "\n".join(f'        {name}) words="{" ".join(of)}" ;;' for name, of in words.items())
    return f"""_ims3() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD - 1]}} words=
    if ((COMP_CWORD == 1)); then words="{" ".join(words)}"
    elif [[ $before == @({"|".join(OF_RECIPES)}) ]]; then words="{" ".join(recipe_names())}"
    elif [[ $before != "=" && $word != "=" ]]; then case ${{COMP_WORDS[1]}} in
{cases}
    esac; fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
    [[ ${{COMPREPLY-}} != *= ]] || compopt -o nospace
}}
complete -o default -F _ims3 ims3
"""


def zsh(words: Words) -> str:
    """As `bash`."""
    cases = "\n".join(f"        {name}) known=({' '.join(of)}) ;;" for name, of in words.items())
    return f"""#compdef ims3
_ims3() {{
    local -a known
    if ((CURRENT == 2)); then known=({" ".join(words)})
    elif [[ ${{words[CURRENT - 1]}} == ({"|".join(OF_RECIPES)}) ]]; then known=({" ".join(recipe_names())})
    else case ${{words[2]}} in
{cases}
    esac; fi
    compset -P '*=' && _files && return
    compadd -S '' -- ${{(M)known:#*=}}
    compadd -- ${{known:#*=}}
    ((CURRENT == 2)) || _files
}}
if [[ $zsh_eval_context == *func ]]; then _ims3 "$@"; else compdef _ims3 ims3; fi
"""


def fish(words: Words) -> str:
    """As `bash`; it leaves no space behind a = by itself."""
    lines = ["complete -c ims3 -e", f"complete -c ims3 -n __fish_is_first_arg -xa '{' '.join(words)}'"]
    for name, of in words.items():
        within = f"complete -c ims3 -n '__fish_seen_subcommand_from {name}'"
        given = [option.removeprefix("--") for option in OF_RECIPES if option in of]
        lines += [f"{within} -l {option} -ra '{' '.join(recipe_names())}'" for option in given]
        lines.append(f"{within} -a '{' '.join(of)}'")
    return "\n".join(lines) + "\n"


SHELLS: dict[str, Callable[[Words], str]] = {"bash": bash, "zsh": zsh, "fish": fish}
