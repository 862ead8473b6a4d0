#!/bin/bash
# One GPU of 141 GB or more. On 80 GB train adapters: bash recipes/launch/one_gpu.sh method=lora model.dtype=bfloat16
# trainer.learning_rate=1e-4 (docs/8-starling-7b.md). The same command again goes on from the newest whole checkpoint.
set -euo pipefail
exec kwise train recipes/starling_rm_7b.toml "$@"
