"""Base classes of the configuration: constrained numbers, frozen sections, values per device kind."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from ims3_ray.display import UNPRINTABLE

DeviceKind = Literal["cpu", "cuda"]
Precision = Literal["fp32", "bf16"]
Count = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Share = Annotated[float, Field(ge=0, le=1)]
Value = TypeVar("Value")
MAX_NAME_BYTES = 200  # a folder's name also holds a key


def _check_name(name: str) -> str:
    is_short = 0 < len(name.encode(errors="replace")) <= MAX_NAME_BYTES
    if not is_short or name.startswith(".") or re.search(rf"[/\\{UNPRINTABLE}]", name):
        raise ValueError("should be able to begin a folder's name; rename the file, or give recipe=NAME")
    return name


Name = Annotated[str, AfterValidator(_check_name)]


def check_unique(names: tuple[str, ...]) -> tuple[str, ...]:
    """Returns `names`. Raises ValueError if a name occurs twice."""
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name!r} occurs twice")
    return names


def flatten(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """`{"sample": {"steps": 50}}` as `{"sample.steps": 50}`."""
    flat: dict[str, object] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:  # an empty one is a value
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def as_field(model: type[BaseModel], field: str, value: object) -> object:
    """Returns `value` as a dotted field holds it, such as 1.0 for 1. Raises ValueError for another type.

    Limits and conflicts with other fields are not checked.
    """
    *sections, name = field.split(".")
    annotation: Any = _section(sections, model).model_fields[name].annotation
    kind = TypeAdapter[Any](annotation)
    return kind.dump_python(kind.validate_python(value), mode="json")


def fields_beside(location: Sequence[str | int], model: type[BaseModel]) -> list[str]:
    """Returns the fields of the section that the last part of `location` is in; [] if there is none."""
    try:
        return list(_section(location[:-1], model).model_fields)
    except LookupError:
        return []


def _section(location: Sequence[str | int], model: type[BaseModel]) -> type[BaseModel]:
    for part in location:
        annotation = model.model_fields[str(part)].annotation
        kinds = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]
        model = [kind for kind in kinds if issubclass(kind, BaseModel)][0]  # noqa: RUF015 a LookupError
    return model


def split_file(location: str) -> tuple[str, str]:
    """Returns the location of a file's folder, with the query of a URI, and the file's name."""
    place, mark, query = location.partition("?") if "://" in location else (location, "", "")
    head, slash, name = place.rpartition("/")
    return f"{head or slash or '.'}{mark}{query}", name


def canonical_location(location: str | None) -> str | None:
    """Returns the resolved path of an existing local file or folder; other locations unchanged."""
    if location is None or "://" in location or not Path(location).expanduser().exists():
        return location
    return str(Path(location).expanduser().resolve())


STRICT = ConfigDict(
    frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True, allow_inf_nan=False
)


class Section(BaseModel):
    """A frozen group of fields. Unknown fields are refused."""

    model_config = STRICT

    @model_validator(mode="before")
    @classmethod
    def _complete_devices(cls, data: object) -> object:
        """If only one device kind has a value, the other keeps its default."""
        if not isinstance(data, dict):
            return data
        defaults = {name: field.default for name, field in cls.model_fields.items() if name in data}
        return {
            **data,
            **{
                name: default.model_dump() | data[name]
                for name, default in defaults.items()
                if isinstance(default, PerDevice) and isinstance(data[name], dict)
            },
        }


class Settings(BaseSettings):
    """All fields of one command. Environment variables set what nothing else sets."""

    model_config = SettingsConfigDict(**STRICT, env_prefix="IMS3_", env_nested_delimiter="__")


class PerDevice(Section, Generic[Value]):
    """One value per device kind. Results depend on it bit by bit, so it belongs to the recipe."""

    cpu: Value
    """On the CPU."""
    cuda: Value
    """On a GPU."""

    def on(self, device: DeviceKind) -> Value:
        return self.cpu if device == "cpu" else self.cuda


class BatchSize(PerDevice[Count]):
    """Rows per forward pass."""


class Arithmetic(PerDevice[Precision]):
    """Precision of matrix products. Trained parameters are always fp32."""

    cpu: Precision = "fp32"
    """On the CPU."""
    cuda: Precision = "bf16"
    """On a GPU."""
