"""The checker that the tests put on every function of the package: an integer passes for a float."""

from beartype import BeartypeConf, beartype

checker = beartype(conf=BeartypeConf(is_pep484_tower=True))
