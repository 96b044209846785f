// Numbers in memory, and sums over the threads of a block.
#pragma once
#include <cuda_bf16.h>
#include <stdint.h>

using bf16 = __nv_bfloat16;

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(bf16 x) { return __bfloat162float(x); }
template <typename T> __device__ inline T narrow(float x);
template <> __device__ inline float narrow<float>(float x) { return x; }
template <> __device__ inline bf16 narrow<bf16>(float x) { return __float2bfloat16_rn(x); }

// Values that are loaded and stored together.
template <typename T, int COUNT> struct alignas(COUNT * sizeof(T)) Run {
    T at[COUNT];
};

// 16 bytes of float32, 8 of bfloat16.
template <typename T> using Four = Run<T, 4>;

__device__ inline float warp_sum(float x) {
    for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(0xffffffffu, x, distance);
    return x;
}

// The sum over all threads of the block, in every thread. Threads are a multiple of 32.
__device__ inline float block_sum(float x) {
    __shared__ float parts[32];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    x = warp_sum(x);
    __syncthreads(); // `parts` may still be read by an earlier sum.
    if (lane == 0) parts[warp] = x;
    __syncthreads();
    x = lane < blockDim.x / 32 ? parts[lane] : 0.0f;
    return warp_sum(x);
}
