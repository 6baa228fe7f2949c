#!/usr/bin/env bash
# Measure this library on one GPU, in under nine minutes (see on_gpu.py). PYTHON names another interpreter than python3.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH="src:benchmarks${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" benchmarks/on_gpu.py "$@"
