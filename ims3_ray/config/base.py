"""What every section is made of: the kinds of numbers, values for each kind of device, frozen models."""

from pathlib import Path
from typing import Annotated, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

DeviceKind = Literal["cpu", "cuda"]
Precision = Literal["fp32", "bf16"]
Count = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Share = Annotated[float, Field(ge=0, le=1)]
Value = TypeVar("Value")


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


class Settings(BaseSettings):
    """All that a command is told; environment variables fill in what it leaves open."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        use_attribute_docstrings=True,
        env_prefix="IMS3_",
        env_nested_delimiter="__",
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
