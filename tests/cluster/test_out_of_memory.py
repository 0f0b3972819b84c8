"""A batch that does not fit on a GPU is bad input: the error names the field to lower and the memory."""

import pytest
import torch

from ims3_ray.cluster.fan_out import Part, fan_out
from ims3_ray.cluster.resources import find_machine
from ims3_ray.config.settings import Workers
from ims3_ray.errors import InputError
from ims3_ray.models.device import explain_out_of_memory
from ims3_ray.storage import schemas
from ims3_ray.storage.artifacts import open_directory


def test_out_of_memory_names_the_field_the_batch_and_the_memory():
    message = "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.11 GiB."
    with pytest.raises(InputError) as caught, explain_out_of_memory("sample.batch_size.cuda", 256):
        raise torch.OutOfMemoryError(message)
    for word in ("sample.batch_size.cuda", "256", "20.00 GiB", "79.11 GiB", "lower"):
        assert word in str(caught.value)


def test_out_of_memory_in_a_pool_reaches_the_driver(ray_cluster, tmp_path):
    def out_of_memory(batch_size):  # local, so that workers need not import this file
        def work(payload):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

        return work

    with pytest.raises(InputError, match=r"sample.batch_size.cpu: a batch of 32 .*20.00 GiB"):
        fan_out(
            out_of_memory,
            {"batch_size": 32},
            [Part(0, 1, [])],
            table=schemas.FEATURES,
            out=open_directory(str(tmp_path)),
            machine=find_machine(Workers()),
            stage="sample",
        )
