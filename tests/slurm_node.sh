#!/usr/bin/env bash
# One machine as a whole Slurm cluster, for tests: all its files in one folder, /etc untouched, nothing left after `down`.
#     tests/slurm_node.sh up FOLDER      then: export SLURM_CONF=FOLDER/slurm.conf
#     tests/slurm_node.sh down FOLDER
# Needs root and the packages slurm-wlm and munge. Ports are chosen by the caller (SLURM_NODE_PORT, and the one above).
set -euo pipefail
what=$1; at=$2; port=${SLURM_NODE_PORT:-16817}; host=$(hostname -s); cores=$(env -u OMP_NUM_THREADS nproc)
stop() { # a daemon by its pid file, and wait until it is gone
  local pid; pid=$(cat "$1" 2>/dev/null) || return 0
  kill "$pid" 2>/dev/null || return 0
  for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null || break; sleep .1; done
}
if [ "$what" = down ]; then
  export SLURM_CONF=$at/slurm.conf   # first the jobs: their steps would outlive the daemons
  scancel --me 2>/dev/null || true
  for _ in $(seq 100); do [ -z "$(squeue -h 2>/dev/null)" ] && break; sleep .2; done
  for f in slurmd slurmctld munged; do stop "$at/$f.pid"; done
  exit 0
fi
mkdir -p "$at/state" "$at/spool"; chmod 755 "$at"
head -c 1024 /dev/urandom > "$at/munge.key"; chmod 400 "$at/munge.key"
cat > "$at/slurm.conf" <<C
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port+1))
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$at/munge.socket,cred_expire=2
StateSaveLocation=$at/state
SlurmdSpoolDir=$at/spool
SlurmctldPidFile=$at/slurmctld.pid
SlurmdPidFile=$at/slurmd.pid
SlurmctldLogFile=$at/slurmctld.log
SlurmdLogFile=$at/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=1
MinJobAge=300
ReturnToService=2
KillWait=10
MpiDefault=none
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cores RealMemory=$(( $(awk '/MemTotal/{print $2}' /proc/meminfo)/1024/2 )) State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
C
export SLURM_CONF=$at/slurm.conf
munged --force --key-file="$at/munge.key" --socket="$at/munge.socket" --pid-file="$at/munged.pid" --log-file="$at/munged.log" --seed-file="$at/munged.seed"
slurmctld -f "$SLURM_CONF"; slurmd -f "$SLURM_CONF"
for _ in $(seq 100); do sinfo -h -o %T 2>/dev/null | grep -qE 'idle|mixed' && exit 0; sleep .3; done
echo "the node did not come up:"; tail -n 20 "$at"/*.log; exit 1
