"""A Slurm of one node on loopback, from Debian's slurm-wlm and munge; all its files are below one folder."""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import time

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "scontrol", "squeue")
CONF = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={folder}/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory}
PartitionName=all Nodes=ALL Default=YES State=UP
"""


def is_installed():
    return os.geteuid() == 0 and all(map(shutil.which, PROGRAMS))


def _free_ports(number):
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def running(folder, cpus=2, memory=4000):
    """Starts the daemons; yields the environment in which Slurm's commands find them."""
    folder.mkdir(mode=0o755, parents=True)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    host, conf = socket.gethostname().partition(".")[0], folder / "slurm.conf"
    numbers = {"ports": _free_ports(2), "cpus": cpus, "memory": memory}
    conf.write_text(CONF.format(host=host, folder=folder, **numbers))
    environment = os.environ | {"SLURM_CONF": str(conf)}
    files = [f"--{name}-file={folder}/munge.{name}" for name in ("pid", "log", "seed")]
    commands = (
        ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket", *files],
        ["slurmctld", "-D", "-i"],
        ["slurmd", "-D", "-N", host],
    )
    daemons = []
    try:
        for command in commands:
            log = (folder / f"{command[0]}.log").open("w")
            own = {"stdout": log, "stderr": subprocess.STDOUT, "start_new_session": True}
            daemons.append(subprocess.Popen(command, env=environment, **own))
            time.sleep(0.5)
        yield environment
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(30)
