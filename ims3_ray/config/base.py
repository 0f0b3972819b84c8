"""What every section is made of: the kinds of numbers, values for each kind of device, frozen models."""

from typing import Annotated, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

DeviceKind = Literal["cpu", "cuda"]
Precision = Literal["fp32", "bf16"]
Count = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Share = Annotated[float, Field(ge=0, le=1)]
Value = TypeVar("Value")


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class Settings(BaseSettings):
    """All that a command is told; environment variables fill in what it leaves open."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", validate_default=True, env_prefix="IMS3_", env_nested_delimiter="__"
    )


class PerDevice(Section, Generic[Value]):
    """A value for each kind of device: bits depend on it, so it is a recipe value and not one of Workers."""

    cpu: Value = Field(description="on the CPU")
    cuda: Value = Field(description="on a GPU")

    def on(self, device: DeviceKind) -> Value:
        return self.cpu if device == "cpu" else self.cuda


class BatchSize(PerDevice[Count]):
    """Rows a forward pass."""


class Arithmetic(PerDevice[Precision]):
    """Of matrices; values that train are fp32 everywhere."""

    cpu: Precision = Field("fp32", description="on the CPU")
    cuda: Precision = Field("bf16", description="on a GPU")


class Compile(PerDevice[bool]):
    """torch.compile of the transformer's blocks."""

    cpu: bool = Field(False, description="on the CPU")
    cuda: bool = Field(True, description="on a GPU")


class Licence(Section):
    """As the distilled set's card states it: the hub's identifier, or `other` with a name and a link."""

    id: str = Field(
        pattern=r"^[a-z0-9][a-z0-9.+-]*$",
        description="identifier of the Hugging Face hub, such as mit; licence=mit is short for it",
    )
    name: str | None = Field(None, description="what it is called, where id=other")
    link: str | None = Field(None, description="where its text is, where id=other")

    @model_validator(mode="before")
    @classmethod
    def _from_identifier(cls, value: object) -> object:
        return {"id": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _other_alone_has_a_name(self) -> "Licence":
        if (self.id == "other") != bool(self.name) or (self.link and not self.name):
            raise ValueError("id=other needs a name, and takes a link; the hub's own identifiers stand alone")
        return self
