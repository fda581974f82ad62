#!/usr/bin/env bash
# Everything that is to be known on a machine with an NVIDIA GPU, in one go and within ten minutes: builds, runs the
# tests marked `cuda`, CUDA's checkers, reads the machine code and measures.
#
#   bash bench/gpu_all.sh [FOLDER]
#
# Needs Python with torch for CUDA, numpy, opencv, pybind11, cmake, ninja and pytest; a C++ compiler and nvcc. Needs no
# network, installs nothing, and changes nothing of the GPU's settings. Writes only into build/gpu and into FOLDER
# (default: $OUT, else bench/out/gpu-DATE): at most eight files, of which gpu.json has the figures and steps.json how
# every step ended.
#
# PYTHON=python3               the interpreter
# YOLONAS_GPU_SECONDS=570      with a GPU, for all steps together; the benchmark gets what the others leave, at least 220
# YOLONAS_GPU_STEPS="build sass"     only these steps, of: environment build sass check tests memcheck synccheck
#                              racecheck benchmark
# YOLONAS_GPU_WORK=build/gpu   where it builds
# YOLONAS_TEST_DATA=FOLDER     real weights and pictures; default: ../shared, else shared
# YOLONAS_COMMIT=HASH          of what is measured, where there is no git
# PYTHONPATH=FOLDER            more packages, such as pycocotools, without which there is no mean average precision
#
# A step that fails stops no other, unless these need what it makes. Ends with 0 if all is well, with 1 if a step
# failed, and with 3 if there is no GPU and what can be done without one is well.

set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
root=$PWD
python=${PYTHON:-python3}
out=${1:-${OUT:-$root/bench/out/gpu-$(date +%Y%m%d-%H%M%S)}}
mkdir -p "$out" || exit 1
out=$(cd "$out" && pwd)
work=${YOLONAS_GPU_WORK:-$root/build/gpu}
mkdir -p "$work" || exit 1
work=$(cd "$work" && pwd)
site=$work/site
started=$SECONDS
wanted=${YOLONAS_GPU_STEPS:-environment build sass check tests memcheck synccheck racecheck benchmark}
for_benchmark=220
export YOLONAS_GPU_WORK=$work
export YOLONAS_COMMIT=${YOLONAS_COMMIT:-$(git rev-parse --short HEAD 2> /dev/null)}
export TORCHINDUCTOR_CACHE_DIR=$work/inductor TRITON_CACHE_DIR=$work/triton XDG_CACHE_HOME=$work/cache
export PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1

table=()
failed=0
json=""

left() { echo $((total - (SECONDS - started))); }

# note NAME RESULT SECONDS WORDS: a line of the table, and of steps.json.
note() {
  table+=("$(printf '%-12s %-8s %5s s  %s' "$1" "$2" "$3" "$4")")
  local words=${4//\\/\\\\}
  words=$(printf '%s' "${words//\"/\\\"}" | tr -d '\000-\037')
  json+="${json:+,
}  {\"step\": \"$1\", \"result\": \"$2\", \"seconds\": $3, \"about\": \"$words\"}"
  printf '[\n%s\n]\n' "$json" > "$out/steps.json"
  printf '== %s: %s (%s s) %s\n' "$1" "$2" "$3" "$4"
}

is_wanted() { [[ " $wanted " == *" $1 "* ]]; }

# step NAME SECONDS LOG COMMAND...: runs it under a time limit, appends what it prints to a file in the folder. Its last
# line goes into the table. Returns the command's exit code.
step() {
  local name=$1 limit=$2 log=$out/$3 began=$SECONDS code reserve=0 words
  shift 3
  is_wanted "$name" || return 0
  if [[ $name != benchmark ]] && is_wanted benchmark && ((gpu)); then reserve=$for_benchmark; fi
  if (($(left) - reserve < limit)); then limit=$(($(left) - reserve)); fi
  if ((limit < 5)); then
    note "$name" "no time" 0 "the steps before it took too long"
    failed=1
    return 1
  fi
  export step_limit=$limit
  printf '\n=== %s: at most %d s: %s\n' "$name" "$limit" "$*" >> "$log"
  if [[ $(type -t "$1") == function ]]; then set -- bash -c '"$@"' step "$@"; fi
  timeout -k 10 "$limit" "$@" >> "$log" 2>&1
  code=$?
  words=$(grep -v '^[[:space:]]*$' "$log" | tail -n 1 | cut -c1-150 | { iconv -c -f utf-8 -t utf-8 2> /dev/null || cat; })
  if ((code == 0)); then
    note "$name" ok $((SECONDS - began)) "$words"
  elif ((code == 3)) && [[ $name == sass ]]; then # nothing to read with
    note "$name" "not run" $((SECONDS - began)) "$words"
  elif ((code == 124 || code == 137)); then
    note "$name" "too long" $((SECONDS - began)) "more than $limit s; $words"
    failed=1
  else
    note "$name" "FAILED" $((SECONDS - began)) "exit code $code: $words"
    failed=1
  fi
  return $code
}

skip() {
  is_wanted "$1" && note "$1" "not run" 0 "$2"
}

# --- is there a GPU? ---

gpu=0
arch=90
nvidia_says() { timeout 20 nvidia-smi -i 0 --query-gpu=compute_cap --format=csv,noheader 2> /dev/null; }
torch_says() { timeout 90 "$python" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability(0))' 2> /dev/null; }
for ask in nvidia_says torch_says; do # a tool that warns or is missing is no proof that there is none
  found=$($ask | grep -v '^[[:space:]]*$' | tail -n 1 | tr -d '[:space:]')
  if [[ $found =~ ^([0-9]+)\.([0-9]+)$ ]]; then
    gpu=1
    arch=${BASH_REMATCH[1]}${BASH_REMATCH[2]}
    break
  fi
done

# Without one there is nothing to hurry for.
if ((gpu)); then total=${YOLONAS_GPU_SECONDS:-570} for_build=280; else total=${YOLONAS_GPU_SECONDS:-3600} for_build=3600; fi

environment() {
  echo "date: $(date -u +%FT%TZ)"
  if ((gpu)); then
    timeout 20 nvidia-smi
    timeout 20 nvidia-smi -q -d CLOCK,POWER,TEMPERATURE,PERFORMANCE -i 0
  else
    echo "nvidia-smi: no GPU"
  fi
  uname -srm
  grep -m1 'model name' /proc/cpuinfo
  echo "cores: $(nproc), memory: $(grep MemTotal /proc/meminfo)"
  echo "commit: $(git rev-parse HEAD 2> /dev/null || echo 'no git here') $(git status --porcelain 2> /dev/null | head -n 5 | tr '\n' ' ')"
  "${nvcc:-nvcc}" --version | tail -n 2
  c++ --version | head -n 1
  "$python" - << 'END'
import importlib.metadata as metadata
import sys

print("python", sys.version.split()[0], sys.executable)
names = "torch triton numpy opencv-python opencv-python-headless pybind11 cmake ninja pytest safetensors"
for name in [*names.split(), "pycocotools"]:
    try:
        print(name, metadata.version(name))
    except metadata.PackageNotFoundError:
        print(name, "not installed")
import torch

print("torch for CUDA", torch.version.cuda, "cuDNN", torch.backends.cudnn.version(), "usable:", torch.cuda.is_available())
END
  local folder
  for folder in ${YOLONAS_TEST_DATA:+"$YOLONAS_TEST_DATA"} "$root/../shared" "$root/shared"; do
    if [[ -f $folder/weights/bccd_s.pth ]]; then break; fi
    folder="none, accuracy is left out"
  done
  echo "real weights: $folder"
}

# --- build: the two modules and the package beside them, in build/gpu ---

nvcc=${CUDACXX:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
export CUDACXX=$nvcc

program() { # NAME: on the path, or in the Python package of the name
  command -v "$1" || "$python" -c "import $1, os; print(os.path.join(getattr($1, '$(tr a-z A-Z <<< "$1")_BIN_DIR', None) or $1.BIN_DIR, '$1'))"
}

build() {
  local cmake ninja pybind
  cmake=$(program cmake) && ninja=$(program ninja) && pybind=$("$python" -m pybind11 --cmakedir) || return 1
  "$cmake" -S "$root" -B "$work/objects" -G Ninja -DCMAKE_MAKE_PROGRAM="$ninja" -DCMAKE_BUILD_TYPE=Release \
    -DYOLONAS_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES="$arch" -DPython_EXECUTABLE="$(command -v "$python")" \
    -Dpybind11_DIR="$pybind" || return 1
  "$ninja" -C "$work/objects" || return 1
  mkdir -p "$site"
  cp -r yolonas "$site/" && rm -f "$site"/yolonas/*.so || return 1
  "$cmake" --install "$work/objects" --prefix "$site" || return 1
  cd "$work" && PYTHONPATH=$site "$python" -c "from yolonas import _native; print(_native.build_info())"
}

# --- tests, and programs that need the build ---

here() { # COMMAND...: with the built package
  cd "$root/tests" && PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH} "$@"
}

# A failed kernel spoils all that its process does afterwards, and may end or stop it. So every file has a process, four
# at a time, which names each test before and after it.
tests() {
  local all=$work/tests
  rm -rf "$all"
  mkdir -p "$all"
  export tests_end=$(($(date +%s) + step_limit * 9 / 10))
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((($(nproc) + 3) / 4))}
  (cd "$root/tests" && grep -rlE 'mark\.cuda' --include='test_*.py' .) | sort -r | xargs -P 4 -I{} bash -c 'tests_of "$1"' tests {}
  cat "$all"/*.txt
  echo
  sort "$all/ends"
  local counts
  counts=$(grep -oE '[0-9]+ (passed|failed|skipped|error)' "$all/ends" |
    awk '{ sum[$2] += $1 } END { for (what in sum) printf "%s%d %s", n++ ? ", " : "", sum[what], what }')
  if ! grep -q '[0-9] passed' "$all/ends"; then
    echo "not one test ran: $counts"
    return 1
  fi
  echo "$counts; files that failed: $(grep -cv '^ok ' "$all/ends") of $(grep -c '' "$all/ends")"
  ! grep -qv '^ok ' "$all/ends"
}

tests_of() { # FILE
  local name=${1#./} log end code words seconds=$((tests_end - $(date +%s)))
  log=$work/tests/${name//\//_}.txt
  if ((seconds < 5)); then
    echo "no time $name" >> "$work/tests/ends"
    return
  fi
  here timeout -s INT -k 5 "$seconds" "$python" -m pytest -v --tb=short -m cuda -W default \
    -p no:cacheprovider -o faulthandler_timeout=60 --continue-on-collection-errors -rfEs "$1" > "$log" 2>&1
  code=$?
  words=$(grep -vE '^[[:space:]]*$|^[a-z]+: line [0-9]+: ' "$log" | tail -n 1 | tr -d '=') # but for what bash says
  end=ok
  if ((code == 124 || code == 137)); then end="too long"; elif ((code && code != 5)); then end="FAILED ($code)"; fi
  echo "$end $name: $words" >> "$work/tests/ends"
}

checker=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)

sanitize() { # TOOL
  here "$checker" --tool "$1" --error-exitcode 7 --print-limit 20 "$python" "$root/bench/gpu_check.py"
}

export -f environment build program here tests tests_of sanitize
export gpu arch python root work site nvcc checker

ready() { [[ -n $(compgen -G "$site/yolonas/_cuda.*.so") ]]; }

# --- the steps ---

compiling=
is_compiling() { [[ -n $compiling ]] && kill -0 "$compiling" 2> /dev/null; }
stop_compiling() {
  if [[ -n $compiling ]]; then
    kill "$compiling" 2> /dev/null
    wait "$compiling" 2> /dev/null
    compiling=
  fi
}
trap stop_compiling EXIT

# Nothing of an earlier run may pass for one of this.
rm -f "$out"/{environment,build,sass,tests,checks,benchmark}.log "$work/disturbed"
if is_wanted benchmark; then rm -f "$out/gpu.json"; fi
if is_wanted build; then rm -rf "$site"; fi
step environment 60 environment.log environment
for_compiling=$((total - for_benchmark - 60))
if ((gpu && for_compiling > 30)) && is_wanted benchmark && is_wanted build; then
  # torch.compile takes minutes. It does its work while the processor builds: the GPU has nothing else to do then.
  (
    cd "$root" || exit
    export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
    exec timeout -k 10 "$for_compiling" "$python" bench/gpu_compile.py s m
  ) > "$work/compile.log" 2>&1 &
  compiling=$!
fi
step build "$for_build" build.log build
if ready; then
  step sass 90 sass.log here "$python" "$root/bench/sass.py" --arch "sm_$arch"
else
  skip sass "no module was built"
fi

if ((!gpu)) || ! ready; then
  why="no GPU: nvidia-smi shows none here"
  ((gpu)) && why="no module was built"
  for name in check tests memcheck synccheck racecheck benchmark; do skip "$name" "$why"; done
else
  # It chooses by timing, so nothing else should use the GPU; but not all of the time can be spent on that.
  waiting=$SECONDS
  while is_compiling && ((SECONDS - waiting < 90)) && (($(left) > for_benchmark + 150)); do sleep 1; done
  if is_compiling; then : > "$work/disturbed"; fi
  step check 90 checks.log here "$python" "$root/bench/gpu_check.py"
  step tests 150 tests.log tests
  if [[ -x $checker ]]; then
    for tool in memcheck synccheck racecheck; do step $tool 75 checks.log sanitize $tool; done
  else
    for tool in memcheck synccheck racecheck; do skip $tool "no compute-sanitizer here"; done
  fi
  if [[ -n $compiling ]]; then # it must not work while times are taken
    while is_compiling && (($(left) > for_benchmark + 30)); do sleep 1; done
    stop_compiling
    { echo "=== torch.compile, ahead of the benchmark"; cat "$work/compile.log"; } >> "$out/benchmark.log"
  fi
  seconds=$(($(left) - 20))
  step benchmark $(($(left) - 5)) benchmark.log here "$python" "$root/bench/gpu.py" --experiments \
    --output "$out/gpu.json" --seconds "$seconds"
  rm -f "$out/gpu.json.part"
fi

# --- what came out ---

if [[ -s $out/benchmark.log ]]; then
  sed -n '/=== benchmark/,$p' "$out/benchmark.log" | grep -vE '^\s*$' |
    grep -E 'ms \(|aim |WRONG|FAILED|left out|mAP|tuning:|^What|batch [0-9]+ \(|ceilings|graphs;|^experiment|: the process|: hung' |
    cut -c1-170
fi
printf '\n%s s of %s; logs and figures: %s\n' $((SECONDS - started)) "$total" "$out"
printf '%s\n' "${table[@]}"
if ((failed)); then exit 1; fi
if ((!gpu)); then
  echo "There is no GPU here: above is what was done without one; no kernel has run."
  exit 3
fi
exit 0
