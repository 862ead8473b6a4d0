#!/bin/bash
# Eight GPUs of one machine; weights, gradients and optimiser sharded by FSDP2.
set -euo pipefail
exec torchrun --standalone --nproc-per-node 8 --no-python \
    kwise train recipes/starling_rm_7b.toml trainer.fsdp=true "$@"
