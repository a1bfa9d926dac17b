#!/usr/bin/env bash
# A SLURM of one node with two cores on this machine, for tests/test_slurm.py. It needs root and Debian.
#
#     tests/slurm_node.sh install         by apt-get, where the programs are missing
#     tests/slurm_node.sh start DIR       then export SLURM_CONF=DIR/slurm.conf
#     tests/slurm_node.sh stop DIR
#
# No accounting and no cgroups, so a container will do. Jobs on partition `high` pre-empt those on `low`.
set -euo pipefail

PATH=$PATH:/usr/sbin

install() {
    [ "$(id -u)" = 0 ] || { echo "no SLURM for the tests: it needs root" >&2; return 1; }
    type slurmctld slurmd sbatch munged &>/dev/null && return
    type apt-get &>/dev/null || { echo "no SLURM for the tests: it comes by apt-get" >&2; return 1; }
    export DEBIAN_FRONTEND=noninteractive
    timeout 120 apt-get update -qq >/dev/null || true            # what apt knows already may do
    timeout 300 apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge >/dev/null
}

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'; }

configure() {
    local host; host=$(uname -n | cut -d. -f1)
    cat >"$1/slurm.conf" <<CONF
ClusterName=nanoscale_test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$1/munge.socket,cred_expire=5
CommunicationParameters=NoAddrCache
StateSaveLocation=$1/state
SlurmdSpoolDir=$1/spool
SlurmctldPidFile=$1/slurmctld.pid
SlurmdPidFile=$1/slurmd.pid
SlurmctldLogFile=$1/slurmctld.log
SlurmdLogFile=$1/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=20
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=low Nodes=$host Default=YES MaxTime=60 PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=high Nodes=$host MaxTime=60 PriorityTier=2 PreemptMode=OFF
CONF
    echo "CgroupAutomount=no" >"$1/cgroup.conf"
}

start() {
    mkdir -p "$1/state" "$1/spool"
    chmod 711 "$1"                                     # munged trusts no directory that others can write
    configure "$1"
    (umask 077; head -c 1024 /dev/urandom >"$1/munge.key")
    munged --key-file="$1/munge.key" --socket="$1/munge.socket" --pid-file="$1/munged.pid" \
           --log-file="$1/munged.log" --seed-file="$1/munged.seed"
    export SLURM_CONF="$1/slurm.conf"
    timeout 30 slurmctld -c
    timeout 30 slurmd -c
    for _ in $(seq 40); do
        timeout 10 sinfo -h -o %T 2>/dev/null | grep -q idle && return
        sleep 0.5
    done
    tail -n 5 "$1"/*.log >&2
    return 1
}

stop() {
    export SLURM_CONF="$1/slurm.conf"
    timeout 20 scancel --user=root 2>/dev/null || true
    for _ in $(seq 20); do
        [ -z "$(timeout 10 squeue -h 2>/dev/null)" ] && break
        sleep 1
    done
    for name in slurmd slurmctld munged; do
        pid=$(cat "$1/$name.pid" 2>/dev/null) || continue
        kill "$pid" 2>/dev/null || continue
        for _ in $(seq 50); do                         # it still writes in DIR
            [ -d "/proc/$pid" ] && ! grep -q "^State:.Z" "/proc/$pid/status" 2>/dev/null || break
            sleep 0.1
        done
    done
}

"$@"
