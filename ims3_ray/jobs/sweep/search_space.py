"""The search space of a sweep: recipe fields and the values that each may take.

select.alpha=0.1:0.9            any number in the range; integers only if the field takes nothing else
finetune.lr=1e-4:1e-2:log       the same, uniform on a logarithmic scale
ipc=1,10,50                     these values, read as YAML
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ims3_ray.config.base import as_field
from ims3_ray.config.load import check_field, load_config, read_yaml
from ims3_ray.config.settings import Config
from ims3_ray.errors import InputError

NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
RANGE = re.compile(rf"({NUMBER}):({NUMBER})(:log)?")
# sections whose values would make trials incomparable, or change no result
FIXED = ("data", "evaluate", "workers", "storage", "recipe")
DIGITS = 4  # significant digits of a drawn number, since people read the best trial's recipe

Value = Any  # of a recipe's field, as YAML gives it
Values = dict[str, Value]  # of a trial, by field


@dataclass(frozen=True)
class Choice:
    """A field's values in the user's order. Tune receives indices, since a value may be a mapping."""

    values: tuple[Value, ...]

    def encode(self, value: Value) -> int:
        return self.values.index(value)

    def decode(self, index: int) -> Value:
        return self.values[index]

    def first(self) -> Value:
        return self.values[0]

    def largest(self) -> Value:
        return max((v for v in self.values if isinstance(v, int)), default=None)

    def describe(self) -> dict[str, Value]:
        return {"values": list(self.values)}


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included."""

    low: float
    high: float
    log: bool = False
    integer: bool = False

    def encode(self, value: float) -> float:
        return value

    def decode(self, number: float) -> float:
        if self.integer:
            return int(number)
        return min(max(float(f"{number:.{DIGITS}g}"), self.low), self.high)

    def first(self) -> float:
        return self.decode(self.low)

    def largest(self) -> float:
        return int(self.high) if self.integer else self.high

    def describe(self) -> dict[str, Value]:
        return {"low": self.low, "high": self.high, "log": self.log, "integer": self.integer}


@dataclass(frozen=True)
class Space:
    """Recipe fields and their domains, in the user's order."""

    domains: Mapping[str, Choice | Range]

    def tune(self, *, is_grid: bool) -> dict[str, Any]:
        """Tune's param_space. Raises InputError for a range in a grid."""
        from ray import tune  # a second to import

        space = {}
        for field, domain in self.domains.items():
            if isinstance(domain, Choice):
                space[field] = (tune.grid_search if is_grid else tune.choice)(list(range(len(domain.values))))
            elif is_grid:
                low, high = f"{domain.low:g}", f"{domain.high:g}"
                raise InputError(
                    f"--space {field}: {low}:{high} is a range, and a grid needs values; "
                    f"write {field}={low},{high} or use --search random"
                )
            elif domain.integer:
                draw = tune.lograndint if domain.log else tune.randint
                space[field] = draw(int(domain.low), int(domain.high) + 1)
            else:
                space[field] = (tune.loguniform if domain.log else tune.uniform)(domain.low, domain.high)
        return space

    def points(self, num_samples: int, seed: int, *, is_grid: bool) -> list[Values]:
        """Different trials that Tune's BasicVariantGenerator draws with the same seed, in its order."""
        from ray.tune.search.variant_generator import generate_variants

        rng, spec = np.random.default_rng(seed), {"config": self.tune(is_grid=is_grid)}
        points: dict[str, Values] = {}
        for _ in range(1 if is_grid else num_samples):
            for _, variant in generate_variants(spec, random_state=rng):  # pyright: ignore[reportArgumentType]
                values = self.decode(variant["config"])
                points.setdefault(json_key(values), values)
        return list(points.values())

    def first(self) -> Values:
        """One combination."""
        return {field: domain.first() for field, domain in self.domains.items()}

    def decode(self, config: Mapping[str, Value]) -> Values:
        """A trial's values from Tune's config."""
        return {field: domain.decode(config[field]) for field, domain in self.domains.items()}

    def encode(self, values: Mapping[str, Value]) -> Values:
        return {field: domain.encode(values[field]) for field, domain in self.domains.items()}

    def describe(self) -> dict[str, dict[str, Value]]:
        return {field: domain.describe() for field, domain in self.domains.items()}


def json_key(values: Mapping[str, Value]) -> str:
    """The same text for equal values."""
    return json.dumps(values, sort_keys=True)


def read_space(words: Sequence[str], recipe: str, overrides: Mapping[str, Value]) -> Space:
    """The space of `field=domain` words.

    Raises InputError for an unknown or fixed field, and for an invalid domain.
    """
    if not words:
        raise InputError("--space: is empty; name a field and its values, such as select.alpha=0.1:0.9")
    domains: dict[str, Choice | Range] = {}
    for word in words:
        field, equals, domain = word.partition("=")
        if not equals:
            raise InputError(f"--space {word!r}: is no domain; write field=a,b,c or field=low:high")
        if field in domains:
            raise InputError(f"--space {field}: stands twice; give its values once")
        check_field(field)
        if field.split(".")[0] in FIXED and field != "data.mirror":
            raise InputError(
                f"--space {field}: can't be swept, trials would not compare; "
                "give it as an override for all of them"
            )
        domains[field] = _read_domain(field, domain, partial(_accepts, recipe, overrides, field))
    return Space(domains)


def _accepts(recipe: str, overrides: Mapping[str, Value], field: str, value: Value) -> bool:
    """Whether `value` is valid for `field`, apart from conflicts with other fields."""
    try:
        load_config(recipe, {**overrides, field: value})
    except InputError as error:
        return not any(part.strip().startswith(f"{field}:") for part in str(error).split("; "))
    return True


def _read_domain(field: str, domain: str, is_accepted: Callable[[Value], bool]) -> Choice | Range:
    def refuse(why: str) -> InputError:
        return InputError(f"--space {field}: {domain!r} {why}; write {field}=a,b,c")

    if match := RANGE.fullmatch(domain.strip()):
        first, last, log = match.groups()
        return _read_range(field, first, last, log, is_accepted)
    values = read_yaml(f"[{domain}]", refuse)
    if not values:
        raise refuse("has no values")
    kept: list[Value] = []  # as the field holds them, such as 5 for 5.0
    for value in values:
        try:
            kept.append(as_field(Config, field, value))
            is_valid = isinstance(kept[-1], bool) or not isinstance(value, bool)  # true is no 1
        except ValueError:
            is_valid = False
        if not is_valid:
            raise InputError(f"--space {field}: takes no {value!r}; give values that the recipe takes")
    if len({json_key({field: value}) for value in kept}) < len(kept):
        raise refuse("has a value twice")
    return Choice(tuple(of if type(of) is int else value for of, value in zip(kept, values, strict=True)))


def _read_range(
    field: str, first: str, last: str, log: str | None, is_accepted: Callable[[Value], bool]
) -> Range:
    """A range of integers if both ends are and the recipe takes no number between them."""
    low, high = float(first), float(last)
    if not math.isfinite(low) or not math.isfinite(high) or low >= high:
        raise InputError(
            f"--space {field}: {low:g}:{high:g} is no range; the first number is the smaller one"
        )
    if log and low <= 0:
        raise InputError(f"--space {field}: a logarithmic range begins above 0, not at {low:g}")
    are_integers = all(re.fullmatch(r"[+-]?\d+", end) for end in (first, last))
    is_integer = are_integers and not is_accepted(low + 0.5)
    for end in (low, high):
        if not is_accepted(int(end) if is_integer else end):
            raise InputError(f"--space {field}: takes no {end:g}; give values that the recipe takes")
    return Range(low, high, bool(log), is_integer)
