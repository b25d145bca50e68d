#!/bin/bash
# A SLURM cluster of one node on this machine, for tests: munged, slurmctld and slurmd, started by hand as root.
#
#     bash tests/cluster/one_node.sh start FOLDER      writes FOLDER/slurm.conf; use it with SLURM_CONF=FOLDER/slurm.conf
#     bash tests/cluster/one_node.sh stop FOLDER
#
# The node claims four cores whatever the machine has, so that jobs of several processes start.
# Needs root and Debian's packages slurm-wlm and munge (`install` in place of `start` fetches them with apt-get). Everything lies in
# FOLDER, also keys, logs and process numbers, and nothing is left running after `stop`. Not for work: one user, no accounting.
set -euo pipefail
action=${1:?start, stop or install}

if [ "$action" = install ]; then
    { apt-get install -y -qq slurm-wlm munge || { apt-get update -qq && apt-get install -y -qq slurm-wlm munge; }; } >/dev/null
    exit
fi

folder=${2:?a folder}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)

stop() {
    local name pid
    if [ -s "$folder/slurmctld.pid" ]; then
        export SLURM_CONF="$folder/slurm.conf"
        scancel --user="$(id -un)" 2>/dev/null || true
        for _ in $(seq 400); do # until the last job is put away: its keepers would outlive the cluster
            [ -n "$(squeue --noheader 2>/dev/null)" ] || break
            sleep 0.1
        done
    fi
    for name in slurmd slurmctld munged; do
        [ -s "$folder/$name.pid" ] || continue
        pid=$(cat "$folder/$name.pid")
        kill "$pid" 2>/dev/null || true
        for _ in $(seq 50); do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.1
        done
        kill -9 "$pid" 2>/dev/null || true
        rm -f "$folder/$name.pid"
    done
}

start() {
    local host port
    host=$(hostname -s)
    port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
    mkdir -p "$folder/state" "$folder/spool"
    chmod 755 "$folder"
    head -c 1024 /dev/urandom >"$folder/munge.key"
    chmod 400 "$folder/munge.key"
    # --force: the key belongs to root, and the folders above may be open to a group.
    munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
        --log-file="$folder/munged.log" --seed-file="$folder/munge.seed"
    cat >"$folder/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket,cred_expire=5
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SwitchType=switch/none
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2
JobRequeue=1
KillWait=20
ReturnToService=2
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmdParameters=config_overrides
SlurmdSpoolDir=$folder/spool
StateSaveLocation=$folder/state
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
NodeName=$host NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
CONF
    export SLURM_CONF="$folder/slurm.conf"
    slurmctld
    slurmd -N "$host"
    for _ in $(seq 100); do
        [ "$(sinfo --noheader --format=%T 2>/dev/null)" = idle ] && return
        sleep 0.2
    done
    echo "the node did not become idle: $(sinfo --noheader --format='%T %E' 2>&1); logs in $folder" >&2
    exit 1
}

case $action in
    start) trap 'stop' ERR; start ;;
    stop) stop ;;
    *) echo "expected start, stop or install, found $action" >&2; exit 2 ;;
esac
