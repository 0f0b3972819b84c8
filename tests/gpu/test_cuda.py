"""CUDA results equal those of the CPU in float32 within the precision, with the same bits each time."""

import io
import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from planned import config_of, steps_of
from ray import cloudpickle
from tiny import tiny_words

from benchmarks.ours import local_trainer, pool_work, training_work
from ims3_ray.cluster.fan_out import Part, fan_out
from ims3_ray.cluster.resources import Machine
from ims3_ray.cluster.train import Training, train
from ims3_ray.config.settings import Workers
from ims3_ray.errors import InputError
from ims3_ray.method import difffit
from ims3_ray.method.seeding import generator
from ims3_ray.models.device import prepare_device
from ims3_ray.models.dit import DiT, DiTConfig
from ims3_ray.models.finetuned import compile_blocks, predictor, read_adapter
from ims3_ray.pipeline.prepare import prepare
from ims3_ray.stages.finetune.task import InversionMatchingTask
from ims3_ray.stages.sample.stage import Sampler
from ims3_ray.storage import schemas
from ims3_ray.storage.artifacts import open_directory

DEVICE = "cuda"
PLAIN = ["model.precision={cpu: fp32, cuda: fp32}", "model.compile=false"]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="no CUDA device"),
]
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers can't import a test


@pytest.fixture
def contexts(tiny_model, tiny_images, tmp_path):
    """One run prepared for the CPU, and for the device, both in float32."""
    config = config_of(tiny_words(tiny_model, tiny_images, tmp_path / "runs"), *PLAIN)
    machines = (Machine(kind, 1, 1, 4e9, Workers(actors=1, train_workers=1)) for kind in ("cpu", DEVICE))
    return [prepare(config, machine) for machine in machines]


def distance(ours, reference) -> float:
    """Relative, in the Euclidean norm."""
    ours, reference = (torch.as_tensor(x).double().cpu() for x in (ours, reference))
    return float((ours - reference).norm() / reference.norm())


def passes(dit, device):
    """Output, and gradients of DiffFit's parameters as one vector."""
    draws = generator("inputs")
    z, noise = (torch.randn(4, 4, 8, 8, generator=draws).to(device) for _ in range(2))
    t, y = torch.tensor([1, 300, 600, 999], device=device), torch.tensor([0, 1, 2, 3], device=device)
    out = predictor(dit)(z, t, y)
    (out[:, :4] - noise).square().mean().backward()
    return out.detach(), torch.cat([p.grad.float().flatten() for p in dit.parameters() if p.grad is not None])


def test_compiled_bf16_equals_float32_within_its_precision():
    config = DiTConfig(sample_size=8, hidden_size=128, depth=4, num_heads=4, num_classes=3)
    plain, ours = (DiT(config).initialize(generator("dit"), zero_outputs=False).eval() for _ in range(2))
    ours = ours.to(prepare_device(DEVICE), torch.bfloat16)
    for dit in (plain, ours):
        difffit.prepare(dit)
    compile_blocks(ours)
    for result, reference in zip(passes(ours, DEVICE), passes(plain, "cpu"), strict=True):
        assert distance(result, reference) < 0.05


@pytest.mark.parametrize("stage", ["encode", "invert", "sample"])
def test_stage_worker_equals_the_cpu_and_is_reproducible(stage, contexts, tmp_path):
    outputs = []
    for place, context in enumerate((*contexts, contexts[1])):
        work = pool_work(context, stage, open_directory(str(tmp_path / f"work-{place}")), 1)
        outputs.append(work.build(**work.arguments)(work.parts[0].payload)[0])
    reference, first, again = outputs
    assert set(reference) == set(first)
    for name, values in first.items():
        assert np.array_equal(values, again[name]), name
        if name == "image":
            pixels = (
                [np.asarray(Image.open(io.BytesIO(png)), float) for png in side[name]] for side in outputs[:2]
            )
            assert np.abs(np.subtract(*pixels)).mean() < 2  # of 255
        elif values.dtype.kind == "f":
            assert distance(values.astype(float), reference[name].astype(float)) < 0.02, name
        else:
            assert np.array_equal(values, reference[name]), name


@pytest.mark.parametrize("space", ["latent", "pixel"])
def test_features_probes_refined_images_and_scores_are_the_same_twice(
    ray_cluster, tiny_model, tiny_images, tmp_path, space
):
    refine = "refine.steps=3", f"refine.space={space}", "refine.objective=gradients_l1", "refine.lr=0.01"
    words = f"workers.device={DEVICE}", "probe.count=1", "probe.checkpoint_steps=[0, 2]", *refine
    results = []
    for place in ("first", "again"):
        steps = steps_of([*tiny_words(tiny_model, tiny_images, tmp_path / place), *words], upto="evaluate")
        files = {noun: steps[noun].manifest["checksums"] for noun in ("features", "probes", "refined")}
        results.append((files, steps["evaluation"].directory.read_json("evaluation.json")["sets"]))
    assert results[0] == results[1]


class RecordsBackend(InversionMatchingTask):
    """Fine-tuning that records the backend of its process group."""

    def save(self, values, averages, out):
        super().save(values, averages, out)
        out.write("backend", dist.get_backend().encode())


def test_fine_tuning_over_nccl_equals_the_cpu(ray_cluster, contexts, tmp_path):
    work, out = (open_directory(str(tmp_path / name)) for name in ("work", "out"))
    (arguments, numbers), (on_device, _) = (training_work(context, work, 4) for context in contexts)
    training = Training(
        name="gpu",
        build=RecordsBackend,
        arguments=on_device,
        optimisation=numbers,
        out=out,
        checkpoints=open_directory(str(tmp_path / "checkpoints")),
        batch_field="finetune.batch_size",
    )
    train(training, contexts[1].machine, "finetune")
    trainer = local_trainer(arguments, numbers, "cpu")
    start = {name: value.clone() for name, value in trainer.values().items()}
    for _ in range(4):
        trainer.train_step()
    tuned, reference = read_adapter(out, "last"), trainer.values()
    changes = (
        torch.cat([(side[name].cpu() - start[name].cpu()).flatten() for name in start])
        for side in (tuned, reference)
    )
    assert distance(*changes) < 0.2
    assert out.read("backend") == (b"nccl" if DEVICE == "cuda" else b"gloo")


class OutOfMemory(Sampler):
    """A sampler on a device without free memory."""

    def __call__(self, payload):
        torch.cuda.set_per_process_memory_fraction(1e-6)
        return super().__call__(payload)


def test_a_batch_too_large_for_memory_names_its_field(ray_cluster, contexts, tmp_path):
    context, out = contexts[1], open_directory(str(tmp_path / "out"))
    arguments = pool_work(context, "sample", out, 1).arguments | {"batch_size": 4096}
    parts = [Part(0, 1, [[0, 0, 0]])]
    with pytest.raises(InputError) as refused:
        fan_out(
            OutOfMemory,
            arguments,
            parts,
            table=schemas.CANDIDATES,
            out=out,
            machine=context.machine,
            stage="sample",
        )
    line = str(refused.value)
    assert line.startswith(
        "sample.batch_size.cuda: a batch of 4096 does not fit the GPU's memory (needs at least "
    )
    assert line.endswith("lower it")
    assert "\n" not in line
