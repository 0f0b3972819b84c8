"""What a sweep varies: recipe fields and the values that they may take.

select.alpha=0.1:0.9            any number between; whole numbers alone where the field takes no others
finetune.lr=1e-4:1e-2:log       the same, even on a logarithmic scale
ipc=1,10,50                     these values, read as YAML
"""

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from ray import tune

from ims3_ray.config.load import accepts, require_field
from ims3_ray.errors import InputError

NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
RANGE = re.compile(rf"({NUMBER}):({NUMBER})(:log)?")
# what would make trials incomparable, or changes no result
FIXED = ("evaluate", "workers", "storage", "recipe")
DIGITS = 4  # significant digits of a drawn number: a winner's recipe is read by people


@dataclass(frozen=True)
class Choice:
    """A field's values, in the order given."""

    values: tuple[Any, ...]

    def tune(self) -> Any:
        """As Tune samples it: plain values are themselves, others are told by their place."""
        return tune.choice(list(self.values) if self._are_plain else list(range(len(self.values))))

    def encode(self, value: Any) -> Any:
        return value if self._are_plain else self.values.index(value)

    def decode(self, drawn: Any) -> Any:
        return drawn if self._are_plain else self.values[drawn]

    def largest(self) -> Any:
        return max(self.values)

    def describe(self) -> dict[str, Any]:
        return {"values": list(self.values)}

    @property
    def _are_plain(self) -> bool:
        return all(value is None or isinstance(value, bool | int | float | str) for value in self.values)


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included."""

    low: float
    high: float
    log: bool = False
    integer: bool = False

    def tune(self) -> Any:
        if self.integer:
            return (tune.lograndint if self.log else tune.randint)(int(self.low), int(self.high) + 1)
        return (tune.loguniform if self.log else tune.uniform)(self.low, self.high)

    def encode(self, value: Any) -> Any:
        return value

    def decode(self, drawn: Any) -> Any:
        if self.integer:
            return int(drawn)
        return min(max(float(f"{drawn:.{DIGITS}g}"), self.low), self.high)

    def largest(self) -> Any:
        return int(self.high) if self.integer else self.high

    def describe(self) -> dict[str, Any]:
        return {"low": self.low, "high": self.high, "log": self.log, "integer": self.integer}


@dataclass(frozen=True)
class Space:
    """Fields of a recipe and their domains, in the order given."""

    domains: Mapping[str, Choice | Range]

    def grid(self) -> list[dict[str, Any]]:
        """Every combination, the last field changing fastest. InputError for a range, which has no end of
        values.
        """
        for field, domain in self.domains.items():
            if isinstance(domain, Range):
                raise InputError(
                    f"--space {field}: {domain.low:g}:{domain.high:g} is a range, and a grid needs values; "
                    f"write {field}={domain.low:g},{domain.high:g} or use --search random"
                )
        combinations = itertools.product(*(domain.values for domain in self.domains.values()))
        return [dict(zip(self.domains, values, strict=True)) for values in combinations]

    def any(self) -> dict[str, Any]:
        """One combination: the first or lowest value of every field."""
        return {
            field: d.values[0] if isinstance(d, Choice) else d.decode(d.low)
            for field, d in self.domains.items()
        }

    def random(self, count: int, seed: int) -> list[dict[str, Any]]:
        """`count` different combinations, drawn with `seed`; fewer where there are no more."""
        draws = np.random.default_rng(seed)
        found: dict[str, dict[str, Any]] = {}
        for _ in range(100 * count):
            values = {
                field: d.decode(d.tune().sample(random_state=draws)) for field, d in self.domains.items()
            }
            found.setdefault(key_of(values), values)
            if len(found) == count:
                break
        return list(found.values())

    def describe(self) -> dict[str, Any]:
        return {field: domain.describe() for field, domain in self.domains.items()}


def key_of(values: Mapping[str, Any]) -> str:
    """The same text for equal values."""
    return json.dumps(values, sort_keys=True)


def read_space(words: Sequence[str], recipe: str, overrides: Mapping[str, Any]) -> Space:
    """The space of `field=domain` words, or of one YAML file that maps fields to lists, {low, high, log} or
    such text.

    InputError for a field that the recipe does not have or a sweep can't vary, and for a domain that is none.
    """
    if len(words) == 1 and "=" not in words[0]:
        given = _from_file(words[0])
    else:
        given = {}
        for word in words:
            field, equals, text = word.partition("=")
            if not equals:
                raise InputError(f"--space {word!r}: is no domain; write field=a,b,c or field=low:high")
            if field in given:
                raise InputError(f"--space {field}: stands twice; give its values once")
            given[field] = text
    if not given:
        raise InputError(
            "--space: is empty; name a field and its values, such as select.alpha=0.1:0.9 or ipc=1,10"
        )
    domains = {}
    for field, domain in given.items():
        require_field(field)
        if field.split(".")[0] in FIXED:
            raise InputError(
                f"--space {field}: can't be swept, trials would not compare; give it as an override for all of them"
            )
        domains[field] = _domain(field, domain, recipe, overrides)
    return Space(domains)


def _from_file(place: str) -> dict[str, Any]:
    path = Path(place)
    if path.suffix not in {".yaml", ".yml"} or not path.is_file():
        raise InputError(f"--space {place!r}: is neither field=values nor a YAML file that exists")
    try:
        given = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise InputError(f"--space {place}: is not valid YAML: {' '.join(str(error).split())}") from error
    if given is not None and not isinstance(given, dict):
        raise InputError(
            f"--space {place}: holds a {type(given).__name__}; give a mapping of fields to values"
        )
    return {str(field): domain for field, domain in (given or {}).items()}


def _domain(field: str, given: Any, recipe: str, overrides: Mapping[str, Any]) -> Choice | Range:
    """A domain out of its text, list or {low, high, log}."""
    if isinstance(given, str) and (match := RANGE.fullmatch(given.strip())):
        whole = re.fullmatch(r"[+-]?\d+", match[1]) and re.fullmatch(r"[+-]?\d+", match[2])
        return _range(field, float(match[1]), float(match[2]), bool(match[3]), bool(whole), recipe, overrides)
    if isinstance(given, Mapping):
        if not {"low", "high"} <= set(given) <= {"low", "high", "log"}:
            raise InputError(f"--space {field}: {given!r} is no range; give low, high and, where wanted, log")
        ends = given["low"], given["high"]
        if not all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends):
            raise InputError(f"--space {field}: low and high are numbers, not {ends[0]!r} and {ends[1]!r}")
        whole = all(isinstance(end, int) for end in ends)
        return _range(field, *map(float, ends), bool(given.get("log", False)), whole, recipe, overrides)
    if isinstance(given, str):
        try:
            values = yaml.safe_load(f"[{given}]")
        except yaml.YAMLError as error:
            raise InputError(
                f"--space {field}: values {given!r} can't be read; write a,b,c as YAML"
            ) from error
    else:
        values = given if isinstance(given, list) else [given]
    if not values:
        raise InputError(f"--space {field}: has no values; write {field}=a,b,c")
    if len({key_of({field: value}) for value in values}) < len(values):
        raise InputError(f"--space {field}: a value stands twice in {given!r}; give each once")
    return Choice(tuple(values))


def _range(
    field: str, low: float, high: float, log: bool, whole: bool, recipe: str, overrides: Mapping[str, Any]
) -> Range:
    """Whole numbers where the ends are and the recipe takes nothing between them."""
    if not math.isfinite(low) or not math.isfinite(high) or low >= high:
        raise InputError(
            f"--space {field}: {low:g}:{high:g} is no range; the first number is the smaller one"
        )
    if log and low <= 0:
        raise InputError(f"--space {field}: a logarithmic range begins above 0, not at {low:g}")
    integer = whole and not accepts(recipe, overrides, field, low + 0.5)
    for end in (low, high):
        if not accepts(recipe, overrides, field, int(end) if integer else end):
            raise InputError(f"--space {field}: takes no {end:g}; give values that the recipe takes")
    return Range(low, high, log, integer)
