"""The one exception for what a person gave: shown as a single line, exit code 2."""

from .shown import one_line, redacted


class InputError(ValueError):
    """Bad input. The message names the field or file, the rule, the value and the remedy, in one line.

    Names of files hold anything, and URIs credentials: what would break the line, or tell a secret, is replaced.
    """

    def __init__(self, message: str):
        super().__init__(one_line(redacted(message)))
