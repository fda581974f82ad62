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
# YOLONAS_GPU_SECONDS=570      with a GPU, for all steps together; the benchmark gets what the others leave, at least 200
# YOLONAS_GPU_STEPS="build sass"     only these steps, of: environment build sass check tests memcheck racecheck
#                              synccheck benchmark
# YOLONAS_GPU_WORK=build/gpu   where it builds
# YOLONAS_TEST_DATA=FOLDER     real weights and pictures; default: ../shared
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
wanted=${YOLONAS_GPU_STEPS:-environment build sass check tests memcheck racecheck synccheck benchmark}
for_benchmark=200
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
  printf '\n=== %s: at most %d s: %s\n' "$name" "$limit" "$*" >> "$log"
  if [[ $(type -t "$1") == function ]]; then set -- bash -c '"$@"' step "$@"; fi
  timeout -k 10 "$limit" "$@" >> "$log" 2>&1
  code=$?
  words=$(grep -v '^[[:space:]]*$' "$log" | tail -n 1 | cut -c1-150)
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
if command -v nvidia-smi > /dev/null && found=$(nvidia-smi -i 0 --query-gpu=compute_cap --format=csv,noheader 2> /dev/null); then
  if [[ $found =~ ^([0-9]+)\.([0-9]+)$ ]]; then
    gpu=1
    arch=${BASH_REMATCH[1]}${BASH_REMATCH[2]}
  fi
fi

# Without one there is nothing to hurry for.
if ((gpu)); then total=${YOLONAS_GPU_SECONDS:-570} for_build=280; else total=${YOLONAS_GPU_SECONDS:-3600} for_build=3600; fi

environment() {
  echo "date: $(date -u +%FT%TZ)"
  if ((gpu)); then
    nvidia-smi
    nvidia-smi -q -d CLOCK,POWER,TEMPERATURE,PERFORMANCE -i 0
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
for name in "torch triton numpy opencv-python opencv-python-headless pybind11 cmake ninja pytest safetensors".split():
    try:
        print(name, metadata.version(name))
    except metadata.PackageNotFoundError:
        print(name, "not installed")
import torch

print("torch for CUDA", torch.version.cuda, "cuDNN", torch.backends.cudnn.version(), "usable:", torch.cuda.is_available())
END
  local named=${YOLONAS_TEST_DATA:-$root/../shared}
  if [[ -d $named/weights ]]; then echo "real weights: $named"; else echo "real weights: none, accuracy is left out"; fi
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
  rm -rf "$site"
  mkdir -p "$site"
  cp -r yolonas "$site/" && rm -f "$site"/yolonas/*.so || return 1
  "$cmake" --install "$work/objects" --prefix "$site" || return 1
  cd "$work" && PYTHONPATH=$site "$python" -c "from yolonas import _native; print(_native.build_info())"
}

# --- tests, and programs that need the build ---

here() { # COMMAND...: with the built package
  cd "$root/tests" && PYTHONPATH=$site "$@"
}

tests() {
  local files line code
  mapfile -t files < <(cd "$root/tests" && grep -rlE 'mark\.cuda' --include='test_*.py' . | sort)
  here "$python" -m pytest -q -m cuda -W default -p no:cacheprovider --continue-on-collection-errors -rfEs "${files[@]}" 2>&1 | tee "$work/pytest.txt"
  code=${PIPESTATUS[0]}
  line=$(tail -n 1 "$work/pytest.txt")
  if ((code == 0)) && [[ ! $line =~ [0-9]+\ passed ]]; then
    echo "not one test ran: $line"
    return 1
  fi
  return "$code"
}

checker=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)

sanitize() { # TOOL
  here "$checker" --tool "$1" --error-exitcode 7 --print-limit 20 "$python" "$root/bench/gpu_check.py"
}

export -f environment build program here tests sanitize
export gpu arch python root work site nvcc checker

ready() { [[ -n $(compgen -G "$site/yolonas/_cuda.*.so") ]]; }

# --- the steps ---

compiling=
stop_compiling() {
  if [[ -n $compiling ]]; then
    kill "$compiling" 2> /dev/null
    wait "$compiling" 2> /dev/null
    compiling=
  fi
}
trap stop_compiling EXIT

rm -f "$out"/{environment,build,sass,tests,checks,benchmark}.log
step environment 60 environment.log environment
if ((gpu)) && is_wanted benchmark && is_wanted build; then
  # torch.compile takes minutes. It does its work while the processor builds: the GPU has nothing else to do then.
  (cd "$root" && PYTHONPATH=$root exec timeout -k 10 280 "$python" bench/gpu_compile.py s m) > "$work/compile.log" 2>&1 &
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
  for name in check tests memcheck racecheck synccheck benchmark; do skip "$name" "$why"; done
else
  step check 90 checks.log here "$python" "$root/bench/gpu_check.py"
  step tests 150 tests.log tests
  if [[ -x $checker ]]; then
    for tool in memcheck racecheck synccheck; do step $tool 75 checks.log sanitize $tool; done
  else
    for tool in memcheck racecheck synccheck; do skip $tool "no compute-sanitizer here"; done
  fi
  if [[ -n $compiling ]]; then # it must not work while times are taken
    while kill -0 "$compiling" 2> /dev/null && (($(left) > for_benchmark + 30)); do sleep 1; done
    stop_compiling
    { echo "=== torch.compile, ahead of the benchmark"; cat "$work/compile.log"; } >> "$out/benchmark.log"
  fi
  seconds=$(($(left) - 20))
  step benchmark $(($(left) - 5)) benchmark.log here "$python" "$root/bench/gpu.py" --output "$out/gpu.json" --seconds "$seconds"
fi

# --- what came out ---

if [[ -s $out/benchmark.log ]]; then
  sed -n '/=== benchmark/,$p' "$out/benchmark.log" | grep -vE '^\s*$' | grep -E 'ms \(|aim |WRONG|FAILED|left out|mAP|tuning:|^What|batch [0-9]+ \(|ceilings' | cut -c1-170
fi
printf '\n%s s of %s; logs and figures: %s\n' $((SECONDS - started)) "$total" "$out"
printf '%s\n' "${table[@]}"
if ((failed)); then exit 1; fi
if ((!gpu)); then
  echo "There is no GPU here: kernels were built and their machine code read; nothing has run."
  exit 3
fi
exit 0
