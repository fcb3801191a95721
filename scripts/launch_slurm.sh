#!/bin/bash
# Trains on several nodes of a Slurm cluster. From the folder that output paths count from:
#
#   sbatch scripts/launch_slurm.sh pretrain|finetune CONFIG DATA_ROOT OUTPUT [--section.field value ...]
#   sbatch scripts/launch_slurm.sh pretrain mae_k400_base /data/kinetics400 runs/mae --data.num_workers 10
#
# Shortly before its time is over the run saves, goes back into the queue, and resumes when it is started again: the
# same command goes on from what it finds in OUTPUT, which every node must see. For good it is stopped by scancel.
#
#SBATCH --job-name=hiera-video
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1     # one torchrun, which starts a process for each GPU
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96      # 12 for each GPU: loader workers and their decoders
#SBATCH --time=24:00:00         # of one stay in the queue, not of the run
#SBATCH --signal=B:TERM@120     # 120 s before the end, to this script alone; on preemption too where the cluster
#SBATCH --requeue               # has SlurmctldParameters=preempt_send_user_signal. A preempted job comes back.
#SBATCH --open-mode=append      # a resumed run goes on in the same log
#SBATCH --output=%x-%j.log      # beside where sbatch was called

if [ $# -lt 4 ] || [ -z "${SLURM_JOB_ID:-}" ]; then
    sed -n 's/^# \{0,1\}//; 2,8p' "$0" >&2
    exit 2
fi
job=$1 config=$2 root=$3 output=$4
shift 4
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1) # where the nodes meet
port=$((10000 + SLURM_JOB_ID % 20000))                            # another one for every job
export OMP_NUM_THREADS=1                  # loader workers are many: one thread each
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=100 # seconds that torchrun leaves its processes for saving, 30 by default

# shellcheck disable=SC2329  # trap calls it
stop() { scancel --signal=TERM "$SLURM_JOB_ID" && stopped=yes; } # fails where the job is being ended for good
trap stop TERM

# The first node that has saved ends before the others: they have 100 s more.
srun --kill-on-bad-exit=0 --wait=100 torchrun \
    --nnodes "$SLURM_NNODES" --nproc_per_node "${SLURM_GPUS_ON_NODE:-1}" \
    --rdzv_id "$SLURM_JOB_ID" --rdzv_backend c10d --rdzv_endpoint "$head:$port" \
    -m hiera_video.cli "$job" --config "$config" --data.root "$root" --run.output "$output" "$@" &
step=$!
wait "$step" # in the background, since bash runs a trap only while it waits
code=$?
[ -z "${stopped:-}" ] || { wait "$step"; scontrol requeue "$SLURM_JOB_ID"; }
exit "$code"
