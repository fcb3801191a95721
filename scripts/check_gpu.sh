#!/usr/bin/env bash
# Everything that is to be known of a GPU, in under 9 minutes, on a machine with torch, timm, transformers, accelerate
# and pytest. What else is needed travels as wheels in .whl/ (35 MB, beside 17 MB of this checkout; decord2, of 27 MB
# more, is not needed: PyAV decodes), fetched on a machine with a network:
#
#     python3 -m pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
#         --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64 \
#         --platform manylinux2014_x86_64 -d .whl av==18.1.0 hiera-transformer==0.1.4
#
# Then, there:
#
#     scripts/check_gpu.sh                    # writes gpu_check/check_gpu.json and check_gpu.md, or into $OUT
#     scripts/check_gpu.sh --device cpu       # the same with tiny models, without a GPU
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -d .whl ]; then
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" .whl/*.whl
  export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
python3 scripts/check_gpu.py --output "${OUT:-gpu_check}" "$@"
