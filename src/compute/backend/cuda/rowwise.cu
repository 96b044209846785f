// Kernels over rows: tables, norms, activations, rotary positions, pooling.
//
// Row counts and widths are checked by the callers in launch.rs. Every kernel is a plain function of its arguments: no
// atomics, so that equal inputs give equal results.
#include "rows.cuh"

// out[row] = words[ids[row]] + positions[places[row]] + types[kinds[row]]; tables that are null are left out.
template <typename T>
__device__ void embed(const T *words, const int *ids, const T *positions, const int *places, const T *types,
                      const int *kinds, float *out, int width) {
    const size_t row = blockIdx.x;
    words += size_t(ids[row]) * width;
    if (positions) positions += size_t(places[row]) * width;
    if (types) types += size_t(kinds[row]) * width;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        float sum = widen(words[i]);
        if (positions) sum += widen(positions[i]);
        if (types) sum += widen(types[i]);
        out[row * width + i] = sum;
    }
}

// A row's norm: layer norm with a shift, RMS norm without one. `add`: out += factor * norm(x). A block for each row.
template <typename In, typename Out>
__device__ void norm(const In *x, const float *scale, const float *shift, float epsilon, Out *out, int width, int add,
                     float factor) {
    extern __shared__ float row[];
    x += size_t(blockIdx.x) * width;
    out += size_t(blockIdx.x) * width;
    float sum = 0.0f;
    for (int i = threadIdx.x; i < width; i += blockDim.x) sum += row[i] = widen(x[i]);
    const float mean = shift ? block_sum(sum) / width : 0.0f;
    float squares = 0.0f;
    for (int i = threadIdx.x; i < width; i += blockDim.x) squares += (row[i] - mean) * (row[i] - mean);
    const float inverse = 1.0f / sqrtf(block_sum(squares) / width + epsilon);
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        float y = (row[i] - mean) * inverse * scale[i];
        if (shift) y += shift[i];
        out[i] = narrow<Out>(add ? widen(out[i]) + factor * y : y);
    }
}

// The same for widths that are a multiple of four and at most 128 * FOURS: a warp for each row, whose values stay in its
// registers.
template <typename In, typename Out, int FOURS>
__device__ void norm_fast(const In *x, const float *scale, const float *shift, float epsilon, Out *out, int rows,
                          int width, int add, float factor) {
    const int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    const Four<In> *from = reinterpret_cast<const Four<In> *>(x + size_t(row) * width);
    Four<Out> *to = reinterpret_cast<Four<Out> *>(out + size_t(row) * width);
    const int fours = width / 4;
    float values[FOURS][4];
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < FOURS; i++) {
        const int at = lane + 32 * i;
        Four<In> loaded;
        if (at < fours) loaded = from[at];
#pragma unroll
        for (int j = 0; j < 4; j++) sum += values[i][j] = at < fours ? widen(loaded.at[j]) : 0.0f;
    }
    const float mean = shift ? warp_sum(sum) / width : 0.0f;
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < FOURS; i++)
        if (lane + 32 * i < fours) {
#pragma unroll
            for (int j = 0; j < 4; j++) squares += (values[i][j] - mean) * (values[i][j] - mean);
        }
    const float inverse = 1.0f / sqrtf(warp_sum(squares) / width + epsilon);
#pragma unroll
    for (int i = 0; i < FOURS; i++) {
        const int at = lane + 32 * i;
        if (at >= fours) break;
        const Four<float> scales = reinterpret_cast<const Four<float> *>(scale)[at];
        Four<float> shifts = {};
        if (shift) shifts = reinterpret_cast<const Four<float> *>(shift)[at];
        Four<Out> result;
        if (add) result = to[at];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const float y = (values[i][j] - mean) * inverse * scales.at[j] + shifts.at[j];
            result.at[j] = narrow<Out>(add ? widen(result.at[j]) + factor * y : y);
        }
        to[at] = result;
    }
}

// The error function to within 1.5e-7: Abramowitz and Stegun, "Handbook of Mathematical Functions", 7.1.26. A fifth of the
// instructions of `erff`.
__device__ inline float fast_erf(float x) {
    const float size = fabsf(x), t = __frcp_rn(1.0f + 0.3275911f * size);
    const float sum =
        t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
    return copysignf(1.0f - sum * __expf(-size * size), x);
}

// The activations, in the order of `launch::activation`. What is rounded to bfloat16 may be computed faster.
template <typename T> __device__ inline float activate(float x, int kind) {
    constexpr bool rounded = sizeof(T) == 2;
    switch (kind) {
    case 1: {
        const float scaled = x * 0.70710678118654752f;
        return 0.5f * x * (1.0f + (rounded ? fast_erf(scaled) : erff(scaled)));
    }
    case 2: return 0.5f * x * (1.0f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
    case 3: return x > 0.0f || x != x ? x : 0.0f;
    case 4: return rounded ? __fdividef(x, 1.0f + __expf(-x)) : x / (1.0f + expf(-x));
    case 5: return tanhf(x);
    default: return x;
    }
}

// Eight bfloat16 or four float32: 16 bytes.
template <typename T> struct alignas(16) Sixteen {
    static constexpr int COUNT = 16 / sizeof(T);
    T at[COUNT];
};

// out = activation(x) of `width` values a row. Gated: rows of x have twice as many, and the second half is a factor. Blocks
// of one row lie side by side in y.
template <typename T> __device__ void activation(const T *x, T *out, int width, int kind, int gated) {
    const size_t row = blockIdx.x;
    x += row * (gated ? 2 * width : width);
    out += row * width;
    constexpr int COUNT = Sixteen<T>::COUNT;
    const int thread = blockIdx.y * blockDim.x + threadIdx.x, threads = gridDim.y * blockDim.x;
    if (width % COUNT == 0) {
        for (int i = thread; i < width / COUNT; i += threads) {
            Sixteen<T> values = reinterpret_cast<const Sixteen<T> *>(x)[i], factors = values;
            if (gated) factors = reinterpret_cast<const Sixteen<T> *>(x + width)[i];
#pragma unroll
            for (int j = 0; j < COUNT; j++) {
                const float y = activate<T>(widen(values.at[j]), kind);
                values.at[j] = narrow<T>(gated ? y * widen(factors.at[j]) : y);
            }
            reinterpret_cast<Sixteen<T> *>(out)[i] = values;
        }
    } else {
        for (int i = thread; i < width; i += threads) {
            const float y = activate<T>(widen(x[i]), kind);
            out[i] = narrow<T>(gated ? y * widen(x[width + i]) : y);
        }
    }
}

// out += factor * x
template <typename In> __device__ void add(const In *x, float factor, float *out, long count) {
    const long step = long(gridDim.x) * blockDim.x;
    for (long at = long(blockIdx.x) * blockDim.x + threadIdx.x; at < count; at += step)
        out[at] += factor * widen(x[at]);
}

// out = factor * x
template <typename In, typename Out> __device__ void convert(const In *x, float factor, Out *out, long count) {
    const long step = long(gridDim.x) * blockDim.x;
    for (long at = long(blockIdx.x) * blockDim.x + threadIdx.x; at < count; at += step)
        out[at] = narrow<Out>(factor * widen(x[at]));
}

// out[row] = x[rows[row]]
template <typename T> __device__ void gather_rows(const T *x, const int *rows, T *out, int width) {
    const size_t from = size_t(rows[blockIdx.x]) * width, to = size_t(blockIdx.x) * width;
    for (int i = threadIdx.x; i < width; i += blockDim.x) out[to + i] = x[from + i];
}

// One row of each sequence: a weighted sum, or the largest values. A block for `blockDim.x` columns of a sequence.
// Kinds: 0 mean, 1 sum over the root of the count, 2 mean weighted by position, 3 maximum.
template <typename T>
__device__ void pool(const T *x, const int *offsets, float *out, int width, int kind) {
    const int column = blockIdx.y * blockDim.x + threadIdx.x;
    if (column >= width) return;
    const int first = offsets[blockIdx.x], count = offsets[blockIdx.x + 1] - first;
    float result = kind == 3 && count > 0 ? -INFINITY : 0.0f;
    for (int row = 0; row < count; row++) {
        const float value = widen(x[size_t(first + row) * width + column]);
        if (kind == 3) {
            // A NaN must show.
            result = value > result || value != value ? value : result;
        } else {
            result += kind == 2 ? float(row + 1) * value : value;
        }
    }
    const float n = float(count);
    if (count > 0 && kind < 3) result /= kind == 0 ? n : kind == 1 ? sqrtf(n) : n * (n + 1.0f) / 2.0f;
    out[size_t(blockIdx.x) * width + column] = result;
}

// Norms of heads. Mode 0: none; 1: of each head; 2: of all heads together.
struct HeadNorm {
    const float *scale, *shift;
    float epsilon;
    int mode;
    // Values from the parameters of a head to those of the next; 0 if all share them.
    int step;
};

// Normalizes and rotates queries and keys in place: rows of `heads` queries, `kv_heads` keys and as many values. A block
// for each row, a warp for each head at a time. Angles are cosines, then sines, of each pair.
template <typename T>
__device__ void rotate(T *qkv, const float *angles, const int *places, const float *query_factors, int heads,
                       int kv_heads, int width, int pairs, int interleaved, HeadNorm query_norm, HeadNorm key_norm) {
    extern __shared__ float scratch[];
    const int warps = blockDim.x / 32, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    T *row = qkv + size_t(blockIdx.x) * (heads + 2 * kv_heads) * width;
    if (pairs) angles += size_t(places[blockIdx.x]) * 2 * pairs;
    float together[2] = {1.0f, 1.0f};
    for (int part = 0; part < 2; part++) {
        const HeadNorm norm = part ? key_norm : query_norm;
        if (norm.mode != 2) continue;
        const int count = (part ? kv_heads : heads) * width;
        const T *values = row + (part ? heads * width : 0);
        float squares = 0.0f;
        for (int i = threadIdx.x; i < count; i += blockDim.x) squares += widen(values[i]) * widen(values[i]);
        together[part] = 1.0f / sqrtf(block_sum(squares) / count + norm.epsilon);
    }
    float *head = scratch + warp * width;
    const float factor_of_queries = query_factors ? query_factors[blockIdx.x] : 1.0f;
    for (int number = warp; number < heads + kv_heads; number += warps) {
        const bool is_key = number >= heads;
        const HeadNorm norm = is_key ? key_norm : query_norm;
        const int own = is_key ? number - heads : number;
        T *values = row + number * width;
        float sum = 0.0f, squares = 0.0f;
        if (width % 4 == 0) {
            for (int i = lane; i < width / 4; i += 32) {
                const Four<T> loaded = reinterpret_cast<const Four<T> *>(values)[i];
                Four<float> wide;
                for (int j = 0; j < 4; j++) sum += wide.at[j] = widen(loaded.at[j]);
                reinterpret_cast<Four<float> *>(head)[i] = wide;
            }
        } else {
            for (int i = lane; i < width; i += 32) sum += head[i] = widen(values[i]);
        }
        __syncwarp();
        if (norm.mode == 1) {
            const float mean = norm.shift ? warp_sum(sum) / width : 0.0f;
            for (int i = lane; i < width; i += 32) squares += (head[i] - mean) * (head[i] - mean);
            const float inverse = 1.0f / sqrtf(warp_sum(squares) / width + norm.epsilon);
            for (int i = lane; i < width; i += 32) {
                const float y = (head[i] - mean) * inverse * norm.scale[own * norm.step + i];
                head[i] = norm.shift ? y + norm.shift[own * norm.step + i] : y;
            }
        } else if (norm.mode == 2) {
            for (int i = lane; i < width; i += 32) head[i] *= together[is_key] * norm.scale[own * width + i];
        }
        __syncwarp();
        const float factor = is_key ? 1.0f : factor_of_queries;
        auto value = [&](int i) {
            float y = head[i];
            if (i < 2 * pairs) {
                const int pair = interleaved ? i / 2 : i < pairs ? i : i - pairs;
                const bool second = interleaved ? i % 2 : i >= pairs;
                const float a = head[interleaved ? 2 * pair : pair];
                const float b = head[interleaved ? 2 * pair + 1 : pair + pairs];
                const float cosine = angles[pair], sine = angles[pairs + pair];
                y = second ? b * cosine + a * sine : a * cosine - b * sine;
            }
            return factor * y;
        };
        if (width % 4 == 0) {
            for (int i = lane; i < width / 4; i += 32) {
                Four<T> stored;
                for (int j = 0; j < 4; j++) stored.at[j] = narrow<T>(value(4 * i + j));
                reinterpret_cast<Four<T> *>(values)[i] = stored;
            }
        } else {
            for (int i = lane; i < width; i += 32) values[i] = narrow<T>(value(i));
        }
        __syncwarp(); // `head` is overwritten by the next.
    }
}

// The same for pairs of a head's halves, all of them, in heads of 64 * PAIRS values whose norms have no shift and are of one
// head: the norms and angles of nearly all models. A lane has PAIRS pairs of a head in its registers, and the angles of these
// for all heads of its warp.
template <typename T, int PAIRS>
__device__ void rotate_halves(T *qkv, const float *angles, const int *places, const float *query_factors, int heads,
                              int kv_heads, HeadNorm query_norm, HeadNorm key_norm) {
    constexpr int width = 64 * PAIRS;
    const int warps = blockDim.x / 32, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    T *row = qkv + size_t(blockIdx.x) * (heads + 2 * kv_heads) * width;
    using Values = Run<T, PAIRS>;
    using Numbers = Run<float, PAIRS>;
    const Numbers *of_place = reinterpret_cast<const Numbers *>(angles + size_t(places[blockIdx.x]) * width);
    const Numbers cosines = of_place[lane], sines = of_place[32 + lane];
    const float factor_of_queries = query_factors ? query_factors[blockIdx.x] : 1.0f;
    for (int number = warp; number < heads + kv_heads; number += warps) {
        const bool is_key = number >= heads;
        const HeadNorm norm = is_key ? key_norm : query_norm;
        Values *head = reinterpret_cast<Values *>(row + number * width);
        const Values first = head[lane], second = head[32 + lane];
        float a[PAIRS], b[PAIRS], squares = 0.0f;
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
            a[i] = widen(first.at[i]);
            b[i] = widen(second.at[i]);
            squares += a[i] * a[i] + b[i] * b[i];
        }
        if (norm.mode) {
            const float inverse = 1.0f / sqrtf(warp_sum(squares) / width + norm.epsilon);
            const Numbers *scales =
                reinterpret_cast<const Numbers *>(norm.scale + (is_key ? number - heads : number) * norm.step);
            const Numbers upper = scales[lane], lower = scales[32 + lane];
#pragma unroll
            for (int i = 0; i < PAIRS; i++) {
                a[i] *= inverse * upper.at[i];
                b[i] *= inverse * lower.at[i];
            }
        }
        const float factor = is_key ? 1.0f : factor_of_queries;
        Values rotated_first, rotated_second;
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
            rotated_first.at[i] = narrow<T>(factor * (a[i] * cosines.at[i] - b[i] * sines.at[i]));
            rotated_second.at[i] = narrow<T>(factor * (b[i] * cosines.at[i] + a[i] * sines.at[i]));
        }
        head[lane] = rotated_first;
        head[32 + lane] = rotated_second;
    }
}

#define KERNEL extern "C" __global__ void
#define HALVES(T, name, pairs)                                                                                         \
    KERNEL rotate_halves_##pairs##_##name(T *qkv, const float *angles, const int *places, const float *query_factors,  \
                                          int heads, int kv_heads, HeadNorm queries, HeadNorm keys) {                  \
        rotate_halves<T, pairs>(qkv, angles, places, query_factors, heads, kv_heads, queries, keys);                   \
    }
HALVES(float, f32, 1)
HALVES(float, f32, 2)
HALVES(float, f32, 4)
HALVES(bf16, bf16, 1)
HALVES(bf16, bf16, 2)
HALVES(bf16, bf16, 4)

#define BOTH(T, name)                                                                                                  \
    KERNEL embed_##name(const T *words, const int *ids, const T *positions, const int *places, const T *types,         \
                        const int *kinds, float *out, int width) {                                                     \
        embed<T>(words, ids, positions, places, types, kinds, out, width);                                             \
    }                                                                                                                  \
    KERNEL activation_##name(const T *x, T *out, int width, int kind, int gated) {                                     \
        activation<T>(x, out, width, kind, gated);                                                                     \
    }                                                                                                                  \
    KERNEL add_##name(const T *x, float factor, float *out, long count) { add<T>(x, factor, out, count); }            \
    KERNEL gather_rows_##name(const T *x, const int *rows, T *out, int width) {                                        \
        gather_rows<T>(x, rows, out, width);                                                                           \
    }                                                                                                                  \
    KERNEL pool_##name(const T *x, const int *offsets, float *out, int width, int kind) {                              \
        pool<T>(x, offsets, out, width, kind);                                                                         \
    }                                                                                                                  \
    KERNEL rotate_##name(T *qkv, const float *angles, const int *places, const float *query_factors, int heads,        \
                         int kv_heads, int width, int pairs, int interleaved, HeadNorm queries, HeadNorm keys) {       \
        rotate<T>(qkv, angles, places, query_factors, heads, kv_heads, width, pairs, interleaved, queries, keys);      \
    }
BOTH(float, f32)
BOTH(bf16, bf16)

#define PAIRS(In, in, Out, out_name)                                                                                   \
    KERNEL norm_##in##_##out_name(const In *x, const float *scale, const float *shift, float epsilon, Out *out,        \
                                  int width, int add, float factor) {                                                  \
        norm<In, Out>(x, scale, shift, epsilon, out, width, add, factor);                                              \
    }                                                                                                                  \
    KERNEL norm_fast_##in##_##out_name(const In *x, const float *scale, const float *shift, float epsilon, Out *out,   \
                                       int rows, int width, int add, float factor) {                                   \
        norm_fast<In, Out, 8>(x, scale, shift, epsilon, out, rows, width, add, factor);                                \
    }                                                                                                                  \
    KERNEL convert_##in##_##out_name(const In *x, float factor, Out *out, long count) {                                \
        convert<In, Out>(x, factor, out, count);                                                                       \
    }
PAIRS(float, f32, float, f32)
PAIRS(float, f32, bf16, bf16)
PAIRS(bf16, bf16, float, f32)
PAIRS(bf16, bf16, bf16, bf16)
