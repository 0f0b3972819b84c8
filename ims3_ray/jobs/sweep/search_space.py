"""What a sweep varies: recipe fields and the values that they may take.

select.alpha=0.1:0.9            any number between; whole numbers alone where the field takes no others
finetune.lr=1e-4:1e-2:log       the same, even on a logarithmic scale
ipc=1,10,50                     these values, read as YAML
"""

import itertools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ray import tune
from ray.tune.search.sample import Domain as TuneDomain

from ims3_ray.config.load import accepts, check_field, read_text, read_yaml
from ims3_ray.errors import InputError

NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
RANGE = re.compile(rf"({NUMBER}):({NUMBER})(:log)?")
# what would make trials incomparable, or changes no result
FIXED = ("evaluate", "workers", "storage", "recipe")
DIGITS = 4  # significant digits of a drawn number: a winner's recipe is read by people

Value = Any  # of a recipe's field, as YAML gives it
Values = dict[str, Value]  # of a trial, by field


@dataclass(frozen=True)
class Choice:
    """A field's values, in the order given. Tune knows them by their places."""

    values: tuple[Value, ...]

    def tune(self) -> TuneDomain:
        return tune.choice(list(range(len(self.values))))

    def encode(self, value: Value) -> int:
        return self.values.index(value)

    def decode(self, drawn: int) -> Value:
        return self.values[drawn]

    def any(self) -> Value:
        return self.values[0]

    def largest(self) -> Value:
        return max(self.values)

    def describe(self) -> dict[str, Value]:
        return {"values": list(self.values)}


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included."""

    low: float
    high: float
    log: bool = False
    integer: bool = False

    def tune(self) -> TuneDomain:
        if self.integer:
            return (tune.lograndint if self.log else tune.randint)(int(self.low), int(self.high) + 1)
        return (tune.loguniform if self.log else tune.uniform)(self.low, self.high)

    def encode(self, value: float) -> float:
        return value

    def decode(self, drawn: float) -> float:
        if self.integer:
            return int(drawn)
        return min(max(float(f"{drawn:.{DIGITS}g}"), self.low), self.high)

    def any(self) -> float:
        return self.decode(self.low)

    def largest(self) -> float:
        return int(self.high) if self.integer else self.high

    def describe(self) -> dict[str, Value]:
        return {"low": self.low, "high": self.high, "log": self.log, "integer": self.integer}


@dataclass(frozen=True)
class Space:
    """Fields of a recipe and their domains, in the order given."""

    domains: Mapping[str, Choice | Range]

    def grid(self) -> list[Values]:
        """Every combination, the last field changing fastest. InputError for a range: it has no end."""
        choices = []
        for field, domain in self.domains.items():
            if isinstance(domain, Range):
                low, high = f"{domain.low:g}", f"{domain.high:g}"
                raise InputError(
                    f"--space {field}: {low}:{high} is a range, and a grid needs values; "
                    f"write {field}={low},{high} or use --search random"
                )
            choices.append(domain.values)
        return [dict(zip(self.domains, values, strict=True)) for values in itertools.product(*choices)]

    def any(self) -> Values:
        """One combination."""
        return {field: domain.any() for field, domain in self.domains.items()}

    def random(self, count: int, seed: int) -> list[Values]:
        """`count` different combinations, drawn with `seed`; fewer where there are no more."""
        draws = np.random.default_rng(seed)
        points: dict[str, Values] = {}
        for _ in range(100 * count):
            values = self.decode({f: d.tune().sample(random_state=draws) for f, d in self.domains.items()})
            points.setdefault(key_of(values), values)
            if len(points) == count:
                break
        return list(points.values())

    def decode(self, drawn: Mapping[str, Value]) -> Values:
        """A trial's values out of what Tune drew."""
        return {field: domain.decode(drawn[field]) for field, domain in self.domains.items()}

    def encode(self, values: Mapping[str, Value]) -> Values:
        return {field: domain.encode(values[field]) for field, domain in self.domains.items()}

    def describe(self) -> dict[str, dict[str, Value]]:
        return {field: domain.describe() for field, domain in self.domains.items()}


def key_of(values: Mapping[str, Value]) -> str:
    """The same text for equal values."""
    return json.dumps(values, sort_keys=True)


def read_space(words: Sequence[str], recipe: str, overrides: Mapping[str, Value]) -> Space:
    """The space of `field=domain` words, or of a YAML file of fields: lists, {low, high, log} or such text.

    InputError for a field that the recipe does not have or a sweep can't vary, and for a domain that is none.
    """
    given = _from_file(words[0]) if len(words) == 1 and "=" not in words[0] else _from_words(words)
    if not given:
        raise InputError(
            "--space: is empty; name a field and its values, such as select.alpha=0.1:0.9 or ipc=1,10"
        )
    domains = {}
    for field, domain in given.items():
        check_field(field)
        if field.split(".")[0] in FIXED:
            raise InputError(
                f"--space {field}: can't be swept, trials would not compare; "
                "give it as an override for all of them"
            )
        domains[field] = _read_domain(field, domain, partial(accepts, recipe, overrides, field))
    return Space(domains)


def _from_words(words: Sequence[str]) -> Values:
    given: Values = {}
    for word in words:
        field, equals, text = word.partition("=")
        if not equals:
            raise InputError(f"--space {word!r}: is no domain; write field=a,b,c or field=low:high")
        if field in given:
            raise InputError(f"--space {field}: stands twice; give its values once")
        given[field] = text
    return given


def _from_file(place: str) -> Values:
    path = Path(place)
    if path.suffix not in {".yaml", ".yml"} or not path.is_file():
        raise InputError(f"--space {place!r}: is neither field=values nor a YAML file that exists")

    def refuse(why: str) -> InputError:
        return InputError(f"--space {place}: {why}")

    given = read_yaml(read_text(path, refuse), refuse) or {}
    if not isinstance(given, dict):
        raise InputError(
            f"--space {place}: holds a {type(given).__name__}; give a mapping of fields to values"
        )
    return {str(field): domain for field, domain in given.items()}


def _read_domain(field: str, given: Value, is_taken: Callable[[Value], bool]) -> Choice | Range:
    """A domain out of its text, list or {low, high, log}."""
    if isinstance(given, str) and (match := RANGE.fullmatch(given.strip())):
        low, high = (int(end) if re.fullmatch(r"[+-]?\d+", end) else float(end) for end in match.groups()[:2])
        given = {"low": low, "high": high, "log": bool(match[3])}
    if isinstance(given, Mapping):
        return _read_range(field, given, is_taken)
    values = given if isinstance(given, list) else [given]
    if isinstance(given, str):

        def refuse(why: str) -> InputError:
            return InputError(f"--space {field}: {given!r} {why}; write a,b,c")

        values = read_yaml(f"[{given}]", refuse)
    if not values:
        raise InputError(f"--space {field}: has no values; write {field}=a,b,c")
    try:
        different = {key_of({field: value}) for value in values}
    except TypeError as error:  # dates, or keys of several kinds
        raise InputError(f"--space {field}: no field takes {given!r}; write a,b,c") from error
    if len(different) < len(values):
        raise InputError(f"--space {field}: a value stands twice in {given!r}; give each once")
    return Choice(tuple(values))


def _read_range(field: str, given: Mapping, is_taken: Callable[[Value], bool]) -> Range:
    """Whole numbers where the ends are and the recipe takes nothing between them."""
    if not {"low", "high"} <= set(given) <= {"low", "high", "log"}:
        raise InputError(f"--space {field}: {given!r} is no range; give low, high and, where wanted, log")
    ends = given["low"], given["high"]
    if not all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends):
        raise InputError(f"--space {field}: low and high are numbers, not {ends[0]!r} and {ends[1]!r}")
    low, high, log = float(ends[0]), float(ends[1]), bool(given.get("log"))
    if not math.isfinite(low) or not math.isfinite(high) or low >= high:
        raise InputError(
            f"--space {field}: {low:g}:{high:g} is no range; the first number is the smaller one"
        )
    if log and low <= 0:
        raise InputError(f"--space {field}: a logarithmic range begins above 0, not at {low:g}")
    is_whole = all(isinstance(end, int) for end in ends) and not is_taken(low + 0.5)
    for end in (low, high):
        if not is_taken(int(end) if is_whole else end):
            raise InputError(f"--space {field}: takes no {end:g}; give values that the recipe takes")
    return Range(low, high, log, is_whole)
