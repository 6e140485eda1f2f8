#!/usr/bin/env bash
# Measures CEPO on this machine's GPU, in one call of less than eight minutes: benchmarks/gpu.sh [--shape qwen3-4b] [--out FOLDER]
# It writes gpu.json and the page gpu.md. --tiny runs everything at toy sizes on the CPU, to try the script itself.
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
[ -x "$python" ] || python=python3
exec "$python" -m benchmarks._gpu_run "$@"
