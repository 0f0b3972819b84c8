"""Run a `models.training.Trainer` on Ray Train: workers, checkpoints, and recovery from lost nodes."""

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import ray.exceptions
import ray.train
import ray.train.torch
import torch
from ray.actor import ActorHandle
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer

from ims3_ray.config.base import DeviceKind
from ims3_ray.errors import InputError, error_chain
from ims3_ray.models.device import explain_out_of_memory, prepare_device, strictly_deterministic
from ims3_ray.models.training import Metrics, Task, Trainer, TrainerState, TrainingConfig
from ims3_ray.progress import bar
from ims3_ray.storage.artifacts import Directory, open_directory

from .metrics_actor import Message, receive_metrics, start_metrics_actor
from .ray_patches import MAX_START_FAILURES, patched_train
from .resources import Machine

STATE = "state.pt"
DIGEST = "state.sha256"
MAX_FAILURES = 8  # without a checkpoint between them; after more, the same command resumes
REPORT_EVERY = 10  # steps
COLLECTIVE_S = 3 * 3600  # the first sum waits for the node whose disk cache is filled last
MEASURED_STEPS = 3
STATE_COPIES = 12  # values, gradients by term and worker, moments, averages


class EndIfHopeless(UserCallback):
    """Ends a training if a worker raised InputError, or after MAX_FAILURES failures since a checkpoint.

    So a training on spot nodes may lose any number of them.
    """

    failures = 0

    def after_report(self, run_context: object, metrics: object, checkpoint: Checkpoint | None) -> None:  # noqa: ARG002
        self.failures = 0 if checkpoint else self.failures

    def after_exception(
        self,
        run_context: object,  # noqa: ARG002
        worker_exceptions: Mapping[int, BaseException],
    ) -> None:
        self.failures += 1
        for error in worker_exceptions.values():
            raise_bad_input(error)
            if self.failures > MAX_FAILURES:
                raise error


@dataclass(frozen=True, kw_only=True)
class Training:
    """A task to train, and the folders of its result and its state."""

    name: str  # unique per configuration: a run of this name under `checkpoints` is resumed
    build: Callable[..., Task]
    arguments: Mapping[str, object]  # of `build`, besides `device`
    optimisation: TrainingConfig
    out: Directory
    checkpoints: Directory
    batch_field: str  # the recipe's field to lower if a batch does not fit into memory


def train(
    training: Training,
    machine: Machine,
    stage: str,
    on_metrics: Callable[[int, Metrics], None] = lambda _step, _metrics: None,
) -> list[Metrics]:
    """Train and save. Returns the metrics of each log step; `on_metrics(step, metrics)` gets them meanwhile.

    Raises InputError if a worker raises one or if training diverges; non-finite values are not saved.
    """
    actor, reported = start_metrics_actor(), set[float]()
    steps = bar(stage, training.optimisation.steps, "steps")

    def on_message(message: Message) -> None:
        steps.update(message["step"] - steps.n)
        if metrics := message["metrics"]:
            loss = next(name for name in metrics if "/" not in name)  # a bar has room for one
            steps.set_postfix({loss: f"{metrics[loss]:.3g}"}, refresh=False)
            on_metrics(message["step"], metrics)
            reported.add(message["step"])

    def fit() -> list[Metrics]:  # each call starts from the last checkpoint
        with as_bad_input(training):
            return cast(list[Metrics], _ray_trainer(training, machine, actor).fit().return_value)

    with steps, receive_metrics(actor, on_message), patched_train(machine):
        history = training.checkpoints.with_retries(fit)  # of storage: Ray gives up at the first one
    for entry in history:  # steps of an earlier driver, or that a killed actor lost
        if entry["step"] not in reported:
            on_metrics(int(entry["step"]), {name: value for name, value in entry.items() if name != "step"})
    return history


@contextlib.contextmanager
def as_bad_input(training: Training) -> Iterator[None]:
    """Re-raise a worker's InputError; raise one that names `batch_field` if a node's memory is exhausted."""
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


def _ray_trainer(training: Training, machine: Machine, actor: ActorHandle) -> TorchTrainer:
    on_gpus, options = machine.on_gpus, machine.actor_resources
    resources = {"CPU": options["num_cpus"]} | ({"GPU": options["num_gpus"]} if on_gpus else {})
    failures = FailureConfig(max_failures=-1, controller_failure_limit=MAX_START_FAILURES)
    return TorchTrainer(
        _loop,
        train_loop_config={"training": training, "kind": machine.device, "metrics_actor": actor},
        torch_config=TorchConfig(
            backend="nccl" if machine.device == "cuda" else "gloo", timeout_s=COLLECTIVE_S
        ),
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
            callbacks=[EndIfHopeless()],
        ),
    )


def _loop(config: dict[str, Any]) -> list[Metrics]:
    """The function of each Train worker. Raises InputError, on all workers alike, if training diverges."""
    training: Training = config["training"]
    context, kind = ray.train.get_context(), config["kind"]
    device = ray.train.torch.get_device() if kind == "cuda" else torch.device("cpu")
    prepare_device(kind)
    optimisation, task = training.optimisation, training.build(device=device, **training.arguments)
    trainer = Trainer(task, optimisation, context.get_world_rank(), context.get_world_size(), device)
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as folder:
            trainer.load_state_dict(load_state(folder, training))
    while not trainer.is_done:
        with strictly_deterministic(), explain_out_of_memory(training.batch_field, optimisation.batch_size):
            metrics = trainer.train_step()
        if not trainer.is_finite(metrics):
            raise _diverged(training, trainer.step)
        if trainer.rank == 0 and (metrics or trainer.step % REPORT_EVERY == 0):
            config["metrics_actor"].report.remote(Message(step=trainer.step, metrics=metrics))
        if trainer.step % optimisation.checkpoint_every == 0 or trainer.is_done:
            _save_checkpoint(trainer)
    if trainer.rank == 0:
        task.save(trainer.values(), trainer.averages(), training.out)
    task.close()
    return trainer.history


def load_state(folder: str, training: Training) -> TrainerState:
    """Return the checkpoint's state on the host, where AdamW reads its step counts.

    Raises InputError if it is damaged: torch compares no checksums.
    """
    local = open_directory(folder)
    if local.exists(DIGEST) and local.read(DIGEST).decode() != local.sha256(STATE):
        place = (training.checkpoints / training.name).uri
        raise InputError(f"{place}: the last checkpoint is damaged; remove this folder to train from step 0")
    return torch.load(f"{folder}/{STATE}", map_location="cpu", weights_only=True)


def save_state(state: TrainerState, folder: str) -> None:
    torch.save(state, f"{folder}/{STATE}")
    local = open_directory(folder)
    local.write(DIGEST, local.sha256(STATE).encode())


def _diverged(training: Training, step: int) -> InputError:
    section, lr = training.batch_field.partition(".")[0], training.optimisation.lr
    return InputError(f"{section}.lr: {lr:g} led to values that are not finite by step {step}; lower it")


def _save_checkpoint(trainer: Trainer) -> None:
    """Commit a checkpoint; every worker must call this."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = None
        if trainer.rank == 0:
            save_state(trainer.state_dict(), folder)
            checkpoint = Checkpoint.from_directory(folder)
        ray.train.report(
            {"step": trainer.step}, checkpoint=checkpoint, checkpoint_dir_name=f"step_{trainer.step:07d}"
        )


class PartCost(NamedTuple):
    """Seconds of a micro-batch, bytes of an image's activations, bytes of a worker's training state."""

    seconds: float
    image_bytes: float
    state_bytes: float


def measure_part(training: Training, images: int, kind: DeviceKind) -> PartCost:
    """Measure a forward and backward pass of a micro-batch of `images`, on this process's device."""
    device = prepare_device(kind)
    task = training.build(device=device, **{**training.arguments, "batch_size": images, "micro_batches": 1})
    parameters = list(task.parameters.values())
    saved, seconds = dict[int, int](), 0.0

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    for step in range(MEASURED_STEPS):
        saved.clear()
        start = time.perf_counter()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            terms = list(task.losses(step, 0).values())
        torch.autograd.grad(terms, parameters, allow_unused=True)[0].sum().item()  # waits for a GPU
        seconds = time.perf_counter() - start  # the last: the first are slower
    for parameter in parameters:
        saved.pop(parameter.untyped_storage().data_ptr(), None)
    task.close()
    return PartCost(seconds, sum(saved.values()) / images, STATE_COPIES * sum(p.nbytes for p in parameters))
