#!/usr/bin/env bash
# tests/gpu/pack.sh [FOLDER]: builds what tests/gpu/run.sh tries on a machine with a GPU, and leaves it in FOLDER/tl-gpu.tar.xz
# (target/gpu without it). It needs what the build needs, Rust and a C compiler, and xz; no GPU, no CUDA. There:
#
#   tar xJf tl-gpu.tar.xz && tl-gpu/run.sh gpu.json
#
# or, without an xz there, `python3 -m tarfile -e tl-gpu.tar.xz` first.
# That machine's C library has to be this one's age or newer. Photos and weights are those of TL_TEST_DATA, or of ../shared/data
# beside the checkout; `none` goes without them, and so does a machine that has none. What is packed may have 57 MiB at most, so
# that it can be carried with a checkout beside it. An NCCL that lets two ranks share a GPU does not fit: TL_NCCL of run.sh names
# one that came otherwise.
set -euo pipefail
folder=$(realpath -m "${1:-$(dirname "$0")/../../target/gpu}")
cd "$(dirname "$0")/../.."
most=57
packages=(
  -p tl-worker -p tl-client -p tl-engine -p nccl-rs -p tl-tests -p tl-bench
  --features "tl-worker/cuda,tl-client/cuda,tl-engine/cuda,tl-tests/cuda,tl-bench/cuda"
)
command -v xz >/dev/null || {
  echo "xz is missing: install xz-utils" >&2
  exit 1
}
data=$(realpath -m "${TL_TEST_DATA:-../shared/data}")
rm -rf "$folder/tl-gpu"
mkdir -p "$folder/tl-gpu"
# Takes a program along, without what only a debugger reads.
take() {
  strip --strip-all -o "$folder/tl-gpu/$2" "$1"
}
cargo build --release --locked "${packages[@]}" --bin tl-worker --bin tlctl --bin tl-bench
for program in tl-worker tlctl tl-bench; do
  take "${CARGO_TARGET_DIR:-target}/release/$program" "$program"
done
# Cargo says where it has put tests, and under which hash.
cargo test --release --locked "${packages[@]}" --no-run --test gpu --test processes --test gpu_job \
  --message-format json-render-diagnostics >"$folder/built.json"
for test in gpu=operations-tests processes=nccl-tests gpu_job=jobs-tests; do
  built=$(sed -n "s/.*\"executable\":\"\\([^\"]*\\/${test%=*}-[0-9a-f]*\\)\".*/\\1/p" "$folder/built.json" | tail -n 1)
  if [ -z "$built" ]; then
    echo "cargo has built no test ${test%=*}" >&2
    exit 1
  fi
  take "$built" "${test#*=}"
done
mkdir "$folder/tl-gpu/bench"
cp tests/gpu/run.sh "$folder/tl-gpu/"
cp tests/bench/run tests/bench/theirs.py "$folder/tl-gpu/bench/"
if [ -d "$data/hymenoptera/train" ]; then
  mkdir "$folder/tl-gpu/data"
  # They may be read-only where they lie, and are to be removed here.
  cp -r --no-preserve=mode "$data/hymenoptera" "$data/mobilenetv2" "$folder/tl-gpu/data/"
else
  echo "without photos and weights, which are not in $data" >&2
fi
git describe --always --dirty --abbrev=40 --exclude '*' >"$folder/tl-gpu/commit"
# gzip would leave a third more, which is too much.
tar cf - -C "$folder" tl-gpu | xz -T0 >"$folder/tl-gpu.tar.xz"
ls -l "$folder/tl-gpu"
size=$(($(wc -c <"$folder/tl-gpu.tar.xz") >> 20))
echo "$folder/tl-gpu.tar.xz: $size MiB"
if [ "$size" -ge "$most" ]; then
  echo "that is more than $most MiB" >&2
  exit 1
fi
