"""Training on Ray Train: workers, checkpoints, what happens when one is lost; the steps are those of
optimisation.py.
"""

import contextlib
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any

import ray.train
import torch
from ray.train import Checkpoint, CheckpointConfig, ControllerError, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

# of the driver, to the controller; has no public name
from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE

# what ControllerError holds has none either
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

from ims3_ray import progress
from ims3_ray.errors import InputError
from ims3_ray.models.device import prepare_device
from ims3_ray.models.memory import batch_must_fit
from ims3_ray.storage.artifacts import Directory

from .machine import Machine
from .trainer import Optimisation, Task, Trainer

STATE = "state.pt"
# workers or nodes lost in one training; beyond, the same command goes on from the last checkpoint
MAX_FAILURES = 8
MAX_START_FAILURES = 3  # Ray's default waits for ever for resources that never come
ADDRESS = "RAY_ADDRESS"
START_TIMEOUT, START_TIMEOUT_S = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", 60.0  # Ray's own


def train(
    build: Callable[..., Task],
    arguments: dict[str, Any],
    optimisation: Optimisation,
    *,
    out: Directory,
    checkpoints: Directory,
    name: str,
    stage: str,
    batch_field: str,
    machine: Machine,
    on_metrics: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
) -> list[dict[str, float]]:
    """Train `build(device=…, **arguments)` and have it saved to `out`; gives the logged metrics, one dict a
    log step.

    `name` must belong to this configuration alone: a run of that name under `checkpoints` is resumed.
    `batch_field` names the recipe's batch size, for the InputError where a batch does not fit the device's
    memory.
    """
    board, told = progress.board_here(), set()
    shown = progress.bar(stage, optimisation.steps, "steps")

    def receive(message: dict[str, Any]) -> None:
        shown.update(message["step"] - shown.n)
        if metrics := message["metrics"]:
            shown.set_postfix({k: f"{v:.3g}" for k, v in metrics.items() if "/" not in k}, refresh=False)
            on_metrics(message["step"], metrics)
            told.add(message["step"])

    given = {"build": build, "arguments": arguments, "optimisation": optimisation, "out": out, "batch_field": batch_field,
             "device": machine.device, "board": board}  # fmt: skip

    def fit() -> list[dict[str, float]]:  # each time anew, from the last checkpoint
        return _trainer(given, optimisation.micro_batches, checkpoints, name, machine).fit().return_value

    with (
        shown,
        progress.watching(board, receive),
        _interruptible(),
        _time_to_grow(machine),
        _in_this_cluster(),
    ):
        history = checkpoints.patiently(fit)  # Ray itself writes checkpoints there, and gives up at once
    for entry in history:  # what a killed driver, or a killed board, never passed on
        if entry["step"] not in told:
            on_metrics(entry["step"], {name: value for name, value in entry.items() if name != "step"})
    return history


def _trainer(
    given: dict[str, Any], micro_batches: int, checkpoints: Directory, name: str, machine: Machine
) -> TorchTrainer:
    on_gpus, options = machine.device == "cuda", machine.actor_resources
    resources = {"CPU": options["num_cpus"]} | ({"GPU": options["num_gpus"]} if "num_gpus" in options else {})
    return TorchTrainer(
        _loop,
        train_loop_config=given,
        torch_config=TorchConfig(backend="nccl" if on_gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=machine.elastic_train_workers(micro_batches),
            use_gpu=on_gpus,
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=checkpoints.path,
            storage_filesystem=checkpoints.filesystem,
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            failure_config=FailureConfig(
                max_failures=MAX_FAILURES, controller_failure_limit=MAX_START_FAILURES
            ),
        ),
    )


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, in the block and after it: Ray Train's own handler stays, and ends a
    process as done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if error.code == signal.SIGTERM:  # somebody ended the process
            raise
        raise KeyboardInterrupt from error
    finally:
        signal.signal(signal.SIGINT, handler)


@contextlib.contextmanager
def _time_to_grow(machine: Machine) -> Iterator[None]:
    """A cluster that grows (`workers.gpus`) gets `workers.wait_s` to bring the workers' places, at first and
    after a loss.

    InputError where they do not come.
    """
    tries = 1 + MAX_START_FAILURES
    wait_s = machine.workers.wait_s / tries if machine.workers.gpus else START_TIMEOUT_S
    os.environ.setdefault(START_TIMEOUT, str(max(START_TIMEOUT_S, wait_s)))
    try:
        yield
    except ControllerError as error:
        if not isinstance(error.controller_failure, WorkerGroupStartupTimeoutError):
            raise
        number, waited = error.controller_failure.num_workers, tries * float(os.environ[START_TIMEOUT])
        raise InputError(
            f"workers.train_workers: the cluster had no room for {number} at once within {waited:g} s; ask for fewer, let "
            "fine-tuning begin with fewer by workers.min_train_workers, or add nodes; the same command goes on"
        ) from error


@contextlib.contextmanager
def _in_this_cluster() -> Iterator[None]:
    """Let Ray Train's cleaner, an actor that asks every second whether the controller lives, ask the cluster
    of this run.

    Without RAY_ADDRESS it asks whichever `ray start` made last on its machine: one that is gone keeps a
    training 12 s at its end, and to another that runs the controller is unknown, which counts as dead: its
    workers' places are taken away.
    """
    ENV_VARS_TO_PROPAGATE.add(ADDRESS)
    before = os.environ.get(ADDRESS)
    os.environ[ADDRESS] = ray.get_runtime_context().gcs_address
    try:
        yield
    finally:
        del os.environ[ADDRESS]
        if before is not None:
            os.environ[ADDRESS] = before


def _loop(config: dict[str, Any]) -> list[dict[str, float]]:
    """What every Train worker runs."""
    context = ray.train.get_context()
    optimisation: Optimisation = config["optimisation"]
    device = ray.train.torch.get_device() if config["device"] == "cuda" else torch.device("cpu")
    prepare_device(config["device"])
    task = config["build"](device=device, **config["arguments"])
    trainer = Trainer(task, optimisation, context.get_world_rank(), context.get_world_size(), device)
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as folder:
            trainer.load_state_dict(torch.load(f"{folder}/{STATE}", map_location=device, weights_only=True))
    while trainer.step < optimisation.steps:
        with batch_must_fit(config["batch_field"], optimisation.batch_size):
            metrics = trainer.advance()
        if trainer.rank == 0 and (metrics or trainer.step % 10 == 0):
            config["board"].post.remote({"step": trainer.step, "metrics": metrics})
        if trainer.step % optimisation.checkpoint_every == 0 or trainer.step == optimisation.steps:
            _report(trainer)
    if trainer.rank == 0:
        task.save(trainer.values(), trainer.averages(), config["out"])
    return trainer.history


def _report(trainer: Trainer) -> None:
    """Commit a checkpoint; every worker takes part."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = None
        if trainer.rank == 0:
            torch.save(trainer.state_dict(), f"{folder}/{STATE}")
            checkpoint = Checkpoint.from_directory(folder)
        ray.train.report(
            {"step": trainer.step}, checkpoint=checkpoint, checkpoint_dir_name=f"step_{trainer.step:07d}"
        )
