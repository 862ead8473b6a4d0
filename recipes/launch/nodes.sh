#!/bin/bash
# Several machines: run this on each, with the name of the first in HEAD and their number in NODES. The run folder, the data and the
# cache (KWISE_CACHE) must lie on storage that all of them see.
set -euo pipefail
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-540}  # seconds that a last checkpoint may take, from torch 2.12 on
exec torchrun --nnodes "$NODES" --nproc-per-node "${GPUS:-8}" --rdzv-backend c10d --rdzv-endpoint "$HEAD:29500" --no-python \
    kwise train recipes/starling_rm_7b.toml trainer.fsdp=true "$@"
