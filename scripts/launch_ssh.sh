#!/bin/bash
# Trains on several machines that ssh reaches without a password, each with the same number of GPUs:
#
#   scripts/launch_ssh.sh HOSTS pretrain|finetune CONFIG DATA_ROOT OUTPUT [--section.field value ...]
#   scripts/launch_ssh.sh "node1 node2 node3" pretrain mae_k400_base /data/kinetics400 runs/mae --run.seed 1
#
# The first host is where they meet, by this name. Ctrl-C, or SIGTERM to this script, lets the run save and end, and the
# same command resumes it; tmux or nohup keeps it when you log out. Settings, by environment variable:
#
#   GPUS=8                        processes on each machine; by default "gpu", as many as it has GPUs
#   PORT=29500                    of the first host, free and open to the others
#   SETUP=". venv/bin/activate"   what every machine does before, for instance to find torchrun
#
# Every machine must have this folder at the same path, and see OUTPUT: a shared file system is the simplest.

if [ $# -lt 5 ]; then
    sed -n 's/^# \{0,1\}//; 2,14p' "$0" >&2
    exit 2
fi
read -ra hosts <<< "$1"
job=$2 config=$3 root=$4 output=$5
shift 5
run_id=hiera-video-$$-$RANDOM # tells this run from others on the same machines
# Quoted once more, since ssh hands a single line to a shell there.
training=$(printf '%q ' -m hiera_video.cli "$job" --config "$config" --data.root "$root" --run.output "$output" "$@")

for host in "${hosts[@]}"; do
    # The shell there notes torchrun's number while it runs; torchrun leaves its processes 100 s (not 30) for saving.
    ssh -o BatchMode=yes "$host" "cd $(printf %q "$PWD") && ${SETUP:-true} || exit 1; \
        OMP_NUM_THREADS=1 TORCH_ELASTIC_SHUTDOWN_TIMEOUT=100 torchrun \
        --nnodes ${#hosts[@]} --nproc_per_node ${GPUS:-gpu} --rdzv_id $run_id \
        --rdzv_backend c10d --rdzv_endpoint ${hosts[0]}:${PORT:-29500} $training & \
        echo \$! > /tmp/$run_id; wait \$!; code=\$?; rm /tmp/$run_id; exit \$code" < /dev/null &
done
stop() { # once: torchrun would take a second signal for impatience
    trap '' TERM INT
    [ -n "${stopped:-}" ] || for host in "${hosts[@]}"; do
        ssh -o BatchMode=yes "$host" "kill -TERM \$(cat /tmp/$run_id)" 2> /dev/null
    done
    stopped=yes
}
trap stop TERM INT

code=0
for _ in "${hosts[@]}"; do
    wait -n || { ended=$?; [ "$code" -ne 0 ] || code=$ended; stop; } # the others would wait for one that fails
done
wait
exit "$code"
