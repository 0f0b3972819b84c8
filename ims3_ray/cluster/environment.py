"""Versions and hardware of a run, for manifests, the run's record, MLflow and the report."""

import importlib.metadata
import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .resources import Machine

PACKAGE = "ims3-ray"
VERSIONED = (PACKAGE, "ray", "torch", "torchvision", "diffusers", "pyarrow", "faiss-cpu", "mlflow", "timm")


@dataclass(frozen=True)
class Environment:
    """The properties, besides the recipe, that results depend on bit by bit: device model and torch build.

    The package's version is only recorded: a change that affects results raises a stage's version.
    """

    gpu: str | None  # None on CPUs
    cpu: str
    torch: str
    package: str

    @property
    def name(self) -> str:
        """Equal for two environments that give the same bits; the CPU counts only without a GPU."""
        return environment_name(asdict(self))


def environment_name(environment: Mapping[str, object]) -> str:
    """`Environment.name` of an environment read from a manifest."""
    return f"{environment.get('gpu') or environment.get('cpu')}, torch {environment.get('torch')}"


def stages_by_environment(manifests: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the stages of complete artefacts by the name of their environment, if they recorded one."""
    stages: dict[str, list[str]] = {}
    for manifest in manifests:
        if recorded := manifest.get("environment"):
            stages.setdefault(environment_name(recorded), []).append(manifest["stage"])
    return stages


def find_environment(on_gpu: bool) -> Environment:
    """Return the environment of this process. With `on_gpu` it starts CUDA."""
    version = importlib.metadata.version
    return Environment(
        _joined(gpu_models()) if on_gpu else None, cpu_model(), version("torch"), version(PACKAGE)
    )


def machine_environment(machine: "Machine") -> Environment:
    """Return the environment of a machine's results; the names of different nodes are joined."""
    environments = machine.environments or (find_environment(machine.on_gpus),)
    gpus = [environment.gpu for environment in environments if environment.gpu]
    return Environment(
        _joined(gpus) if gpus else None,
        *(_joined(getattr(each, field) for each in environments) for field in ("cpu", "torch", "package")),
    )


def _joined(names: Iterable[str]) -> str:
    return " + ".join(sorted(set(names)))


def gpu_models() -> list[str]:
    import torch  # takes seconds

    count = torch.cuda.device_count()
    return [torch.cuda.get_device_name(index) for index in range(count)] or ["unknown GPU"]


def cpu_model() -> str:
    """Return the CPU's model name; on ARM, which has none, the architecture and the part number."""
    path, machine = Path("/proc/cpuinfo"), platform.machine()
    text = path.read_text() if path.is_file() else ""
    if model := re.search(r"^model name\s*: *(.*?) *$", text, re.MULTILINE):
        return model[1]
    part = re.search(r"^CPU part\s*: *(.*?) *$", text, re.MULTILINE)
    return f"{machine} {part[1]}" if part else platform.processor() or machine


def versions() -> dict[str, str]:
    packages = {name: importlib.metadata.version(name) for name in VERSIONED}
    return {"python": platform.python_version()} | packages


def hardware(machine: "Machine") -> dict[str, str | int | float]:
    environment = machine_environment(machine)
    return {
        "device": machine.device,
        "cpus": machine.cpus,
        "gpus": machine.gpus,
        "memory_gb": round(machine.memory / 1e9, 1),
        "cpu_model": environment.cpu,
    } | ({"gpu_model": environment.gpu} if environment.gpu else {})
