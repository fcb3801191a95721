#!/usr/bin/env bash
# Builds the wheel, installs it with this Python (and torch, if said), and does each job in an empty folder, far from the
# sources:
#
#     scripts/check_wheel.sh python3.10 "torch==2.6.*" "torchvision==0.21.*"
#     scripts/check_wheel.sh python3.13
set -euo pipefail
sources=$(cd "$(dirname "$0")/.." && pwd)
python=$1
shift
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" -m venv "$work/venv"
export PATH="$work/venv/bin:$PATH"
pip install --quiet hatchling "$@"
(cd "$sources" && python -m hatchling build -t wheel -d "$work/wheel" > /dev/null)
pip install --quiet "$work"/wheel/*.whl
mkdir -p "$work/jobs/videos/one" "$work/jobs/videos/two"
cp "$sources/docs/zoom_in.mp4" "$work/jobs/clip.mp4"
cd "$work/jobs"
for class in one two; do for number in 1 2 3; do cp clip.mp4 "videos/$class/$number.mp4"; done; done

python -c 'import sys, torch, hiera_video; print(sys.version.split()[0], torch.__version__, hiera_video.__file__)'
hiera-video classify clip.mp4 --top-k 1
hiera-video models | tail -1
hiera-video data check videos > /dev/null
hiera-video finetune --train videos --val videos --output mine --run.duration 2pass --data.num_workers 1
hiera-video evaluate --val videos --model mine --output mine/val
hiera-video classify clip.mp4 --model mine --top-k 1
hiera-video pretrain --config creatures_mae --output mae --print-config > /dev/null
hiera-video extract clip.mp4 --output features
echo "all jobs were done"
