"""What Ray Train's processes are told about their cluster, and how a training ends that can't go on."""

import os
import time

import pytest
import torch
from ray.exceptions import OutOfMemoryError
from ray.train import WorkerGroupError
from torch import nn

from ims3_ray.cluster.resources import find_machine
from ims3_ray.cluster.train import Training, as_bad_input, train
from ims3_ray.config.settings import Workers
from ims3_ray.errors import InputError
from ims3_ray.models.training import TrainingConfig
from ims3_ray.storage.artifacts import open_directory


def telling():
    """A class that Ray carries by value: its workers can't import this file."""

    class Told:
        """A task of one value, which saves the address that its process was told."""

        def __init__(self, device):
            self.parameters = {"value": nn.Parameter(torch.ones(1, device=device))}
            self.weights, self.ratios, self.apart = {"square": 1.0}, {}, ()

        def losses(self, step, part):
            return {"square": self.parameters["value"].square().sum()}

        def after_step(self, step, gather): ...

        def state_dict(self):
            return {}

        def load_state_dict(self, state): ...

        def close(self): ...

        def save(self, values, averages, out):
            out.write("address", os.environ.get("RAY_ADDRESS", "").encode())

    return Told


@pytest.mark.chaos
def test_a_training_asks_its_own_cluster_whichever_else_was_started_on_the_machine(
    ray_cluster, tmp_path, monkeypatch
):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    out = open_directory(str(tmp_path / "out"))
    training = Training(
        name="told",
        build=telling(),
        arguments={},
        optimisation=TrainingConfig(steps=1, batch_size=1, micro_batches=1, lr=0.1),
        out=out,
        checkpoints=open_directory(str(tmp_path / "checkpoints")),
        batch_field="none",
    )
    train(training, find_machine(Workers(device="cpu", train_workers=1)), "told")
    assert out.read("address").decode() == ray_cluster.get_runtime_context().gcs_address
    assert "RAY_ADDRESS" not in os.environ


@pytest.mark.slow
def test_a_training_that_diverges_ends_at_once_in_one_line_and_saves_nothing(ray_cluster, tmp_path):
    out = open_directory(str(tmp_path / "out"))
    training = Training(
        name="diverging",
        build=telling(),
        arguments={},
        optimisation=TrainingConfig(steps=3, batch_size=1, micro_batches=1, lr=1e30),
        out=out,
        checkpoints=open_directory(str(tmp_path / "checkpoints")),
        batch_field="finetune.batch_size",
    )
    began = time.monotonic()
    with pytest.raises(InputError, match=r"finetune\.lr: 1e\+30 led to values that are not finite by step 3"):
        train(training, find_machine(Workers(device="cpu", train_workers=1)), "told")
    assert time.monotonic() - began < 60  # eight tries take longer
    assert not out.files()


def refusing():
    """As `telling`: a task's builder which one worker of two finds bad input in, and notes each try."""

    def build(device, tries):
        import torch.distributed as dist

        if dist.get_rank() == 1:
            with open(tries, "a") as file:
                file.write("tried\n")
            raise InputError("model.path: is not on this node")
        return telling()(device)

    return build


@pytest.mark.slow
def test_bad_input_that_one_worker_meets_ends_a_training_at_once_as_it_was_told(ray_cluster, tmp_path):
    tries, out = tmp_path / "tries", open_directory(str(tmp_path / "out"))
    training = Training(
        name="refused",
        build=refusing(),
        arguments={"tries": str(tries)},
        optimisation=TrainingConfig(steps=3, batch_size=2, micro_batches=2, lr=0.1),
        out=out,
        checkpoints=open_directory(str(tmp_path / "checkpoints")),
        batch_field="finetune.batch_size",
    )
    with pytest.raises(InputError, match=r"^model\.path: is not on this node$"):
        train(training, find_machine(Workers(device="cpu", train_workers=2)), "told")
    assert tries.read_text() == "tried\n"
    assert not out.files()


def test_a_node_s_memory_that_is_used_up_names_the_batch_size():
    optimisation = TrainingConfig(steps=3, batch_size=64, micro_batches=1, lr=1.0)
    folder = open_directory("/nowhere")
    training = Training(
        name="large",
        build=telling(),
        arguments={},
        optimisation=optimisation,
        out=folder,
        checkpoints=folder,
        batch_field="vae.batch_size",
    )
    lost = WorkerGroupError("rank 0", {0: OutOfMemoryError("killed")})
    with pytest.raises(InputError, match=r"vae\.batch_size: a batch of 64"), as_bad_input(training):
        raise lost
    with pytest.raises(ZeroDivisionError), as_bad_input(training):
        _ = 1 / 0
