#!/usr/bin/env bash
# A whole cluster on one Linux machine, without containers: PostgreSQL, an S3-compatible store, an MLflow server, a Ray
# head and workers, each on a "machine" of its own, which is a network namespace with its own address and scratch folder.
# For trying things out and for the tests, which pull plugs: what it runs is what infra/compose.yaml runs.
#
#   sudo infra/local-cluster.sh up              start it all (NUM_WORKERS=2, CPUS_PER_NODE=1)
#   sudo infra/local-cluster.sh exec CMD...     run a command, or `bash`, on the machine `home`, from which jobs are
#                                               submitted: as the user who called sudo, with all addresses and keys
#   sudo infra/local-cluster.sh stop PART       pull the plug: database | store | tracking | head | worker1 | worker2 ...
#   sudo infra/local-cluster.sh start PART
#   sudo infra/local-cluster.sh cut PART; sudo infra/local-cluster.sh mend PART      its network cable
#   touch $CLUSTER_DIR/store_refuses_writes     until it is removed
#   sudo infra/local-cluster.sh down
#
# CLUSTER_DIR (default runs/cluster) holds data, logs, and the keys in `env`, drawn at the first `up`.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
dir=$(realpath -m "${CLUSTER_DIR:-$root/runs/cluster}")
bin=${CLUSTER_BIN:-$root/.venv/bin}
num_workers=${NUM_WORKERS:-2}
cpus=${CPUS_PER_NODE:-1}
name=sg$(printf %s "$dir" | cksum | cut -c1-5) # of the namespaces: those of another folder's cluster are let be
scratch=/tmp/stackgan-$(id -u)                 # of pipeline/tracking.py; each machine has its own behind this name
export RAY_USAGE_STATS_ENABLED=0 RAY_DISABLE_IMPORT_WARNING=1

parts() { echo database; echo store; echo tracking; echo head; for n in $(seq "$num_workers"); do echo "worker$n"; done; }

address_of() {
  case $1 in
    home) echo 10.77.0.2 ;; database) echo 10.77.0.3 ;; store) echo 10.77.0.4 ;; tracking) echo 10.77.0.5 ;;
    head) echo 10.77.0.6 ;; worker*) echo "10.77.0.$((6 + ${1#worker}))" ;;
    *) echo "no such part: $1" >&2; exit 2 ;;
  esac
}

draw_keys() {
  [ -n "${CLUSTER_DIR:-}" ] || install -d -o "${SUDO_UID:-0}" -g "${SUDO_GID:-0}" "$root/runs"
  mkdir -p "$dir"
  [ -s "$dir/env" ] && return
  local key; key() { python3 -c 'import secrets; print(secrets.token_hex(16))'; }
  (umask 077; cat >"$dir/env" <<END
export RAY_API_SERVER_ADDRESS=http://$(address_of head):8265
export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN=$(key)
export MLFLOW_TRACKING_URI=http://$(address_of tracking):5000
export AWS_ENDPOINT_URL=http://$(address_of store):9000
export AWS_ACCESS_KEY_ID=$(key)
export AWS_SECRET_ACCESS_KEY=$(key)
export AWS_DEFAULT_REGION=us-east-1
END
  key >"$dir/database_password")
}

machine() { # plug a namespace into the switch
  local part=$1 ns=$name-$1
  ip netns list | grep -qw "$ns" && return
  ip netns add "$ns"
  ip -n "$ns" link set lo up
  ip -n "$name-switch" link add "$part" type veth peer name eth0 netns "$ns"
  ip -n "$name-switch" link set "$part" master br0 up
  ip -n "$ns" addr add "$(address_of "$part")/24" dev eth0
  ip -n "$ns" link set eth0 up
}

network() {
  ip netns list | grep -qw "$name-switch" || {
    ip netns add "$name-switch"
    ip -n "$name-switch" link set lo up
    ip -n "$name-switch" link add br0 type bridge
    ip -n "$name-switch" link set br0 up
  }
  machine home
  for part in $(parts); do machine "$part"; done
}

on() { # run a command on a machine, which has its own scratch folder and its own folder of Ray's
  local part=$1; shift
  mkdir -p "$dir/$part/ray"
  mkdir -p -m 1777 /tmp/ray # whoever comes after us starts a Ray of their own there
  mkdir -p -m 700 "$dir/$part/scratch" "$scratch" # as scratch_dir() makes it
  ip netns exec "$name-$part" unshare --mount bash -c 'mount --bind "$1/scratch" "$2"; mount --bind "$1/ray" /tmp/ray
    shift 2; exec "$@"' _ "$dir/$part" "$scratch" "$@"
}

wait_for() { # ... until a command succeeds
  local what=$1 deadline=$((SECONDS + 180)); shift
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $deadline ] || { echo "$what did not start; see $dir/$what.log" >&2; exit 1; }
    sleep 0.2
  done
}

opens() { on home bash -c "exec 3<>/dev/tcp/$1/$2"; }

start() {
  local part=$1 here; here=$(address_of "$1")
  case $part in
    database)
      local pg; pg=$(ls -d /usr/lib/postgresql/*/bin | tail -1)
      install -d -o postgres -m 700 "$dir/postgres"
      if [ ! -e "$dir/postgres/PG_VERSION" ]; then
        install -o postgres -m 600 "$dir/database_password" "$dir/password"
        runuser -u postgres -- "$pg/initdb" --pgdata "$dir/postgres" --username mlflow --auth scram-sha-256 \
          --pwfile "$dir/password" >/dev/null
        rm "$dir/password"
        echo "host all all 10.77.0.0/24 scram-sha-256" >>"$dir/postgres/pg_hba.conf"
      fi
      rm -f "$dir/postgres/postmaster.pid"
      on database runuser -u postgres -- "$pg/postgres" -D "$dir/postgres" -c listen_addresses="$here" \
        -c unix_socket_directories= >>"$dir/$part.log" 2>&1 &
      wait_for database opens "$here" 5432 ;;
    store)
      on store "$bin/python" "$root/infra/local_store.py" "$here" 9000 "$dir/store_refuses_writes" >>"$dir/$part.log" 2>&1 &
      wait_for store opens "$here" 9000
      on home python3 -c "import urllib.request as r; r.urlopen(r.Request('http://$here:9000/stackgan', method='PUT'))" ;;
    tracking)
      MLFLOW_BACKEND_STORE_URI="postgresql+psycopg://mlflow:$(cat "$dir/database_password")@$(address_of database)/postgres" \
        MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false \
        on tracking "$bin/mlflow" server --host "$here" --port 5000 --workers 2 --artifacts-destination s3://stackgan/mlflow \
        --allowed-hosts "$here:5000" >>"$dir/$part.log" 2>&1 &
      wait_for tracking opens "$here" 5000 ;;
    head)
      on head "$bin/ray" start --head --node-ip-address "$here" --dashboard-host "$here" --num-cpus "$cpus" --num-gpus 0 \
        --disable-usage-stats --block >>"$dir/$part.log" 2>&1 &
      wait_for head opens "$here" 8265 ;;
    worker*) # a worker whose head is gone ends after a minute: like any service, it is started again
      on "$part" bash -c 'while :; do "$@"; sleep 1; done' _ "$bin/ray" start --address "$(address_of head):6379" \
        --node-ip-address "$here" --num-cpus "$cpus" --num-gpus 0 --block >>"$dir/$part.log" 2>&1 & ;;
  esac
}

start_all() { # at the same time
  local pids=() failed=0
  for part in "$@"; do start "$part" & pids+=($!); done
  for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
  [ $failed = 0 ] || exit 1
}

stop() { # every process of the machine at once, as when its power fails
  for _ in 1 2 3; do ip netns pids "$name-$1" 2>/dev/null | xargs -r kill -9 2>/dev/null || true; done
}

command=${1:-help}; shift || true
case $command in up | exec | start | stop | cut | mend | down) ;; *) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; exit 2 ;; esac
[ "$(id -u)" = 0 ] || { echo "network namespaces need root: run it with sudo" >&2; exit 1; }
if [ "$command" != down ]; then draw_keys; . "$dir/env"; fi
export RUN_STORAGE=s3://stackgan/runs PATH="$bin:$PATH"
case $command in
  up)
    network
    start_all database store head
    start_all tracking $(parts | grep worker)
    echo "cluster at $RAY_API_SERVER_ADDRESS, MLflow at $MLFLOW_TRACKING_URI; come in by $0 exec bash" >&2 ;;
  exec)
    if [ -n "${SUDO_USER:-}" ]; then
      install -d -o "$SUDO_UID" -g "$SUDO_GID" "$dir/home" "$dir/home/ray"
      set -- runuser -u "$SUDO_USER" -- "$@"
    fi
    on home "$@" ;;
  start) start "$1" ;;
  stop) stop "$1" ;;
  cut) ip -n "$name-switch" link set "$1" down ;;
  mend) ip -n "$name-switch" link set "$1" up ;;
  down)
    for part in $(parts) home; do stop "$part"; done
    for part in $(parts) home switch; do ip netns del "$name-$part" 2>/dev/null || true; done ;;
esac
