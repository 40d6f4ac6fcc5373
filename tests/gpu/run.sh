#!/usr/bin/env bash
# tests/gpu/run.sh [FILE]: tries on a real GPU what all other tests try without one, and writes what came of it to FILE
# (gpu.json without it).
#
# For a machine with a GPU and without Rust, sources or a network. The programs come from tests/gpu/pack.sh, run elsewhere; they
# lie beside this script, or in TL_GPU_PROGRAMS. NVIDIA's libraries are the machine's own: those in NVLIB_PATH, then those of the
# wheels that its python3 has, then those that the system knows. Nothing stands for them: tests make no fakes. Parts:
#
#   doctor        `tl-worker doctor`: the machine, its libraries, copies, a product, a step of training, an all-reduce of one
#                 rank through NCCL, and of two where there are two GPUs
#   operations    worker/engine/tests/gpu: every operation of training against the layers of the CPU
#   nccl_one      worker/nccl/tests/processes.rs: one rank
#   bench         tests/bench/run: images and texts a second, and memory, beside PyTorch's where python3 has it, of ResNet-50 and
#                 BERT in bf16; without a python3 that does, bench_NETWORK: what tl-bench says by itself
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
#    {"name": "", "status": "", "date": "", "seconds": 0.0, "limit": 0, "nccl": "", "note": "", "output": ""}],
#    "bench": [{"name": "", "ours": 0.0, "theirs": 0.0, "ratio": 0.0, "target": 1.0, "unit": "", ...}]}
#
# A status is `ok`; `ours alone`: a benchmark without PyTorch's figures, of some rows or of all; `failed` (what was not done in
# time has failed); `left out`: there was no time left, or less than the limit, or not for all rows; or `not there`: no GPU, no
# library that it needs, or no program. `nccl` is the one that ranks of the part had. The output is the last of it. Ends with 1 if
# a part has failed or was left out.
#
# A second visit goes on where the first has ended: the file has its parts too, each with its date, where commit, GPU and driver
# are the same, but for those that it tries again; of benchmarks it measures rows that have no ratio. Libraries are those of the
# last visit. Parts lie in the folder FILE.d, which has to come along to another machine. Where there is no GPU a file of one stays
# as it is, and FILE.none is written. A file that is worth keeping goes to tests/gpu/results.
set -euo pipefail
programs=${TL_GPU_PROGRAMS:-$(cd "$(dirname "$0")" && pwd)}
result=${1:-gpu.json}
# Milliseconds, of a clock that nobody sets.
now() {
  local up rest
  read -r up rest </proc/uptime
  echo $((10#${up/./} * 10))
}
end=$(($(now) + 1000 * ${TL_GPU_TOTAL:-420}))
# What cannot be written is known before anything is tried.
if [ -d "$result" ] || ! mkdir -p "$result.d" || ! : >"$result.part"; then
  echo "run.sh: $result cannot be written" >&2
  exit 2
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch" "$result.part"' EXIT
# What a part leaves behind goes with this; what is compiled for the GPU is compiled once.
export TMPDIR=$scratch TL_CACHE=$scratch/cache
# Tests build nothing that stands for a GPU's libraries.
export TL_GPU_REAL=1
# As ranks are started: with 1, also in NCCL's own files, it would wait without end.
export NCCL_COMM_BLOCKING=0
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
# without a version: cudarc asks for that first, and has to come to the file that the program takes.
libraries() {
  local folder file name most look
  # A driver that hangs here is to leave time for the doctor; and 0 would be no limit.
  most=$(within 30)
  look=(timeout --kill-after=5 "$((most > 0 ? most : 1))" "$programs/tl-worker" look --libraries)
  while IFS= read -r folder; do
    for file in "$folder"/nvidia/*/lib; do
      [ ! -d "$file" ] || NVLIB_PATH=${NVLIB_PATH:+$NVLIB_PATH:}$file
    done
  done < <(python3 -c 'import sys; print("\n".join(filter(None, sys.path)))' 2>/dev/null)
  if [ -n "${NVLIB_PATH:-}" ]; then
    export NVLIB_PATH LD_LIBRARY_PATH=$NVLIB_PATH${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  fi
  mkdir "$scratch/names"
  while IFS= read -r file; do
    name=${file##*/}
    if [[ -e $file && $name =~ ^lib(cublas|cudnn|nvrtc)\.so ]]; then
      ln -s "$(realpath "$file")" "$scratch/names/${name%%.so*}.so"
    fi
  done < <("${look[@]}" 2>/dev/null | grep -o '"path":"/[^"]*' | cut -d '"' -f 4)
  export LD_LIBRARY_PATH=$scratch/names${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
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

chip="" driver="" found="" kept="" failed=0
commit=$(cat "$programs/commit" 2>/dev/null || true)
today=$(date -u +%Y-%m-%dT%H:%M:%SZ)

# A field of what the doctor has printed.
told() {
  sed -n "s/.*$1\"\\([^\"]*\\)\".*/\\1/p" "$scratch/doctor.log" | head -n 1
}

# What the doctor has said of this machine, and where parts are kept of the same one. Where there is no GPU a file of one stays.
machine() {
  local smi
  chip=$(told '"gpus":\[{[^}]*"name":') driver=$(told '"driver":')
  found=$(sed -n 's/.*"libraries":\(\[.*\]\),"data_roots":.*/\1/p' "$scratch/doctor.log" | head -n 1)
  if ! grep -q '"hardware":' "$scratch/doctor.log"; then
    # A driver that lets the doctor hang may do for the rest. Where the doctor sees no GPU there is none for tests either.
    smi=$(timeout 10 nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null) || smi=""
    IFS=, read -r chip driver <<<"$smi"
    driver=${driver# }
  fi
  kept=${commit:-unknown}-$chip-$driver
  kept=$result.d/${kept//[^A-Za-z0-9.]/-}
  mkdir -p "$kept"
  if [[ -z $chip ]] && grep -qs '^{"chip": "[^"]' "$result"; then
    rm -f "$result.part"
    echo "run.sh: there is no GPU, and $result is of one: this goes to $result.none" >&2
    result=$result.none
  fi
}

# The parts that are kept, one a line.
parts() {
  local file all=""
  for file in "$kept"/*.part; do
    [ ! -e "$file" ] || all+=${all:+,}$'\n '$(<"$file")
  done
  printf '[%s\n]' "$all"
}

# The rows of both benchmarks, as one list.
rows() {
  local file some all=""
  for file in "$kept"/*.rows; do
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
    printf '"parts": %s, "bench": %s}\n' "$(parts)" "$(rows)"
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
  local left=$(((end - $(now)) / 1000))
  echo $((left < $1 ? left : $1))
}

# How a part that has run has ended: its status and its note. The tests of Rust want a GPU, and say that they are skipped where
# something is missing; then their success means nothing. One among others that is none for a real GPU says that it is left out.
judge() {
  if [[ $code == 124 || $code == 137 ]] && ((took + 100 >= limit * 1000)); then
    status=failed note="not done within $limit s"
    ((limit >= wanted)) || status="left out" note="there were $limit s left of the $wanted s that it may have"
  elif ((code > 128)); then
    status=failed note="was killed by signal $((code - 128))"
  elif ((code != 0)); then
    status=failed note="ended with $code"
  elif [[ $program == *-tests ]] && grep -q 'skipped: ' "$log"; then
    status="not there" note=$(grep -o -m 1 'skipped: .*' "$log")
  elif [[ $program == *-tests ]] && ! grep -q 'test result: ok\. [1-9]' "$log"; then
    status=failed note="no test has run"
  elif [[ $program == tl-bench ]]; then
    status="ours alone"
    ! grep -q '^{"missing":' "$log" || status="not there" note=$(grep -m 1 '^{"missing":' "$log")
  elif [[ $program == bench/run ]]; then
    judge_rows "$kept/$name.rows"
  fi
}

# The same of the benchmark, by its rows.
judge_rows() {
  local why='.*"note": *"\(left out: [^"]*\|not built[^"]*\)'
  if [ ! -s "$1" ]; then
    status=failed note="it has written no rows"
  elif grep -q '"note": *"left out: no time' "$1"; then
    status="left out" note="there was no time left for some rows"
  elif grep -q '"theirs": *null' "$1"; then
    status="ours alone" note=$(sed -n "/$why/{s/$why.*/\\1/p;q}" "$1")
    grep -q '"ours": *[0-9]' "$1" || status="not there"
  fi
}

# part NAME SECONDS NOTE PROGRAM ARGUMENT...: runs it in time, and keeps what came of it; what it reads is the file `orders`.
part() {
  local name=$1 wanted=${TL_GPU_SECONDS:-$2} note=$3 program=$4
  local log=$scratch/$1.log status=ok code=0 limit begun took missing nccl more=""
  [[ $name == doctor || " ${TL_GPU_ONLY:-$name} " == *" $name "* ]] || return 0
  shift 4
  limit=$(within "$wanted") missing=$(lacks "$program") begun=$(now) took=0
  : >"$log"
  if [ -n "$missing" ]; then
    status="not there" note=$missing
  elif ((limit < 1)); then
    status="left out" note="there was no time left" limit=0
  else
    timeout --kill-after=5 "$limit" "$programs/$program" "$@" >"$log" 2>&1 <"${orders:-/dev/null}" || code=$?
    took=$(($(now) - begun))
    judge
  fi
  [[ $name != doctor ]] || machine
  [[ $status != failed && $status != "left out" ]] || failed=1
  if [[ $status == "not there" || $status == "left out" ]] &&
    grep -qs '"status": "\(ok\|ours alone\|failed\)"' "$kept/$name.part"; then
    more=" (what an earlier visit has of it is kept)"
  else
    nccl=$(sed -n '/over NCCL [0-9]/{s/.*over NCCL \([0-9].*\)/\1/p;q}' "$log")
    {
      printf '{"name": "%s", "status": "%s", "date": "%s", ' "$name" "$status" "$today"
      printf '"seconds": %d.%03d, "limit": %d, ' $((took / 1000)) $((took % 1000)) "$limit"
      printf '"nccl": %s, "note": %s, "output": %s}\n' "$(quoted <<<"$nccl")" "$(quoted <<<"$note")" "$(quoted <"$log")"
    } >"$kept/$name.new"
    mv "$kept/$name.new" "$kept/$name.part"
  fi
  save
  printf '%-21s %-10s %6d.%03d s  %s\n' "$name" "$status" $((took / 1000)) $((took % 1000)) "$note$more"
}

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
# bench NAME SECONDS ROWS NETWORK:BATCH...: rows of tests/bench/run; where no python3 runs that tl-bench alone, of these networks.
bench() {
  local name=$1 most network
  [[ " ${TL_GPU_ONLY:-$name} " == *" $name "* ]] || return 0
  if python3 -c 'import argparse, json, statistics, sys, venv; sys.exit(sys.version_info < (3, 9))' 2>/dev/null; then
    most=$(within "$2")
    # A row takes less than the rest.
    part "$name" "$2" "" bench/run --device cuda:0 --ours "$programs/tl-bench" --only "$3" --rounds 3 --threads "$(nproc)" \
      --seconds $((most > 60 ? most - 60 : 1)) --resume --json "$kept/$name.rows"
    return
  fi
  printf 'go 10\ngo 20\nmemory\n' >"$scratch/orders"
  for network in "${@:4}"; do
    TL_GPU_ONLY='' orders=$scratch/orders part "bench_${network%:*}" 40 "seconds of a step in bf16, batch ${network#*:}" \
      tl-bench step --device cuda:0 --precision bf16 --backbone "${network%:*}" --batch "${network#*:}" --samples 783 --warm 24 \
      --threads "$(nproc)"
  done
}
libraries
# With what cuDNN does a convolution of f32, the first thing to be known of it. It waits a minute for GPUs, and has ten seconds
# after that; libraries that lie in no cache take the rest.
TL_LOG=info,tl_engine::gpu=debug part doctor 140 "" tl-worker doctor --output json
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
