"""`bench sweep`: a sweep of the recipe in an empty storage, beside the trainings of its classifiers alone."""

import argparse
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from ims3_ray.config.load import parse_overrides
from ims3_ray.errors import InputError

SPACE = ("select.alpha=0.1:0.9", "select.beta=0.1:0.9", "sample.subgroups=2,5,10", "ipc=1,5,10")


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    parser.add_argument("--trials", type=int, default=50, metavar="N", help="of the sweep (default 50)")
    parser.add_argument(
        "--alone",
        type=int,
        default=8,
        metavar="N",
        help="trials whose classifiers are also trained alone (8)",
    )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Print what the sweep took, what its classifiers take, and the ratio; gives the figures."""
    for name in ("trials", "alone"):
        if getattr(arguments, name) < 1:
            raise InputError(f"--{name}: {getattr(arguments, name)} is too few; give 1 or more")
    from ims3_ray.cluster.environment import versions
    from ims3_ray.jobs.sweep.plan import Sweep
    from ims3_ray.jobs.sweep.space import read_space

    from . import sweeps  # heavy

    with tempfile.TemporaryDirectory() as temporary:
        overrides = {"storage": arguments.work or temporary, **parse_overrides(arguments.overrides)}
        recipe = arguments.recipe or "digits"
        plan = Sweep(recipe, overrides, read_space(SPACE, recipe, overrides), "random", arguments.trials)
        cost = sweeps.measure(plan, arguments.alone, print)
    at_once = cost.alone / cost.trials_at_once
    print(f"\n{cost.trials} trials, {cost.trials_at_once} at once, over {', '.join(SPACE)}")
    print(
        f"sweep               {cost.whole:8.1f} s, of which {cost.pools:.1f} s candidates and what leads to them"
    )
    print(
        f"classifiers alone   {cost.alone:8.1f} s one after another, from {cost.measured} trials; {at_once:.1f} s at once"
    )
    print(f"ratio               {cost.ratio:8.2f} (without the candidates, to the classifiers at once)")
    print(f"saved               {cost.saved:8.1f} s of sampling and what leads to it, shared by the trials")
    return {
        "what": arguments.what,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "space": list(SPACE),
        **asdict(cost),
        "ratio": cost.ratio,
    }
