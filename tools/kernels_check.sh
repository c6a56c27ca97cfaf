#!/usr/bin/env bash
# make kernels-check: the kernels' own tests under sanitizers, then flamvid._C with its CUDA side,
# compiled and linked by nvcc where that is to be had. Needs no GPU. First argument: python.
set -euo pipefail
python=${1:-python}
root=$(cd "$(dirname "$0")/.." && pwd)
PATH=$(dirname "$("$python" -c 'import sys; print(sys.executable)')"):$PATH

cmake -S "$root" -B "$root/build/check" -G Ninja -DFLAMVID_TESTS=ON >/dev/null
cmake --build "$root/build/check"
ctest --test-dir "$root/build/check" --output-on-failure

if ! command -v nvcc >/dev/null; then
  echo "kernels-check: no nvcc, so the CUDA kernels are not compiled here"
  exit 0
fi
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
# 9.0 only: one architecture says whether the sources compile.
cd "$root"
CUDAARCHS=90-real FLAMVID_BUILD_KERNELS=1 FLAMVID_BUILD_CUDA=1 \
  "$python" setup.py --quiet build_ext --build-lib "$out"
PYTHONPATH=$root "$python" - "$out/flamvid" <<'PY'
import sys

import flamvid

flamvid.__path__.insert(0, sys.argv[1])  # this flamvid._C and no other
from flamvid.ops import CUDA_OPERATIONS, OPERATIONS, implementation

for device, theirs in {"cpu": OPERATIONS, "cuda": CUDA_OPERATIONS}.items():
    served = [op for op in OPERATIONS if implementation(op, device).name == "kernel"]
    assert served == list(theirs), (device, served)
print("kernels-check: flamvid._C with CUDA compiles, links, loads and registers")
PY
