#!/usr/bin/env bash
# The first minutes on a GPU: ten checks in order, one JSON and one table. See docs/gpu.md.
#
#   benchmarks/gpu_check.sh [--device cuda|cpu] [--out DIR] [--wheels DIR] [--only NAME,…]
#
# With --wheels, a new environment below --out gets this project and its packages from that folder of wheels,
# without a network; else the python of the present environment runs the checks. A check that has its result
# in --out is not run again. --device cpu runs everything at tiny sizes.
set -euo pipefail
cd "$(dirname "$0")/.."
out=gpu-check wheels="" words=()
while [ $# -gt 0 ]; do
    case "$1" in
        --out) out=$2; shift 2 ;;
        --wheels) wheels=$2; shift 2 ;;
        *) words+=("$1"); shift ;;
    esac
done
mkdir -p "$out"
python=python
if [ -n "$wheels" ]; then
    python=$(realpath "$out")/venv/bin/python
    [ -x "$python" ] || { python3 -m venv "$out/venv" && "$python" -m pip install -q --no-index \
        --find-links "$wheels" -e ".[test]"; }
fi
export RAY_USAGE_STATS_ENABLED=0 HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"
exec "$python" -m benchmarks.gpu_check --out "$out" "${words[@]}"
