#!/usr/bin/env bash
# An ims3 command as a Slurm job. Before its wall time ends it stops cleanly and is queued again, until it is done:
#   sbatch cluster/slurm.sh distill --recipe imagewoof storage=/shared/runs data.train=/shared/imagenet/train …
#   sbatch --nodes=2 --exclusive --gpus-per-node=4 cluster/slurm.sh distill …     several nodes (docs/slurm.md)
# Submit from an environment in which `ims3` is found. Options before the script's name replace those below.
#SBATCH --job-name=ims3
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

scratch=$(mktemp -d "${RAY_TMPDIR:-/tmp}/ims3-XXXXXX")  # on the node, short: Ray's sockets lie below it
clean() { rm -rf "$scratch"; }
trap clean EXIT
export RAY_USAGE_STATS_ENABLED=0 RAY_TMPDIR=$scratch  # where `ray start` writes and `ray symmetric-run` looks

if [ "$SLURM_JOB_NUM_NODES" -eq 1 ]; then
    # The command starts its own Ray on loopback, with the cores, memory and GPUs of the job.
    ims3 "$@" &
    job=$!
    driver() { echo "$job"; }
else
    # Ray's own way to run under Slurm: a node each, the command on the first, all stopped at its end.
    clean() { timeout 30 srun rm -rf "$scratch"; }  # on every node
    head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    address=$head:$((20000 + SLURM_JOB_ID % 10000))  # apart from other jobs' and from Ray's worker ports
    export RAY_AUTH_MODE=token RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300
    [ -e ~/.ray/auth_token ] || (umask 077; ray get-auth-token --generate > /dev/null)
    unset SLURM_CPUS_PER_TASK SLURM_TRES_PER_TASK  # else the step has only so many of the node's cores
    # shellcheck disable=SC2016  # expanded on the first node
    srun ray symmetric-run --address "$address" --min-nodes "$SLURM_JOB_NUM_NODES" \
        --num-cpus "$SLURM_CPUS_ON_NODE" -- \
        env RAY_ADDRESS="$address" bash -c 'echo $$ > "$0"; exec ims3 "$@"' "$scratch/pid" "$@" &
    job=$!
    driver() { cat "$scratch/pid"; }
fi

# Slurm signals this shell alone. It signals the command alone, which ends with code 143 and leaves complete parts.
trap 'kill -TERM "$(driver)"' TERM
wait "$job"; code=$?
while kill -0 "$job" 2> /dev/null; do wait "$job"; code=$?; done  # a signal ends `wait`, not the job

# A job that is cancelled is not RUNNING any more.
trap '' TERM  # Slurm also ends this script as it queues the job again
if [ "$code" -eq 143 ] && [ "$(squeue -h -j "$SLURM_JOB_ID" -o %T)" = RUNNING ]; then
    clean  # a job that is queued again can't start a step
    trap - EXIT
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
