"""Training on Ray Train: workers, checkpoints, what happens when one is lost; the steps are trainer.py's."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import ray.exceptions
import ray.train
import ray.train.torch
import torch
from ray.actor import ActorHandle
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer

from ims3_ray.errors import InputError, error_chain
from ims3_ray.models.device import explain_out_of_memory, prepare_device
from ims3_ray.models.training import Metrics, Task, Trainer, TrainingConfig
from ims3_ray.progress import bar
from ims3_ray.storage.artifacts import Directory

from .metrics_actor import Message, receive_metrics, start_metrics_actor
from .ray_patches import MAX_START_FAILURES, patched_train
from .resources import Machine

STATE = "state.pt"
MAX_FAILURES = 8  # workers or nodes lost in one training; after more, the same command goes on
POST_EVERY = 10  # steps


class EndOnBadInput(UserCallback):
    """Ends a training, from its controller, with the InputError that a worker raised.

    All else that workers raise is tried again, MAX_FAILURES times.
    """

    def after_exception(
        self,
        run_context: object,  # noqa: ARG002
        worker_exceptions: Mapping[int, BaseException],
    ) -> None:
        for error in worker_exceptions.values():
            raise_bad_input(error)


@dataclass(frozen=True, kw_only=True)
class Training:
    """What is trained, and where its values and its state go."""

    name: str  # of this configuration alone: a run of that name under `checkpoints` is resumed
    build: Callable[..., Task]
    arguments: Mapping[str, object]  # of `build`, beside its device
    optimisation: TrainingConfig
    out: Directory
    checkpoints: Directory
    batch_field: str  # the recipe's field to lower where a batch does not fit the device's memory


def train(
    training: Training,
    machine: Machine,
    stage: str,
    on_metrics: Callable[[int, Metrics], None] = lambda _step, _metrics: None,
) -> list[Metrics]:
    """Train, and have it saved; gives the metrics of every log step, which `on_metrics` hears meanwhile.

    InputError where a worker raises one, and where it diverges: values that are not finite are never saved.
    """
    board, heard = start_metrics_actor(), set[float]()
    shown = bar(stage, training.optimisation.steps, "steps")

    def receive(message: Message) -> None:
        shown.update(message["step"] - shown.n)
        if metrics := message["metrics"]:
            loss = next(name for name in metrics if "/" not in name)  # of several, what a line has room for
            shown.set_postfix({loss: f"{metrics[loss]:.3g}"}, refresh=False)
            on_metrics(message["step"], metrics)
            heard.add(message["step"])

    def fit() -> list[Metrics]:  # each time anew, from the last checkpoint
        with as_bad_input(training):
            return cast(list[Metrics], _ray_trainer(training, machine, board).fit().return_value)

    with shown, receive_metrics(board, receive), patched_train(machine):
        history = training.checkpoints.with_retries(fit)  # Ray gives up at the first error
    for entry in history:  # what a killed driver, or a killed board, never passed on
        if entry["step"] not in heard:
            on_metrics(int(entry["step"]), {name: value for name, value in entry.items() if name != "step"})
    return history


@contextlib.contextmanager
def as_bad_input(training: Training) -> Iterator[None]:
    """InputError as a worker raised it; and, with the field to lower, where a node's memory is used up."""
    try:
        yield
    except Exception as error:
        raise_bad_input(error)
        if not any(isinstance(inner, ray.exceptions.OutOfMemoryError) for inner in error_chain(error)):
            raise
        size = training.optimisation.batch_size
        raise InputError(
            f"{training.batch_field}: a batch of {size} does not fit the memory of a node; lower it, or "
            "workers.train_workers"
        ) from error


def raise_bad_input(error: BaseException) -> None:
    """Raise the InputError behind `error`, if there is one."""
    for inner in error_chain(error):
        if isinstance(inner, InputError):
            raise inner


def _ray_trainer(training: Training, machine: Machine, board: ActorHandle) -> TorchTrainer:
    on_gpus, options = machine.on_gpus, machine.actor_resources
    resources = {"CPU": options["num_cpus"]} | ({"GPU": options["num_gpus"]} if on_gpus else {})
    failures = FailureConfig(max_failures=MAX_FAILURES, controller_failure_limit=MAX_START_FAILURES)
    return TorchTrainer(
        _loop,
        train_loop_config={"training": training, "kind": machine.device, "board": board},
        torch_config=TorchConfig(backend="nccl" if machine.device == "cuda" else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=machine.elastic_train_workers(training.optimisation.micro_batches),
            use_gpu=on_gpus,
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            name=training.name,
            storage_path=training.checkpoints.path,
            storage_filesystem=training.checkpoints.filesystem,
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            failure_config=failures,
            callbacks=[EndOnBadInput()],
        ),
    )


def _loop(config: dict[str, Any]) -> list[Metrics]:
    """What every Train worker runs. InputError, on all workers alike, where it diverges."""
    training: Training = config["training"]
    context, kind = ray.train.get_context(), config["kind"]
    device = ray.train.torch.get_device() if kind == "cuda" else torch.device("cpu")
    prepare_device(kind)
    optimisation, task = training.optimisation, training.build(device=device, **training.arguments)
    trainer = Trainer(task, optimisation, context.get_world_rank(), context.get_world_size(), device)
    if checkpoint := ray.train.get_checkpoint():
        with (
            checkpoint.as_directory() as folder
        ):  # AdamW reads its counts of steps in every step: on the host
            trainer.load_state_dict(torch.load(f"{folder}/{STATE}", map_location="cpu", weights_only=True))
    while trainer.step < optimisation.steps:
        with explain_out_of_memory(training.batch_field, optimisation.batch_size):
            metrics = trainer.advance()
        if not trainer.is_finite(metrics):
            raise _diverged(training, trainer.step)
        if trainer.rank == 0 and (metrics or trainer.step % POST_EVERY == 0):
            config["board"].post.remote(Message(step=trainer.step, metrics=metrics))
        if trainer.step % optimisation.checkpoint_every == 0 or trainer.step == optimisation.steps:
            _report(trainer)
    if trainer.rank == 0:
        task.save(trainer.values(), trainer.averages(), training.out)
    task.close()
    return trainer.history


def _diverged(training: Training, step: int) -> InputError:
    section, lr = training.batch_field.partition(".")[0], training.optimisation.lr
    return InputError(f"{section}.lr: {lr:g} led to values that are not finite by step {step}; lower it")


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
