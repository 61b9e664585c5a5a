#!/bin/sh
# Runs a sweep from inside the cluster: docker/sweep.sh search_spaces/rece.yaml [more arguments of sweeps.run].
# A Ray driver speaks to a raylet on its own machine, so this container joins as a node that offers nothing.
set -eu
: "${RAY_HEAD:?expected the address of the Ray head, host:port}"
: "${TRACKING_URI:?expected the address of the MLflow server}"

ray start --address "$RAY_HEAD" --num-cpus 0 --num-gpus 0 --object-store-memory 1000000000 --log-color false >&2
exec python -m sweeps.run "$@" --address "$RAY_HEAD" --storage /runs --tracking-uri "$TRACKING_URI"
