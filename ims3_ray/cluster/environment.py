"""What a run ran on: versions and hardware, for its record, MLflow and the report."""

import importlib.metadata
import platform

from .machine import Machine

VERSIONED = ("ims3-ray", "ray", "torch", "torchvision", "diffusers", "pyarrow", "faiss-cpu", "mlflow", "timm")


def versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in VERSIONED
    }


def hardware(machine: Machine) -> dict[str, str | int | float]:
    return {
        "device": machine.device,
        "cpus": machine.cpus,
        "gpus": machine.gpus,
        "memory_gb": round(machine.memory / 1e9, 1),
        "processor": platform.processor() or platform.machine(),
    }
