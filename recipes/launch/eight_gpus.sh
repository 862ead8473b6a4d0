#!/bin/bash
# Eight GPUs of one machine; weights, gradients and optimiser sharded by FSDP2.
set -euo pipefail
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-540}  # seconds that a last checkpoint may take, from torch 2.12 on
exec torchrun --standalone --nproc-per-node 8 --no-python \
    kwise train recipes/starling_rm_7b.toml trainer.fsdp=true "$@"
