#!/usr/bin/env bash
# The checks and measurements that need an NVIDIA GPU, in at most 8 minutes.
#
#   benchmarks/gpu.sh [--wheels DIR] [--out DIR] [--only PART ...] [--dry]
#       runs them with the Python of $PYTHON (default: python3), which has torch with CUDA. Packages that it
#       lacks are installed from the wheels of DIR into a temporary folder; nothing is downloaded.
#       benchmarks/gpu.py explains the rest.
#   benchmarks/gpu.sh --prepare DIR [PYTHON_VERSION]
#       downloads those wheels on a machine with a network, for Python 3.12 on x86-64 unless told otherwise.
set -euo pipefail
started=$(date +%s)
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
# Import name = package. The machine is expected to have torch, triton, numpy, opencv, matplotlib and safetensors.
packages="av=av decord=decord fvcore=fvcore iopath=iopath omegaconf=omegaconf pytorchvideo=pytorchvideo
  simplejson=simplejson yacs=yacs termcolor=termcolor parameterized=parameterized portalocker=portalocker
  tabulate=tabulate tqdm=tqdm yaml=PyYAML rich=rich markdown_it=markdown-it-py mdurl=mdurl
  pygments=Pygments pytest=pytest pytest_timeout=pytest-timeout pluggy=pluggy iniconfig=iniconfig
  packaging=packaging"

prepare() {
  local folder=$1 version=${2:-3.12} needed=() sources="fvcore iopath pytorchvideo" pair
  mkdir -p "$folder"
  for pair in $packages; do
    case " $sources " in *" ${pair#*=} "*) ;; *) needed+=("${pair#*=}") ;; esac
  done
  "$python" -m pip download -q --no-deps --only-binary=:all: -c constraints.txt -d "$folder" \
    --python-version "$version" --implementation cp --abi "cp${version/./}" --abi abi3 --abi none \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
    --platform manylinux2010_x86_64 --platform manylinux_2_5_x86_64 --platform manylinux1_x86_64 "${needed[@]}"
  # These three are published as sources only. They hold no compiled code.
  "$python" -m pip wheel -q --no-deps -c constraints.txt -w "$folder" $sources
  local kilobytes
  kilobytes=$(du -sk "$folder" | cut -f1)
  echo "$folder: $(ls "$folder" | wc -l) wheels, $((kilobytes / 1024)) MiB"
  if [ "$kilobytes" -gt 65536 ]; then
    echo "gpu.sh: the wheels are larger than 64 MiB; leave packages out that the machine has" >&2
    exit 1
  fi
}

# Prints the packages that cannot be imported.
missing_packages() {
  "$python" - $packages <<'PYTHON'
import importlib.util
import sys

pairs = [pair.split("=") for pair in sys.argv[1:]]
missing = [package for name, package in pairs if importlib.util.find_spec(name) is None]
if "rich" not in missing:  # an old rich needs neither of its two parsers
    missing = [package for package in missing if package not in ("markdown-it-py", "mdurl")]
print(*missing)
PYTHON
}

if [ "${1:-}" = --prepare ]; then
  if [ $# -lt 2 ]; then
    echo "gpu.sh: --prepare needs the folder of the wheels" >&2
    exit 2
  fi
  prepare "${@:2}"
  exit
fi
wheels=
arguments=()
while [ $# -gt 0 ]; do
  case $1 in
    --wheels)
      if [ ! -d "${2:-}" ]; then
        echo "gpu.sh: --wheels ${2:-}: there is no such folder; make it with benchmarks/gpu.sh --prepare DIR" >&2
        exit 2
      fi
      wheels=$2
      shift 2
      ;;
    *)
      arguments+=("$1")
      shift
      ;;
  esac
done
missing=$(missing_packages)
if [ -n "$missing" ] && [ -n "$wheels" ]; then
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  echo "installing $missing from $wheels"
  "$python" -m pip install -q --no-index --no-deps --no-compile --find-links "$wheels" --target "$site" $missing
  export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
elif [ -n "$missing" ]; then
  echo "gpu.sh: missing packages: $missing; give a folder of wheels with --wheels" >&2
  exit 2
fi
"$python" -m benchmarks.gpu --started "$started" ${arguments[@]+"${arguments[@]}"}
