"""Every GPU that a run may use is used, or a line says why not."""

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


def encoding(given, rows=ROWS):
    return pool_usage(given, rows, a_part=10)


def test_a_pool_holds_every_gpu_as_long_as_there_are_parts_for_it():
    assert encoding(context()) == GpuUsage(8, 8)
    few = encoding(context(), rows=25)
    assert (few.workers, few.gpus) == (3, 3)
    assert few.limit == "3 parts of 10 images"
    assert encoding(context(actors=2)) == GpuUsage(2, 2, "workers.actors=2")


def test_a_batch_of_two_parts_leaves_six_of_eight_gpus_idle_and_the_line_names_the_way_out():
    use = training_usage(context())
    assert (use.workers, use.gpus) == (2, 2)
    assert "finetune.batch_size=auto would use all" in use.limit
    assert training_usage(context(train_workers=1)).limit == "workers.train_workers=1"
    scaled = Finetune(batch_size="auto").scaled_to(8)
    fields = {f"finetune.{name}": getattr(scaled, name) for name in ("batch_size", "micro_batches")}
    assert training_usage(context(fields=fields)) == GpuUsage(8, 8)


def test_a_classifier_has_a_gpu_of_its_own_as_long_as_there_are_as_many():
    assert classifier_usage(context(), 6) == GpuUsage(6, 6, "6 to train")
    assert classifier_usage(context(), 16) == GpuUsage(16, 8)
    assert classifier_usage(context(), 100) == GpuUsage(32, 8)  # four on each


def test_without_gpus_none_is_counted():
    given = context(gpus=0)
    assert {encoding(given).gpus, training_usage(given).gpus, classifier_usage(given, 6).gpus} == {0}
    assert "num_gpus" not in given.machine.classifier_resources(6)


@pytest.mark.parametrize(("trainings", "share"), [(6, 1), (8, 1), (16, 0.5), (100, 0.25)])
def test_classifiers_share_a_gpu_only_where_they_are_more_than_gpus(trainings, share):
    assert context().machine.classifier_resources(trainings)["num_gpus"] == share


def test_trials_at_once_share_the_gpus():
    machine = context().machine
    machine = Machine(machine.device, machine.cpus, machine.gpus, machine.memory, Workers(), runs_at_once=4)
    assert machine.classifier_share(4) == 0.5
