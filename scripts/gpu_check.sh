#!/usr/bin/env bash
# Builds the extension for NVIDIA's cards and checks it on the card of this machine: parity, lifecycle, memory, speed.
#
#     scripts/gpu_check.sh                # builds first; needs Rust and crates that are fetched already
#     scripts/gpu_check.sh --installed    # checks the model_manager that Python finds, without a build
#
# It needs no network and takes under eight minutes. Other options go to scripts/gpu_check.py.
# GPU_CHECK_DEVICE=candle-cpu checks the same operations on the CPU, without a build.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
installed=
if [ "${GPU_CHECK_DEVICE:-}" = candle-cpu ]; then
    installed=yes
fi
if [ "${1:-}" = --installed ]; then
    installed=yes
    shift
fi
if [ -z "$installed" ]; then
    if ! command -v nvcc >/dev/null; then
        # Not within eval, whose status hides a failure.
        toolkit=$("$python" scripts/cuda_toolkit.py)
        eval "$toolkit"
    fi
    out=target/gpu_check
    CARGO_NET_OFFLINE=true PYO3_BUILD_EXTENSION_MODULE=1 PYO3_PYTHON=$(command -v "$python") \
        cargo rustc --quiet --release --lib --features cuda --target-dir "$out" --crate-type cdylib \
        -- -C "link-arg=-Wl,-rpath,${CUDA_HOME:-/usr/local/cuda}/lib64"
    # A copy, so that the build of the checkout stays as it is.
    rm -rf "$out/python"
    mkdir -p "$out/python"
    cp -R python/model_manager "$out/python/"
    cp "$out/release/libmodel_manager.so" "$out/python/model_manager/_core.abi3.so"
    export PYTHONPATH="$PWD/$out/python${PYTHONPATH:+:$PYTHONPATH}"
fi
exec "$python" scripts/gpu_check.py "$@"
