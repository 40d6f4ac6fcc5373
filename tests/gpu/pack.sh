#!/usr/bin/env bash
# tests/gpu/pack.sh [FOLDER]: builds what tests/gpu/run.sh tries on a machine with a GPU, and leaves it in FOLDER/tl-gpu.tar.gz
# (target/gpu without it). It needs what the build needs, Rust and a C compiler; no GPU, no CUDA. There:
#
#   tar xzf tl-gpu.tar.gz && tl-gpu/run.sh gpu.json
#
# That machine's C library has to be this one's age or newer. What is packed may have 60 MiB at most, so that it can be carried.
set -euo pipefail
folder=$(realpath -m "${1:-$(dirname "$0")/../../target/gpu}")
cd "$(dirname "$0")/../.."
most=60
packages=(-p tl-worker -p tl-client -p tl-engine -p nccl-rs --features "tl-worker/cuda,tl-client/cuda,tl-engine/cuda")
rm -rf "$folder/tl-gpu"
mkdir -p "$folder/tl-gpu"
# Takes a program along, without what only a debugger reads.
take() {
  strip --strip-all -o "$folder/tl-gpu/$2" "$1"
}
cargo build --release --locked "${packages[@]}" --bin tl-worker --bin tlctl
for program in tl-worker tlctl; do
  take "${CARGO_TARGET_DIR:-target}/release/$program" "$program"
done
# Cargo says where it has put tests, and under which hash.
cargo test --release --locked "${packages[@]}" --no-run --test gpu --test processes \
  --message-format json-render-diagnostics >"$folder/built.json"
for test in gpu=operations-tests processes=nccl-tests; do
  built=$(sed -n "s/.*\"executable\":\"\\([^\"]*\\/${test%=*}-[0-9a-f]*\\)\".*/\\1/p" "$folder/built.json" | tail -n 1)
  if [ -z "$built" ]; then
    echo "cargo has built no test ${test%=*}" >&2
    exit 1
  fi
  take "$built" "${test#*=}"
done
cp tests/gpu/run.sh client/recipes/quickstart.toml client/recipes/quickstart-net.toml "$folder/tl-gpu/"
git describe --always --dirty --abbrev=40 --exclude '*' >"$folder/tl-gpu/commit"
tar czf "$folder/tl-gpu.tar.gz" -C "$folder" tl-gpu
ls -l "$folder/tl-gpu"
size=$(($(wc -c <"$folder/tl-gpu.tar.gz") >> 20))
echo "$folder/tl-gpu.tar.gz: $size MiB"
if [ "$size" -ge "$most" ]; then
  echo "that is more than $most MiB" >&2
  exit 1
fi
