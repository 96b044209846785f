#!/usr/bin/env bash
# Checks the code for NVIDIA's cards with clippy, without a CUDA compiler: one that writes empty files stands in for nvcc, which
# compiles candle's own kernels. Nothing of it can be linked or run, so it has a folder of its own: target/check-cuda.
# The arguments go to cargo clippy.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}/check-cuda
mkdir -p "$target/stand-in"
stand_in=$(cd "$target/stand-in" && pwd)
cat > "$stand_in/nvcc" <<'NVCC'
#!/usr/bin/env bash
case "$*" in
    *--version*) echo "Cuda compilation tools, release 13.0, V13.0.88" ;;
    *--list-gpu-code*) echo "sm_80" ;;
esac
while [ $# -gt 0 ]; do
    case "$1" in
        -o) : > "$2" ;;
        --output-directory) folder=$2 ;;
        *.cu) source=$(basename "$1" .cu) ;;
    esac
    shift
done
if [ -n "${folder:-}" ]; then
    : > "$folder/$source.ptx"
fi
NVCC
chmod +x "$stand_in/nvcc"
export PATH="$stand_in:$PATH" CUDA_HOME="$stand_in" CUDA_COMPUTE_CAP=80 CUDARC_CUDA_VERSION=13000
exec "${CARGO:-cargo}" clippy --all-targets --features cuda --target-dir "$target" "$@"
