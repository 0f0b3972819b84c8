"""What every section is made of: the kinds of numbers, values for each kind of device, frozen models."""

import re
from pathlib import Path
from typing import Annotated, Generic, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from ims3_ray.display import UNPRINTABLE

DeviceKind = Literal["cpu", "cuda"]
Precision = Literal["fp32", "bf16"]
Count = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Share = Annotated[float, Field(ge=0, le=1)]
Value = TypeVar("Value")
MOST_NAME = 200  # bytes, and room for a key behind it


def _as_folder(name: str) -> str:
    is_short = 0 < len(name.encode(errors="replace")) <= MOST_NAME
    if not is_short or name.startswith(".") or re.search(rf"[/\\{UNPRINTABLE}]", name):
        raise ValueError("should be able to begin a folder's name; rename the file, or give recipe=NAME")
    return name


Name = Annotated[str, AfterValidator(_as_folder)]


def one_spelling(location: str | None) -> str | None:
    """The resolved path of what lies on this machine; a URI, a hub's name or None as it is."""
    if location is None or "://" in location or not Path(location).expanduser().exists():
        return location
    return str(Path(location).expanduser().resolve())


class Section(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )

    @model_validator(mode="before")
    @classmethod
    def _one_device_may_be_given(cls, given: object) -> object:
        """Of a value for each kind of device, the other kind's stays as it is by default."""
        if not isinstance(given, dict):
            return given
        defaults = {name: field.default for name, field in cls.model_fields.items() if name in given}
        whole = {
            name: default.model_dump() | given[name]
            for name, default in defaults.items()
            if isinstance(default, PerDevice) and isinstance(given[name], dict)
        }
        return {**given, **whole}


class Settings(BaseSettings):
    """All that a command is told; environment variables fill in what it leaves open."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        use_attribute_docstrings=True,
        env_prefix="IMS3_",
        env_nested_delimiter="__",
        allow_inf_nan=False,
    )


class PerDevice(Section, Generic[Value]):
    """A value for each kind of device: bits depend on it, so it is a recipe value and not one of Workers."""

    cpu: Value
    """On the CPU."""
    cuda: Value
    """On a GPU."""

    def on(self, device: DeviceKind) -> Value:
        return self.cpu if device == "cpu" else self.cuda


class BatchSize(PerDevice[Count]):
    """Rows a forward pass."""


class Arithmetic(PerDevice[Precision]):
    """Of matrices; values that train are fp32 everywhere."""

    cpu: Precision = "fp32"
    """On the CPU."""
    cuda: Precision = "bf16"
    """On a GPU."""


class Compile(PerDevice[bool]):
    """torch.compile of the transformer's blocks."""

    cpu: bool = False
    """On the CPU."""
    cuda: bool = True
    """On a GPU."""


class Graphs(PerDevice[bool]):
    """CUDA graphs of the transformer's passes."""

    cpu: bool = False
    """On the CPU, which has none."""
    cuda: bool = False
    """On a GPU."""
