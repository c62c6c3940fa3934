#!/usr/bin/env bash
# A sweep on the nodes of one Slurm job. In the project's folder, on a disk that all nodes share, after `make setup`:
#   sbatch docs/cluster/slurm.sh configs/cluster.yaml first
# More nodes, GPUs or time are options of sbatch, as in `sbatch --nodes=8 --gpus-per-node=4 docs/cluster/slurm.sh …`.
# The job writes checkpoints before its time limit and requeues itself, until the sweep's budget is met.
#SBATCH --job-name=nuanced-speech
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
# Whole nodes: no other user's processes can reach Ray's sockets, and `ray stop` ends no other job's Ray.
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --gpus-per-node=1
#SBATCH --time=04:00:00
# A node that dies does not end the job: its trials continue on another one.
#SBATCH --no-kill
#SBATCH --requeue
#SBATCH --signal=B:INT@120
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

config=${1:?usage: sbatch docs/cluster/slurm.sh CONFIG [NAME]}
name=${2:-$(basename "${config%.*}")}
cd "$SLURM_SUBMIT_DIR"
bin=${BIN:-.venv/bin}
outputs=${OUTPUTS:-outputs}
join_seconds=${JOIN_SECONDS:-600}

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
port=$((20000 + SLURM_JOB_ID % 10000))
address=$head:$port

# One folder for the token, which only its owner can enter, seen by all nodes; and one on each node for Ray's own files.
run=$(mktemp -d "$PWD/.ray-$SLURM_JOB_ID-XXXXXX")
(umask 077 && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' > "$run/auth_token")
unset RAY_AUTH_TOKEN # it would take precedence over the file
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$run/auth_token SLURM_EXPORT_ENV=ALL
scratch=/tmp/nuanced-$SLURM_JOB_ID

# Run one step on one node, concurrently with others there: on NODE COMMAND…
on() {
    local node=$1
    shift
    srun --overlap --nodes=1 --ntasks=1 --nodelist="$node" --cpu-bind=none --input=none "$@"
}

# Run Ray on one node until it is stopped: ray_on NODE OPTION…
ray_on() {
    local node=$1
    shift
    # shellcheck disable=SC2016 # expanded on the node
    on "$node" bash -c 'scratch=$1; shift; mkdir -p -m 700 "$scratch"; ulimit -n "$(ulimit -Hn)"
        exec "$@" --num-cpus="$SLURM_CPUS_ON_NODE" --temp-dir="$scratch/ray" --disable-usage-stats --block' \
        ray-on "$scratch" "$bin/ray" start "$@"
}

finish() {
    local stops=()
    trap '' INT TERM
    for node in "${nodes[@]}"; do
        # shellcheck disable=SC2016
        on "$node" bash -c 'timeout 60 "$1" stop --force; rm -rf "$2"' ray-off "$bin/ray" "$scratch" &
        stops+=($!)
    done
    wait "${stops[@]}" || true
    rm -rf "$run"
}

fail() {
    echo "$1" >&2
    exit 1
}

# Slurm sends INT before the time limit, and TERM to end the job: the sweep writes checkpoints and stops.
signals=0
again=false
driver=
# shellcheck disable=SC2317 # traps call it
forward() {
    signals=$((signals + 1))
    [ "$1" != INT ] || again=true
    if [ -n "$driver" ]; then kill -INT "$driver" 2>/dev/null || true; else exit 130; fi
}
trap finish EXIT
trap 'forward INT' INT
trap 'forward TERM' TERM

ray_on "$head" --head --port="$port" --dashboard-host=127.0.0.1 &
head_step=$!
alive() {
    timeout 20 "$bin/ray" status --address "$address" 2>/dev/null | grep -c '^ *[0-9][0-9]* node_' || true
}
joined() {
    until [ "$(alive)" -ge "$1" ]; do
        kill -0 "$head_step" 2>/dev/null || fail "Ray ended on $head; its message is above"
        [ "$SECONDS" -lt "$join_seconds" ] || fail "after $SECONDS s $(alive) of $1 nodes have joined"
        sleep 2
    done
}
joined 1
for node in "${nodes[@]:1}"; do
    ray_on "$node" --address="$address" &
done
joined "${#nodes[@]}"

if [ -f "$outputs/$name/sweep.yaml" ]; then
    sweep=(--resume "$outputs/$name")
else
    sweep=("$config" --name "$name" --outputs "$outputs")
fi
set -m # without job control a background command would ignore SIGINT
"$bin/nuanced" sweep "${sweep[@]}" --address "$address" &
driver=$!
set +m
while
    seen=$signals
    code=0
    wait "$driver" || code=$?
    [ "$seen" != "$signals" ] # a signal ended the wait, but not the sweep
do :; done

trap - EXIT
finish
if [ "$again" = true ] && [ "$code" = 130 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
