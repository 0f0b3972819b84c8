"""Whether all that a run is made of was made in one environment: by one model of device and one torch."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

from ims3_ray.cluster.environment import environment_name, machine_environment
from ims3_ray.cluster.resources import Machine
from ims3_ray.errors import InputError

from .steps import Step

EFFECT = "single grey levels may differ from those of one environment"


def check_environments(machine: Machine, steps: Sequence[Step]) -> list[str]:
    """Lines that say which stages mix environments, and which nodes differ; none if all are the same.

    Artefacts of earlier versions, which recorded no environment, are not compared. Raises InputError in place
    of the lines if workers.strict is set.
    """
    lines = [line for line in (_mixed_stages(machine, steps), _mixed_nodes(machine, steps)) if line]
    if lines and machine.workers.strict:
        raise InputError(
            f"workers.strict: refuses a mixture of environments: {'; '.join(lines)}; run where the others "
            "were made, choose another storage=…, or set workers.strict=false"
        )
    return [f"warning: {line}; {EFFECT} (workers.strict=true refuses this)" for line in lines]


def _mixed_stages(machine: Machine, steps: Iterable[Step]) -> str:
    made: dict[str, list[str]] = {}
    here: list[str] = []
    for step in steps:
        if step.manifest is None:
            here.append(step.stage.name)
        elif found := cast(Mapping[str, object], step.manifest).get("environment"):
            made.setdefault(environment_name(cast(Mapping[str, object], found)), []).append(step.stage.name)
    if here:
        made.setdefault(machine_environment(machine).name, []).extend(here)
    if len(made) < 2:
        return ""
    return "; ".join(f"{', '.join(dict.fromkeys(stages))} on {name}" for name, stages in made.items())


def _mixed_nodes(machine: Machine, steps: Iterable[Step]) -> str:
    nodes = Counter(environment.name for environment in machine.environments)
    if len(nodes) < 2 or all(step.manifest for step in steps):
        return ""
    return f"nodes differ: {', '.join(f'{number} of {name}' for name, number in nodes.items())}"
