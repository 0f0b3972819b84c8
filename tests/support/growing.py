"""Run an actor pool while a second node joins, and print how many actors made its parts.

python tests/support/growing.py FOLDER
"""

import os
import sys
import threading
import time

import numpy as np
import ray
import warm
from ray.cluster_utils import Cluster

from ims3_ray.cluster.fan_out import Part, fan_out
from ims3_ray.cluster.resources import Machine
from ims3_ray.config.settings import Workers
from ims3_ray.storage.artifacts import open_directory
from ims3_ray.storage.rows import read_rows
from ims3_ray.storage.schemas import FEATURES

NODE = {"num_cpus": 2, "num_gpus": 1, "object_store_memory": 80 * 2**20}
PARTS, PART_S = 40, 2.0
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Slow:
    """Returns a row with the id of the process for each part."""

    def __init__(self, batch_size):
        pass

    def __call__(self, payload):
        time.sleep(PART_S)
        row = {"image_id": np.array([str(payload)], object), "label": np.zeros(1, np.int64)}
        return row | {"feature": np.array([[os.getpid()]], np.float32)}, {}


with warm.workers():
    cluster = Cluster(initialize_head=True, head_node_args=NODE)
    ray.init(address=cluster.address, log_to_driver=False)
    machine = Machine("cuda", 2, 1, 8e9, Workers())
    out, parts = open_directory(sys.argv[1]), [Part(i, 1, i) for i in range(PARTS)]
    options = {"table": FEATURES, "out": out, "machine": machine, "stage": "test"}
    work = threading.Thread(target=lambda: fan_out(Slow, {"batch_size": 1}, parts, **options))
    work.start()
    while not out.files():
        time.sleep(0.1)
    cluster.add_node(**NODE)
    work.join()
    print("actors", len(np.unique(read_rows(out, FEATURES)["feature"])))
    ray.shutdown()
    cluster.shutdown()
