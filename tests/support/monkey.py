"""Seeded kills: of what, in which stage, and how long after its first such process began."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
from processes import job
from raylets import guarded, head, node

STAGES = ("encode", "invert", "finetune", "embed", "sample", "select", "export", "evaluate", "report")
NODE, DRIVER = "node", "driver"
PROCESSES = {  # title of such processes, and the stages where there are some
    "Ray Data worker": ("ray::MapWorker", ("encode", "invert", "embed", "sample")),
    "Train worker": ("ray::RayTrainWorker", ("finetune",)),
    "selection actor": ("ray::ShardActor", ("select",)),
    "evaluation actor": ("ray::JobActor.stream", ("evaluate",)),
}
KINDS = (*PROCESSES, NODE, DRIVER)
POLL_S = 0.02
AT_REST = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")
QUICK = {  # a lost node is noticed within two seconds
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "4",
}


@dataclass(frozen=True)
class Fault:
    """Kill one of `kind` in `stage`, `delay` seconds after the first of them was there; `draw` says which."""

    kind: str
    stage: str
    delay: float
    draw: float = 0.0


def faults(kind: str, count: int, seed: int, longest: float) -> list[Fault]:
    """`count` faults of a kind, spread evenly over the stages where there are such processes."""
    draws = np.random.default_rng([seed, KINDS.index(kind)])
    stages = PROCESSES[kind][1] if kind in PROCESSES else STAGES
    return [
        Fault(kind, stages[i % len(stages)], longest * draws.random() ** 2, draws.random())
        for i in range(count)
    ]


class Nodes:
    """A head and worker nodes of one CPU; `environment` is with what a process joins them."""

    def __init__(self, count: int, folder: Path, environment: dict[str, str]):
        self.environment = guarded(environment | QUICK)
        self._count, self._folder, self._running = count, folder, contextlib.ExitStack()
        address = self._running.enter_context(head(env=self.environment, folder=folder))
        self.environment["RAY_ADDRESS"] = address
        self._started: list[subprocess.Popen] = []
        self.mend()

    def _there(self) -> list[subprocess.Popen]:
        return [process for process in self._started if process.poll() is None]

    def mend(self) -> None:
        """As many nodes as at first."""
        words = f"--address={self.environment['RAY_ADDRESS']}", "--num-cpus=1"
        while len(self._there()) < self._count:
            log = self._folder / f"node-{len(self._started)}.log"
            self._started.append(self._running.enter_context(node(*words, env=self.environment, log=log)))

    def workers(self, title: str = "ray::", within: subprocess.Popen | None = None) -> list[psutil.Process]:
        """Processes whose title begins so and that have work, of one node or of all."""
        busy = []
        for process in [within] if within else self._there():
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in psutil.Process(process.pid).children(recursive=True):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        name = "".join(child.cmdline()[:1])
                        if name.startswith(title) and not name.startswith(AT_REST):
                            busy.append(child)
        return sorted(busy, key=lambda process: process.pid)

    def lose(self, draw: float) -> str:
        """Take away a node, one that has work where any has, as a machine goes that loses power."""
        there = self._there()
        busy = [process for process in there if self.workers(within=process)]
        process = _drawn(busy or there, draw)
        for each in (*psutil.Process(process.pid).children(recursive=True), process):
            each.kill()
        process.wait()
        return f"a node of {len(there)}" + (" at work" if busy else "")

    def end(self) -> None:
        self._running.close()


def _drawn(values: list, draw: float):
    return values[int(draw * len(values))]


@dataclass
class Outcome:
    """How a run ended; `killed` holds what was killed, a line each."""

    code: int
    seconds: float
    killed: list[str] = field(default_factory=list)
    error: str = ""


def run_under_fire(words: list[str], nodes: Nodes, planned: list[Fault], timeout: float = 300.0) -> Outcome:
    """Run `jobs/distill.py` on the nodes while the faults happen, in the order of their stages; again where
    it was the driver.

    A fault that finds nothing to kill any more is missing in `killed`.
    """
    began, outcome = time.monotonic(), Outcome(0, 0.0)
    left = sorted(planned, key=lambda fault: STAGES.index(fault.stage))
    while True:
        with _driver(words, nodes) as (process, lines, errors):
            left = _kill(process, lines, nodes, left, outcome, began + timeout)
            if process.poll() == -signal.SIGKILL:
                continue
            outcome.code, outcome.error = process.wait(), "".join(errors)
            outcome.seconds = time.monotonic() - began
            return outcome


def _kill(
    process, lines: list[str], nodes: Nodes, left: list[Fault], outcome: Outcome, until: float
) -> list[Fault]:
    """Let the faults happen until the driver ends; gives those that have not."""
    since: float | None = None  # the first process of the next fault's kind was there
    while process.poll() is None:
        if time.monotonic() > until:
            process.kill()  # it hangs, which is no -SIGKILL of ours
            raise TimeoutError(f"the run hangs after {outcome.killed}: {lines[-1:]}")
        time.sleep(POLL_S)
        while left and left[0].kind not in (NODE, DRIVER) and _is_past(left[0].stage, lines):
            left, since = left[1:], None  # nothing was there to kill any more
        if not left or not _has_begun(left[0].stage, lines):
            continue
        fault = left[0]
        targets = [process] if fault.kind in (NODE, DRIVER) else nodes.workers(PROCESSES[fault.kind][0])
        since = since or (time.monotonic() if targets else None)
        if since is None or not targets or time.monotonic() - since < fault.delay:
            continue
        if fault.kind == NODE:
            victim = nodes.lose(fault.draw)
        else:
            target = _drawn(targets, fault.draw)
            with contextlib.suppress(psutil.NoSuchProcess):
                os.kill(target.pid, signal.SIGKILL)
            victim = fault.kind
        outcome.killed.append(f"{victim} in {fault.stage} after {fault.delay:.2f} s")
        left, since = left[1:], None
        if fault.kind == DRIVER:
            process.wait()
            return left
    return left


def _has_begun(stage: str, lines: list[str]) -> bool:
    return any(f"] {stage} " in line for line in lines)


def _is_past(stage: str, lines: list[str]) -> bool:
    return any(_has_begun(later, lines) for later in STAGES[STAGES.index(stage) + 1 :])


@contextlib.contextmanager
def _driver(words: list[str], nodes: Nodes) -> Iterator[tuple]:
    """The job, and the lines of its two outputs as they come."""
    process = job("distill", *words, env=nodes.environment | {"PYTHONUNBUFFERED": "1"})
    heard = ([], [])
    threads = [
        threading.Thread(target=lambda s=stream, h=held: h.extend(s), daemon=True)
        for stream, held in zip((process.stdout, process.stderr), heard, strict=True)
    ]
    for thread in threads:
        thread.start()
    try:
        yield process, *heard
    finally:
        process.kill()
        process.wait()
        for thread in threads:
            thread.join()
