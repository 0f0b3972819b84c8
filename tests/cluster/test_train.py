"""Ray Train asks its own cluster, and hopeless trainings end at once."""

import os
import time

import pytest
import torch
from ray.exceptions import OutOfMemoryError
from ray.train import Checkpoint, WorkerGroupError
from torch import nn

from ims3_ray.cluster.resources import find_machine
from ims3_ray.cluster.train import (
    MAX_FAILURES,
    EndIfHopeless,
    Training,
    as_bad_input,
    load_state,
    save_state,
    train,
)
from ims3_ray.config.settings import Workers
from ims3_ray.errors import InputError
from ims3_ray.models.training import TrainingConfig
from ims3_ray.storage.artifacts import open_directory


def task_class():
    """Return a class that Ray pickles by value, since workers cannot import this file."""

    class AddressTask:
        """A task with one parameter, which saves its process's RAY_ADDRESS."""

        def __init__(self, device):
            self.parameters = {"value": nn.Parameter(torch.ones(1, device=device))}
            self.loss_weights, self.gradient_ratios, self.separate_terms = {"square": 1.0}, {}, ()

        def losses(self, step, part):
            return {"square": self.parameters["value"].square().sum()}

        def after_step(self, step, gather): ...

        def state_dict(self):
            return {}

        def load_state_dict(self, state): ...

        def close(self): ...

        def save(self, values, averages, out):
            out.write("address", os.environ.get("RAY_ADDRESS", "").encode())

    return AddressTask


def training_of(build, folder, field="finetune.batch_size", arguments=(), **options):
    """A training below `folder`, of one batch per step."""
    optimisation = {"steps": 3, "batch_size": 1, "micro_batches": 1, "lr": 0.1} | options
    return Training(
        name="training",
        build=build,
        arguments=dict(arguments),
        optimisation=TrainingConfig(**optimisation),
        out=open_directory(f"{folder}/out"),
        checkpoints=open_directory(f"{folder}/checkpoints"),
        batch_field=field,
    )


def train_on(workers, training):
    train(training, find_machine(Workers(device="cpu", train_workers=workers)), "training")


@pytest.mark.chaos
def test_a_training_uses_its_own_cluster(ray_cluster, tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    training = training_of(task_class(), tmp_path)
    train_on(1, training)
    assert training.out.read("address").decode() == ray_cluster.get_runtime_context().gcs_address
    assert "RAY_ADDRESS" not in os.environ


@pytest.mark.slow
def test_a_diverging_training_ends_at_once_and_saves_nothing(ray_cluster, tmp_path):
    training = training_of(task_class(), tmp_path, lr=1e30)
    began = time.monotonic()
    with pytest.raises(InputError, match=r"finetune\.lr: 1e\+30 .* step 3"):
        train_on(1, training)
    assert time.monotonic() - began < 60  # eight tries take longer
    assert not training.out.files()


def logging_class():
    """Return a class that logs each part of a step, raises InputError before step `ends`, saves its value."""

    class LoggingTask(task_class()):
        def __init__(self, device, log, ends):
            super().__init__(device)
            self.log, self.ends = log, ends

        def losses(self, step, part):
            if step == self.ends:
                raise InputError("ends here")
            with open(self.log, "a") as file:
                file.write(f"{step}{part} ")
            return {"square": (self.parameters["value"] * (1 + step + part)).square().sum()}

        def save(self, values, averages, out):
            out.write("value", values["value"].numpy().tobytes() + averages["value"].numpy().tobytes())

    return LoggingTask


@pytest.mark.slow
def test_a_training_resumes_from_its_checkpoint_with_fewer_workers_to_the_same_bytes(ray_cluster, tmp_path):
    options = {"steps": 4, "batch_size": 2, "micro_batches": 2, "checkpoint_every": 1}

    def part(folder, workers, ends=None):
        log = tmp_path / f"log-{workers}-{ends}"
        arguments = {"log": str(log), "ends": ends}
        training = training_of(logging_class(), tmp_path / folder, arguments=arguments, **options)
        try:
            train_on(workers, training)
        except InputError:
            assert ends
        return training.out, sorted(log.read_text().split())

    out, done = part("resumed", workers=2, ends=2)
    assert (done, out.files()) == (["00", "01", "10", "11"], {})
    out, done = part("resumed", workers=1)
    assert done == ["20", "21", "30", "31"]
    assert out.read("value") == part("whole", workers=2)[0].read("value")


def failing_build():
    """Return a builder that raises InputError on one of two workers, and counts attempts."""

    def build(device, tries):
        import torch.distributed as dist

        if dist.get_rank() == 1:
            with open(tries, "a") as file:
                file.write("tried\n")
            raise InputError("model.path: is not on this node")
        return task_class()(device)

    return build


@pytest.mark.slow
def test_bad_input_on_one_worker_ends_a_training_at_once(ray_cluster, tmp_path):
    tries, two = tmp_path / "tries", {"batch_size": 2, "micro_batches": 2}
    training = training_of(failing_build(), tmp_path, arguments={"tries": str(tries)}, **two)
    with pytest.raises(InputError, match=r"^model\.path: is not on this node$"):
        train_on(2, training)
    assert tries.read_text() == "tried\n"
    assert not training.out.files()


def test_a_damaged_checkpoint_is_refused(tmp_path):
    training, file, state = training_of(None, tmp_path), tmp_path / "state.pt", {"w": torch.arange(40.0)}
    save_state(state, str(tmp_path))
    assert torch.equal(load_state(str(tmp_path), training)["w"], state["w"])
    data = file.read_bytes()
    for place in (0, data.index(state["w"].numpy().tobytes()) + 30, len(data) - 1):
        file.write_bytes(data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :])
        with pytest.raises(InputError, match=r"checkpoints/training: .*damaged"):
            load_state(str(tmp_path), training)


def test_only_failures_without_a_checkpoint_between_them_end_a_training():
    callback, lost = EndIfHopeless(), {0: ConnectionError("lost")}
    for _ in range(2 * MAX_FAILURES):
        callback.after_exception(None, lost)
        callback.after_report(None, [], Checkpoint("/nowhere"))
    for _ in range(MAX_FAILURES):
        callback.after_exception(None, lost)
        callback.after_report(None, [], None)
    with pytest.raises(ConnectionError):
        callback.after_exception(None, lost)


def test_an_exhausted_node_names_the_batch_size():
    training = training_of(task_class(), "/nowhere", "vae.batch_size", batch_size=64)
    lost = WorkerGroupError("rank 0", {0: OutOfMemoryError("killed")})
    with pytest.raises(InputError, match=r"vae\.batch_size: a batch of 64"), as_bad_input(training):
        raise lost
    with pytest.raises(ZeroDivisionError), as_bad_input(training):
        _ = 1 / 0
