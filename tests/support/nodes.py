"""A Ray cluster of a head and several worker nodes on this machine, in a process of its own, told by lines
what to do.

`lose N` takes worker node N away, as a machine goes that loses power; `join` brings a new one; the end of its
input ends the cluster. It answers with lines of JSON: at first, and after each, {"address": …, "nodes":
{number: raylet's process id}}.
"""

import json
import sys

import psutil

CPUS_PER_NODE = 1
OBJECT_STORE = 80 * 2**20  # bytes a node
QUICK = {  # a lost node is noticed within two seconds
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 4,
}


def main(count: int) -> None:
    from ray.cluster_utils import Cluster

    sizes = {"num_cpus": CPUS_PER_NODE, "object_store_memory": OBJECT_STORE}
    head = {"num_cpus": 0, "object_store_memory": OBJECT_STORE, "_system_config": QUICK}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = {number: cluster.add_node(**sizes) for number in range(count)}

    def raylet(number: int) -> int:
        return nodes[number].all_processes["raylet"][0].process.pid

    def say() -> None:
        print(
            json.dumps({"address": cluster.address, "nodes": {number: raylet(number) for number in nodes}}),
            flush=True,
        )

    say()
    for line in sys.stdin:
        word, *numbers = line.split()
        if word == "lose":
            number = int(numbers[0])
            workers = psutil.Process(raylet(number)).children(recursive=True)
            for process in workers:
                process.kill()
            cluster.remove_node(nodes.pop(number), allow_graceful=False)
        elif word == "join":
            nodes[count] = cluster.add_node(**sizes)
            count += 1
        say()
    cluster.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]))
