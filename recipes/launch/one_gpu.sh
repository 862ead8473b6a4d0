#!/bin/bash
# One GPU of 80 GB. The same command again goes on from the newest whole checkpoint.
set -euo pipefail
exec kwise train recipes/starling_rm_7b.toml "$@"
