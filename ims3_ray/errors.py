"""The one exception for what a person gave: shown as a single line, exit code 2."""


class InputError(ValueError):
    """Bad input. The message names the field or file, the rule, the value and the remedy, in one line."""
