#!/usr/bin/env bash
# tests/gpu/run.sh [FILE]: tries on a real GPU what all other tests try without one, and writes what came of it to FILE
# (gpu.json without it).
#
# For a machine with a GPU and without Rust, sources or a network. The programs come from tests/gpu/pack.sh, run elsewhere; they
# lie beside this script, or in TL_GPU_PROGRAMS. NVIDIA's libraries are the machine's own: those in NVLIB_PATH, then those of the
# wheels that its python3 has, then those that the system knows. Parts:
#
#   doctor        `tl-worker doctor`: the machine, its libraries, copies, a product, a step of training, an all-reduce of one
#                 rank through NCCL
#   operations    worker/engine/tests/gpu: every operation of training against the layers of the CPU
#   nccl_one      worker/nccl/tests/processes.rs: one rank
#   nccl_hosts    two ranks of one GPU, which NCCL takes for two hosts; one is killed, the other goes on
#   nccl_shared   two ranks of one GPU, as NCCL lets them from 2.30.3 on; the same
#   job           client/recipes/quickstart.toml by `tlctl local run`: fine-tuning through a coordinator and a worker, on the GPU;
#                 by two workers on CPU slots where there is none
#
# Each has a time limit, 550 seconds together; TL_GPU_SECONDS is another one for each. The file, which is whole after every part:
#
#   {"chip": "", "driver": "", "date": "", "commit": "", "parts": [
#    {"name": "", "status": "", "seconds": 0.0, "limit": 0, "note": "", "output": ""}]}
#
# A status is `ok`, `failed` (what was not done in time has failed) or `not there`: no GPU, no library that it needs, or no
# program. The output is the last of it. Ends with 1 if a part has failed.
set -euo pipefail
programs=${TL_GPU_PROGRAMS:-$(cd "$(dirname "$0")" && pwd)}
result=${1:-gpu.json}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# What a part leaves behind goes with this.
export TMPDIR=$scratch TL_CACHE=$scratch/cache

# Folders with NVIDIA's libraries, and a link for each library under the name without a version: cudarc asks for that first, and
# one of another version would come in between.
libraries() {
  local folder name file
  if command -v python3 >/dev/null; then
    while IFS= read -r folder; do
      for file in "$folder"/nvidia/*/lib; do
        [ ! -d "$file" ] || NVLIB_PATH=${NVLIB_PATH:+$NVLIB_PATH:}$file
      done
    done < <(python3 -c 'import sys; print("\n".join(filter(None, sys.path)))')
  fi
  [ -n "${NVLIB_PATH:-}" ] || return 0
  mkdir "$scratch/names"
  for name in libcublas.so.13 libcublas.so.12 libcudnn.so.9 libnvrtc.so.13 libnvrtc.so.12; do
    while IFS= read -r folder; do
      file=$scratch/names/${name%.*}
      [ ! -e "$folder/$name" ] || [ -e "$file" ] || ln -s "$(realpath "$folder/$name")" "$file"
    done < <(tr : '\n' <<<"$NVLIB_PATH")
  done
  export NVLIB_PATH LD_LIBRARY_PATH=$scratch/names${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
}

# The end of what comes in, as a string of JSON. Other letters than ASCII's are left out.
quoted() {
  local text back=\\
  text=$(LC_ALL=C tr -cd '\t\n -~' | tail -c 8000)
  text=${text//"$back"/"$back$back"}
  text=${text//'"'/"$back\""}
  text=${text//$'\t'/"${back}t"}
  text=${text//$'\n'/"${back}n"}
  printf '"%s"' "$text"
}

chip="" driver="" parts="" failed=0
commit=$(cat "$programs/commit" 2>/dev/null || true)
today=$(date -u +%Y-%m-%dT%H:%M:%SZ)

save() {
  {
    printf '{"chip": %s, "driver": %s, ' "$(quoted <<<"$chip")" "$(quoted <<<"$driver")"
    printf '"date": "%s", "commit": %s, "parts": [%s\n]}\n' "$today" "$(quoted <<<"$commit")" "$parts"
  } >"$result.part"
  mv "$result.part" "$result"
}

# part NAME SECONDS NOTE PROGRAM ARGUMENT...: runs it in time, and keeps what came of it. The tests of Rust want a GPU, and say
# that they are skipped where something is missing; then their success means nothing.
part() {
  local name=$1 limit=${TL_GPU_SECONDS:-$2} note=$3 program=$4 status=ok code=0 begun took log=$scratch/$1.log
  shift 4
  begun=$(date +%s%3N)
  if [ ! -x "$programs/$program" ]; then
    status="not there" note="there is no program $program"
  elif [[ $program == *-tests && -z $chip ]]; then
    status="not there" note="there is no GPU"
  else
    timeout --kill-after=5 "$limit" "$programs/$program" "$@" >"$log" 2>&1 </dev/null || code=$?
    if [ "$code" = 124 ] || [ "$code" = 137 ]; then
      status=failed note="not done within $limit s"
    elif [ "$code" != 0 ]; then
      status=failed note="ended with $code"
    elif [[ $program == *-tests ]] && grep -q 'skipped: ' "$log"; then
      status="not there" note=$(grep -o -m 1 'skipped: .*' "$log")
    elif [[ $program == *-tests ]] && ! grep -q 'test result: ok\. [1-9]' "$log"; then
      status=failed note="no test has run"
    fi
  fi
  took=$(($(date +%s%3N) - begun))
  touch "$log"
  [ "$status" != failed ] || failed=1
  parts+=${parts:+,}$'\n '$(
    printf '{"name": "%s", "status": "%s", "seconds": %d.%03d, ' "$name" "$status" $((took / 1000)) $((took % 1000))
    printf '"limit": %d, "note": %s, "output": %s}' "$limit" "$(quoted <<<"$note")" "$(quoted <"$log")"
  )
  save
  printf '%-12s %-9s %6d.%03d s  %s\n' "$name" "$status" $((took / 1000)) $((took % 1000)) "$note"
}

# A field of what the doctor has printed.
told() {
  sed -n "s/.*$1\"\\([^\"]*\\)\".*/\\1/p" "$scratch/doctor.log" | head -n 1
}

libraries
part doctor 30 "" tl-worker doctor --output json
chip=$(told '"gpus":\[{[^}]*"name":') driver=$(told '"driver":')
if [ -z "$chip" ] && command -v nvidia-smi >/dev/null; then
  # A driver that lets the doctor hang may do for the rest.
  chip=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1) || chip=""
fi
tests() {
  part "$1" "$2" "" "$3" --nocapture --test-threads=1 "${@:4}"
}
tests operations 180 operations-tests
tests nccl_one 40 nccl-tests --exact one_rank_sums_with_itself
tests nccl_hosts 80 nccl-tests --exact two_ranks_of_one_gpu_are_two_hosts_and_one_is_killed
tests nccl_shared 80 nccl-tests --exact two_ranks_share_one_gpu_where_the_library_lets_them_and_one_is_killed
slots="on CPU slots" ranks=2
if [ -n "$chip" ] && grep -q '"trains_on_gpus":true' "$scratch/doctor.log"; then
  # A local worker has one GPU for itself.
  slots="on a GPU slot, if the worker has found that it works" ranks=1
fi
part job 140 "$slots" tlctl local run "$programs/quickstart.toml" --ranks "$ranks" --out "$scratch/out" --output json
[ "$failed" = 0 ]
