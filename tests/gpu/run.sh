#!/usr/bin/env bash
# tests/gpu/run.sh [FILE]: tries on a real GPU what all other tests try without one, and writes what came of it to FILE
# (gpu.json without it).
#
# For a machine with a GPU and without Rust, sources or a network. The programs come from tests/gpu/pack.sh, run elsewhere; they
# lie beside this script, or in TL_GPU_PROGRAMS. NVIDIA's libraries are the machine's own: those in NVLIB_PATH, then those of the
# wheels that its python3 has, then those that the system knows. Parts:
#
#   doctor        `tl-worker doctor`: the machine, its libraries, copies, a product, a step of training, an all-reduce of one
#                 rank through NCCL, and of two where there are two GPUs
#   operations    worker/engine/tests/gpu: every operation of training against the layers of the CPU
#   nccl_one      worker/nccl/tests/processes.rs: one rank
#   bench         tests/bench/run: images and texts a second, and memory, beside PyTorch's where python3 has it, of ResNet-50 and
#                 BERT in bf16; without a python3, bench_NETWORK: what tl-bench says by itself
#   nccl_hosts    two ranks of one GPU, which NCCL takes for two hosts; one is killed, the other goes on
#   nccl_shared   two ranks of one GPU, as NCCL lets them from 2.30.3 on; the same
#   job           tests/e2e/gpu_job.rs: a job through a coordinator and workers, on the GPU and on the CPU
#   photos        the same of real photos and weights, if they were packed
#   gang_hosts    tests/e2e/gpu_gang.rs: a job of two ranks that share the GPU in the first of those two ways; one is killed,
#                 they form anew, and it comes to what it comes to undisturbed
#   gang_shared   the same in the second way
#   bench_more    the other rows of the benchmark, as many as there is time for
#
# The order is that of what a first visit has to know. TL_GPU_ONLY names parts, with spaces between, that are to be tried alone
# beside the doctor. nccl_shared and gang_shared take an NCCL that lies in the folder TL_NCCL, where the machine's own is older:
# none comes along, since it would be half as large as all the rest.
#
# Each has a time limit, and all together have 420 seconds (TL_GPU_TOTAL), which of a quarter of an hour with a machine leaves
# enough for a second visit; TL_GPU_SECONDS is another limit for each. The file, which is whole after every part:
#
#   {"chip": "", "driver": "", "date": "", "commit": "", "libraries": [{"name": "", "version": "", ...}], "parts": [
#    {"name": "", "status": "", "seconds": 0.0, "limit": 0, "note": "", "output": ""}],
#    "bench": [{"name": "", "ours": 0.0, "theirs": 0.0, "ratio": 0.0, "target": 1.0, "unit": "", ...}]}
#
# A status is `ok`, `failed` (what was not done in time has failed), `left out` (there was no time left), or `not there`: no GPU,
# no library that it needs, or no program. The output is the last of it. Ends with 1 if a part has failed or was left out. A file
# that is worth keeping goes to tests/gpu/results.
set -euo pipefail
programs=${TL_GPU_PROGRAMS:-$(cd "$(dirname "$0")" && pwd)}
result=${1:-gpu.json}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
end=$(($(date +%s) + ${TL_GPU_TOTAL:-420}))
# What a part leaves behind goes with this; what is compiled for the GPU is compiled once.
export TMPDIR=$scratch TL_CACHE=$scratch/cache
# A test gives up what hangs while it can still say so.
export TL_PATIENCE=${TL_PATIENCE:-50}
# The processes of jobs, and their photos.
export TL_SANDBOX=$programs/tlctl
if [ -z "${TL_TEST_DATA:-}" ]; then
  TL_TEST_DATA=none
  [ ! -d "$programs/data" ] || TL_TEST_DATA=$programs/data
fi
export TL_TEST_DATA

# Folders with NVIDIA's libraries, which they also ask the loader for each other in, and a link for each library under the name
# without a version: cudarc asks for that first, and one of another version would come in between.
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
  export NVLIB_PATH LD_LIBRARY_PATH=$scratch/names:$NVLIB_PATH${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
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

chip="" driver="" found="" parts="" failed=0
commit=$(cat "$programs/commit" 2>/dev/null || true)
today=$(date -u +%Y-%m-%dT%H:%M:%SZ)

# The rows of both benchmarks, as one list.
rows() {
  local file some all=""
  for file in "$scratch/bench.json" "$scratch/bench_more.json"; do
    [ -e "$file" ] || continue
    some=$(tr '\n' ' ' <"$file")
    some=${some#*\[} some=${some%\]*}
    [[ -z ${some// /} ]] || all+=${all:+,}$some
  done
  printf '[%s]' "$all"
}

save() {
  {
    printf '{"chip": %s, "driver": %s, ' "$(quoted <<<"$chip")" "$(quoted <<<"$driver")"
    printf '"date": "%s", "commit": %s, "libraries": %s, ' "$today" "$(quoted <<<"$commit")" "${found:-[]}"
    printf '"parts": [%s\n], "bench": %s}\n' "$parts" "$(rows)"
  } >"$result.part"
  mv "$result.part" "$result"
}

# What a part lacks, if it does. Only the doctor needs no GPU.
lacks() {
  if [ ! -x "$programs/$1" ]; then
    echo "there is no program $1"
  elif [[ $1 == jobs-tests && ! -x $programs/tlctl ]]; then
    echo "there is no program tlctl"
  elif [[ $1 != tl-worker && -z $chip ]]; then
    echo "there is no GPU"
  fi
}

# Seconds for a part that may have so many.
within() {
  local left=$((end - $(date +%s)))
  echo $((left < $1 ? left : $1))
}

# part NAME SECONDS NOTE PROGRAM ARGUMENT...: runs it in time, and keeps what came of it; what it reads is the file `orders`. The
# tests of Rust want a GPU, and say that they are skipped where something is missing; then their success means nothing. One among
# others that is none for a real GPU says that it is left out.
part() {
  local name=$1 limit note=$3 program=$4 status=ok code=0 begun took log=$scratch/$1.log missing
  [[ $name == doctor || " ${TL_GPU_ONLY:-$name} " == *" $name "* ]] || return 0
  limit=$(within "${TL_GPU_SECONDS:-$2}")
  shift 4
  begun=$(date +%s%3N)
  missing=$(lacks "$program")
  if [ -n "$missing" ]; then
    status="not there" note=$missing
  elif [ "$limit" -lt 1 ]; then
    status="left out" note="there was no time left" limit=0
  else
    timeout --kill-after=5 "$limit" "$programs/$program" "$@" >"$log" 2>&1 <"${orders:-/dev/null}" || code=$?
    if [ "$code" = 124 ] || [ "$code" = 137 ]; then
      status=failed note="not done within $limit s"
    elif [ "$code" != 0 ]; then
      status=failed note="ended with $code"
    elif [[ $program == *-tests ]] && grep -q 'skipped: ' "$log"; then
      status="not there" note=$(grep -o -m 1 'skipped: .*' "$log")
    elif [[ $program == *-tests ]] && ! grep -q 'test result: ok\. [1-9]' "$log"; then
      status=failed note="no test has run"
    elif [[ $program == tl-bench ]] && grep -q '^{"missing":' "$log"; then
      status="not there" note=$(grep -m 1 '^{"missing":' "$log")
    fi
  fi
  took=$(($(date +%s%3N) - begun))
  touch "$log"
  [[ $status != failed && $status != "left out" ]] || failed=1
  parts+=${parts:+,}$'\n '$(
    printf '{"name": "%s", "status": "%s", "seconds": %d.%03d, ' "$name" "$status" $((took / 1000)) $((took % 1000))
    printf '"limit": %d, "note": %s, "output": %s}' "$limit" "$(quoted <<<"$note")" "$(quoted <"$log")"
  )
  save
  printf '%-21s %-9s %6d.%03d s  %s\n' "$name" "$status" $((took / 1000)) $((took % 1000)) "$note"
}

# A field of what the doctor has printed.
told() {
  sed -n "s/.*$1\"\\([^\"]*\\)\".*/\\1/p" "$scratch/doctor.log" | head -n 1
}

libraries
# With what cuDNN does a convolution of f32, the first thing to be known of it.
TL_LOG=info,tl_engine::gpu=debug part doctor 90 "" tl-worker doctor --output json
chip=$(told '"gpus":\[{[^}]*"name":') driver=$(told '"driver":')
found=$(sed -n 's/.*"libraries":\(\[.*\]\),"data_roots":.*/\1/p' "$scratch/doctor.log" | head -n 1)
if [ -z "$chip" ] && command -v nvidia-smi >/dev/null; then
  # A driver that lets the doctor hang may do for the rest.
  chip=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1) || chip=""
fi
tests() {
  part "$1" "$2" "" "$3" --nocapture --test-threads=1 "${@:4}"
}
# The same over the NCCL of TL_NCCL, if there is one.
newer() {
  if [ -n "${TL_NCCL:-}" ]; then
    NVLIB_PATH=$TL_NCCL${NVLIB_PATH:+:$NVLIB_PATH} tests "$@"
  else
    tests "$@"
  fi
}
# bench NAME SECONDS ROWS NETWORK:BATCH...: rows of tests/bench/run; without a python3 tl-bench alone, of these networks.
bench() {
  local name=$1 most network
  [[ " ${TL_GPU_ONLY:-$name} " == *" $name "* ]] || return 0
  if command -v python3 >/dev/null; then
    most=$(within "$2")
    # A row takes less than the rest.
    part "$name" "$2" "" bench/run --device cuda:0 --ours "$programs/tl-bench" --only "$3" --rounds 3 --threads "$(nproc)" \
      --seconds $((most > 60 ? most - 60 : 1)) --json "$scratch/$name.json"
    return
  fi
  printf 'go 10\ngo 20\nmemory\n' >"$scratch/orders"
  for network in "${@:4}"; do
    TL_GPU_ONLY='' orders=$scratch/orders part "bench_${network%:*}" 40 "seconds of a step in bf16, batch ${network#*:}" \
      tl-bench step --device cuda:0 --precision bf16 --backbone "${network%:*}" --batch "${network#*:}" --samples 783 --warm 24 \
      --threads "$(nproc)"
  done
}
tests operations 120 operations-tests
tests nccl_one 25 nccl-tests --exact one_rank_sums_with_itself
bench bench 180 resnet50_bf16,bert_base_bf16 resnet50:128 bert:64
tests nccl_hosts 45 nccl-tests --exact two_ranks_of_one_gpu_are_two_hosts_and_one_is_killed
newer nccl_shared 45 nccl-tests --exact two_ranks_share_one_gpu_where_the_library_lets_them_and_one_is_killed
tests job 75 jobs-tests --exact a_job_on_a_gpu_comes_to_what_it_comes_to_on_a_cpu
tests photos 90 jobs-tests --exact gpu_photos::photos_and_weights_come_to_what_they_come_to_on_a_cpu
tests gang_hosts 120 jobs-tests --exact gpu_gang::two_ranks_that_are_hosts_lose_one_and_form_anew
newer gang_shared 120 jobs-tests --exact gpu_gang::two_ranks_that_share_a_gpu_lose_one_and_form_anew
more=mobilenet_v2_bf16,efficientnet_b0_bf16
for precision in tf32 f32; do
  for network in resnet50 bert_base mobilenet_v2 efficientnet_b0; do
    more+=,${network}_$precision
  done
done
bench bench_more 420 "$more" mobilenet_v2:128 efficientnet_b0:128
save
[ "$failed" = 0 ]
