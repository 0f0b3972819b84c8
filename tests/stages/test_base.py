"""A stage uses every GPU that it may use, or its limit says why not."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from ims3_ray.cluster.resources import Machine
from ims3_ray.config.load import load_config
from ims3_ray.config.sections import Finetune
from ims3_ray.config.settings import Workers
from ims3_ray.stages.base import GpuUsage, classifier_usage, pool_usage, training_usage

ROWS = 1000


def context(gpus=8, fields=None, **workers):
    config = load_config("digits-paper", fields or {})
    machine = Machine("cuda" if gpus else "cpu", 64, gpus, 64e9, Workers(**workers))
    return SimpleNamespace(config=config, machine=machine)


def encoding(context, rows=ROWS):
    return pool_usage(context, rows, rows_per_part=10)


def test_pool_uses_every_gpu_while_there_are_enough_parts():
    assert encoding(context()) == GpuUsage(8, 8)
    assert encoding(context(), rows=25) == GpuUsage(3, 3, "3 parts of 10 images")
    assert encoding(context(actors=2)) == GpuUsage(2, 2, "workers.actors=2")


def test_batch_of_two_parts_uses_two_gpus_and_the_limit_names_the_remedy():
    usage = training_usage(context())
    assert (usage.workers, usage.gpus) == (2, 2)
    assert "finetune.batch_size=auto" in usage.limit
    assert training_usage(context(train_workers=1)).limit == "workers.train_workers=1"
    scaled = Finetune(batch_size="auto").scaled_to(8)
    fields = {f"finetune.{name}": getattr(scaled, name) for name in ("batch_size", "micro_batches")}
    assert training_usage(context(fields=fields)) == GpuUsage(8, 8)


def test_each_classifier_has_its_own_gpu_while_there_are_enough():
    assert classifier_usage(context(), 6) == GpuUsage(6, 6, "6 to train")
    assert classifier_usage(context(), 16) == GpuUsage(16, 8)
    assert classifier_usage(context(), 100) == GpuUsage(32, 8)  # four per GPU


def test_no_stage_uses_gpus_on_cpus():
    cpus = context(gpus=0)
    assert {encoding(cpus).gpus, training_usage(cpus).gpus, classifier_usage(cpus, 6).gpus} == {0}
    assert "num_gpus" not in cpus.machine.classifier_resources(6)


@pytest.mark.parametrize(("trainings", "share"), [(6, 1), (8, 1), (16, 0.5), (100, 0.25)])
def test_classifiers_share_a_gpu_only_if_they_outnumber_the_gpus(trainings, share):
    assert context().machine.classifier_resources(trainings)["num_gpus"] == share


def test_concurrent_trials_share_the_gpus():
    assert replace(context().machine, runs_at_once=4).classifier_share(4) == 0.5
