"""Tasks and job actors."""

import os

import pytest

from ims3_ray.cluster import tasks
from ims3_ray.cluster.tasks import map_in_order, map_on_cluster, stream_jobs


def test_results_are_in_order_and_arguments_consumed_lazily(ray_cluster):
    made = []

    def arguments():
        for number in range(9):
            made.append(number)
            yield number, 2

    came = []
    for result in map_in_order(lambda number, power: number**power, arguments(), 3):
        came.append(result)
        assert len(made) <= len(came) + 3
    assert came == [number**2 for number in range(9)]


def test_cpu_tasks_in_flight_are_limited_by_present_cpus(ray_cluster, monkeypatch):
    def in_flight(present, **resources):
        monkeypatch.setattr(ray_cluster, "cluster_resources", lambda: {"CPU": present})
        return tasks._max_in_flight(256, {"num_cpus": 1, **resources})

    assert [in_flight(0.0), in_flight(64.0), in_flight(1000.0)] == [16, 64, 256]
    assert in_flight(0.0, num_gpus=1) == 256


def test_without_cpus_little_work_is_done_here_and_much_requests_a_node(ray_cluster, monkeypatch):
    monkeypatch.setattr(ray_cluster, "cluster_resources", lambda: {"CPU": 0.0})
    monkeypatch.setattr(tasks, "WORTH_A_NODE", 2)

    assert set(map_on_cluster(lambda _: os.getpid(), [(0,)] * 2)) == {os.getpid()}
    assert os.getpid() not in map_on_cluster(lambda _: os.getpid(), [(0,)] * 3)


def test_an_actor_takes_job_after_job_and_repeats_one_whose_process_died(ray_cluster, tmp_path):
    def job(number, deaths):
        yield number, os.getpid()
        if len(os.listdir(tmp_path)) < deaths:
            (tmp_path / str(os.getpid())).touch()
            os.kill(os.getpid(), 9)

    jobs = [(number, int(number == 1)) for number in range(6)]
    items = [item for _, item in stream_jobs(job, jobs, num_cpus=2)]
    assert sorted(number for number, _ in items) == list(range(6))
    assert len({process for _, process in items}) <= 3
    with pytest.raises(ray_cluster.exceptions.RayActorError):
        list(stream_jobs(job, [(0, 99)], num_cpus=1))
