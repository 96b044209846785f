// Attention within the sequences of a packed batch, or over their caches of keys and values.
//
// Both kernels keep a running maximum and sum of each row, so that no matrix of scores is stored: Dao et al.,
// "FlashAttention", 2022. A block computes a tile of queries of one head of one sequence.
#include "rows.cuh"

// A sequence of the batch. Without a cache, keys and values lie in the rows of queries.
struct Sequence {
    // Keys and values of all layers, `[layers, 2, capacity, kv_heads * width]`; 0 without a cache.
    unsigned long long cache;
    // Its first row, and its rows.
    int first, rows;
    // Keys in all, and those that are seen.
    int length, seen;
    // Tokens for which the cache has room.
    int capacity;
    int unused;
};

// What all tiles of a layer share.
struct Layer {
    int number, heads, kv_heads;
    // Keys that a query sees before and after its own.
    int before, after;
    float scale;
    // Scores are limited to it; 0: they are not.
    float soft_cap;
    // Additions by distance, `[heads, 2 * longest - 1]`; null without.
    const float *bias;
    int longest;
};

// A tile: its sequence, and its first query there.
struct Tile {
    int sequence, first;
};

constexpr float LOG2E = 1.4426950408889634f;

// The score of a query and a key in units of log 2, or negative infinity.
__device__ inline float score(float product, int query, int key, int head, const Sequence &sequence,
                              const Layer &layer) {
    const bool hidden = key >= sequence.seen || query - key > layer.before || key - query > layer.after;
    if (hidden) return -INFINITY;
    float value = product * layer.scale;
    if (layer.soft_cap > 0.0f) value = layer.soft_cap * tanhf(value / layer.soft_cap);
    // A tile's rows beyond its text may lie beyond the longest text, too: their scores are not used, but the table ends there.
    if (layer.bias)
        value += layer.bias[size_t(head) * (2 * layer.longest - 1) + max(layer.longest - 1 + key - query, 0)];
    return value * LOG2E;
}

// Copies the new keys and values into the caches. A block for each row.
template <typename T>
__device__ void append(const T *qkv, const Sequence *sequences, const int *owners, Layer layer, int width) {
    const int row = blockIdx.x;
    const Sequence sequence = sequences[owners[row]];
    if (!sequence.cache) return;
    const int each = layer.kv_heads * width;
    const size_t place = sequence.length - sequence.rows + row - sequence.first;
    const T *from = qkv + size_t(row) * (layer.heads + 2 * layer.kv_heads) * width + layer.heads * width;
    T *keys = reinterpret_cast<T *>(sequence.cache) + (size_t(2 * layer.number) * sequence.capacity + place) * each;
    T *values = keys + size_t(sequence.capacity) * each;
    for (int i = threadIdx.x; i < each; i += blockDim.x) {
        keys[i] = from[i];
        values[i] = from[each + i];
    }
}

// Where the keys of a head begin, how far it is to its values, and from a key to the next.
template <typename T> struct Keys {
    const T *first;
    size_t values, stride;

    __device__ Keys(const T *qkv, const Sequence &sequence, const Layer &layer, int head, int width) {
        const int kv_head = head / (layer.heads / layer.kv_heads);
        if (sequence.cache) {
            stride = size_t(layer.kv_heads) * width;
            values = sequence.capacity * stride;
            first = reinterpret_cast<const T *>(sequence.cache) + 2 * layer.number * values + kv_head * width;
        } else {
            stride = size_t(layer.heads + 2 * layer.kv_heads) * width;
            values = size_t(layer.kv_heads) * width;
            first = qkv + sequence.first * stride + (layer.heads + kv_head) * width;
        }
    }
};

// Any width up to 8 * COLUMNS, without tensor cores. 128 threads, a tile of 16 queries, 16 keys at a time.
template <typename T, int COLUMNS>
__device__ void attend_plain(const T *qkv, T *out, const Sequence *sequences, const Tile *tiles, Layer layer,
                             int width) {
    constexpr int QUERIES = 16, STEP = 16;
    extern __shared__ float shared[];
    const int padded = width + 1;
    float *queries = shared, *keys = queries + QUERIES * padded, *values = keys + STEP * padded;
    float *scores = values + STEP * padded, *largest = scores + QUERIES * STEP, *total = largest + QUERIES,
          *shrink = total + QUERIES;
    const Tile tile = tiles[blockIdx.x];
    const Sequence sequence = sequences[tile.sequence];
    const int head = blockIdx.y, thread = threadIdx.x;
    const size_t row_width = size_t(layer.heads + 2 * layer.kv_heads) * width;
    const Keys<T> source(qkv, sequence, layer, head, width);
    const int before = sequence.length - sequence.rows, count = min(QUERIES, sequence.rows - tile.first);
    for (int i = thread; i < QUERIES * width; i += blockDim.x) {
        const int row = i / width, column = i % width;
        const size_t at = size_t(sequence.first + tile.first + row) * row_width + size_t(head) * width + column;
        queries[row * padded + column] = row < count ? widen(qkv[at]) : 0.0f;
    }
    if (thread < QUERIES) largest[thread] = -INFINITY, total[thread] = 0.0f;
    float sums[COLUMNS];
    for (int j = 0; j < COLUMNS; j++) sums[j] = 0.0f;
    const int row = thread / 8, lane = thread % 8;
    const long position = before + tile.first;
    const int begin = int(max(0L, position - layer.before)) / STEP * STEP;
    const int end = int(min(long(sequence.seen), position + count + layer.after));
    for (int key = begin; key < end; key += STEP) {
        __syncthreads();
        for (int i = thread; i < STEP * width; i += blockDim.x) {
            const int own = i / width, column = i % width;
            const bool there = key + own < sequence.length;
            const T *from = source.first + (key + own) * source.stride + column;
            keys[own * padded + column] = there ? widen(from[0]) : 0.0f;
            values[own * padded + column] = there ? widen(from[source.values]) : 0.0f;
        }
        __syncthreads();
        for (int i = thread; i < QUERIES * STEP; i += blockDim.x) {
            const int query = i / STEP, own = i % STEP;
            float product = 0.0f;
            for (int j = 0; j < width; j++) product += queries[query * padded + j] * keys[own * padded + j];
            scores[i] = score(product, int(position) + query, key + own, head, sequence, layer);
        }
        __syncthreads();
        if (thread < QUERIES) {
            float most = largest[thread];
            for (int i = 0; i < STEP; i++) most = fmaxf(most, scores[thread * STEP + i]);
            const float base = most == -INFINITY ? 0.0f : most;
            float sum = 0.0f;
            for (int i = 0; i < STEP; i++) sum += scores[thread * STEP + i] = exp2f(scores[thread * STEP + i] - base);
            shrink[thread] = exp2f(largest[thread] - base);
            total[thread] = total[thread] * shrink[thread] + sum;
            largest[thread] = most;
        }
        __syncthreads();
#pragma unroll
        for (int j = 0; j < COLUMNS; j++) {
            const int column = lane + 8 * j;
            if (column >= width) break;
            float sum = sums[j] * shrink[row];
            for (int i = 0; i < STEP; i++) sum += scores[row * STEP + i] * values[i * padded + column];
            sums[j] = sum;
        }
    }
    __syncthreads();
    if (row >= count) return;
    const float inverse = total[row] > 0.0f ? 1.0f / total[row] : total[row];
    T *to = out + size_t(sequence.first + tile.first + row) * layer.heads * width + size_t(head) * width;
#pragma unroll
    for (int j = 0; j < COLUMNS; j++) {
        const int column = lane + 8 * j;
        if (column < width) to[column] = narrow<T>(sums[j] * inverse);
    }
}

__device__ inline uint32_t shared_address(const void *pointer) { return uint32_t(__cvta_generic_to_shared(pointer)); }

__device__ inline void load_four(uint32_t (&to)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
}

__device__ inline void load_four_transposed(uint32_t (&to)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
}

// sums += a * b, of a tile of 16 rows and 8 columns over 16 values.
__device__ inline void multiply(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ inline uint32_t pack(float low, float high) {
    const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t *>(&both);
}

// 16 bytes to shared memory without waiting; zeros if `there` is false.
__device__ inline void copy_async(uint32_t to, const void *from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0) : "memory");
}

// Heads of WIDTH bfloat16 on tensor cores. WARPS warps of 16 queries each, STEP keys at a time, loaded while the ones before
// are multiplied. Rows in shared memory are 16 bytes longer than a head, so that no bank serves two of a load.
template <int WIDTH, int WARPS, int STEP>
__device__ void attend_tiles(const bf16 *qkv, bf16 *out, const Sequence *sequences, const Tile *tiles,
                             const Layer &layer) {
    constexpr int ROW = WIDTH + 8, QUERIES = 16 * WARPS, CHUNKS = WIDTH / 8, THREADS = 32 * WARPS;
    extern __shared__ __align__(16) bf16 tile_memory[];
    bf16 *query_rows = tile_memory, *key_rows = query_rows + QUERIES * ROW, *value_rows = key_rows + 2 * STEP * ROW;
    const Tile tile = tiles[blockIdx.x];
    const Sequence sequence = sequences[tile.sequence];
    const int head = blockIdx.y, thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    const size_t row_width = size_t(layer.heads + 2 * layer.kv_heads) * WIDTH;
    const Keys<bf16> source(qkv, sequence, layer, head, WIDTH);
    const int before = sequence.length - sequence.rows, count = min(QUERIES, sequence.rows - tile.first);
    const long position = before + tile.first;
    const int begin = int(max(0L, position - layer.before)) / STEP * STEP;
    const int end = int(min(long(sequence.seen), position + count + layer.after));

    auto load_keys = [&](int key, int buffer) {
        for (int i = thread; i < STEP * CHUNKS; i += THREADS) {
            const int own = i / CHUNKS, column = i % CHUNKS * 8;
            const bool there = key + own < end;
            const bf16 *from = source.first + (there ? key + own : 0) * source.stride + column;
            const int to = (buffer * STEP + own) * ROW + column;
            copy_async(shared_address(key_rows + to), from, there);
            copy_async(shared_address(value_rows + to), from + source.values, there);
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    };

    for (int i = thread; i < QUERIES * CHUNKS; i += THREADS) {
        const int row = i / CHUNKS, column = i % CHUNKS * 8;
        const bool there = row < count;
        const size_t at = size_t(sequence.first + tile.first + (there ? row : 0)) * row_width + head * WIDTH + column;
        copy_async(shared_address(query_rows + row * ROW + column), qkv + at, there);
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
    if (begin < end) load_keys(begin, 0);

    uint32_t queries[WIDTH / 16][4];
    float sums[WIDTH / 8][4];
    for (int i = 0; i < WIDTH / 8; i++)
        for (int j = 0; j < 4; j++) sums[i][j] = 0.0f;
    float largest[2] = {-INFINITY, -INFINITY}, total[2] = {0.0f, 0.0f};
    const int own_row = warp * 16 + lane / 4;

    for (int key = begin, buffer = 0; key < end; key += STEP, buffer ^= 1) {
        const bool more = key + STEP < end;
        if (more) load_keys(key + STEP, buffer ^ 1);
        if (more) asm volatile("cp.async.wait_group 1;" ::: "memory");
        else asm volatile("cp.async.wait_group 0;" ::: "memory");
        __syncthreads();
        if (key == begin) {
#pragma unroll
            for (int k = 0; k < WIDTH / 16; k++)
                load_four(queries[k],
                          shared_address(query_rows + (warp * 16 + lane % 16) * ROW + k * 16 + lane / 16 * 8));
        }
        if (warp * 16 < count) {
            const bf16 *own_keys = key_rows + buffer * STEP * ROW, *own_values = value_rows + buffer * STEP * ROW;
            float scores[STEP / 8][4];
#pragma unroll
            for (int n = 0; n < STEP / 16; n++) {
                for (int j = 0; j < 4; j++) scores[2 * n][j] = scores[2 * n + 1][j] = 0.0f;
#pragma unroll
                for (int k = 0; k < WIDTH / 16; k++) {
                    uint32_t b[4];
                    load_four(b, shared_address(own_keys + (n * 16 + lane % 8 + lane / 16 * 8) * ROW + k * 16 +
                                                lane / 8 % 2 * 8));
                    multiply(scores[2 * n], queries[k], b[0], b[1]);
                    multiply(scores[2 * n + 1], queries[k], b[2], b[3]);
                }
            }
            float most[2] = {largest[0], largest[1]};
            const int first = int(position) + warp * 16, last = first + 15;
            // Every query of the warp sees every key of the step, and products alone make the scores.
            const bool plain = key + STEP <= sequence.seen && last - key <= layer.before &&
                               key + STEP - 1 - first <= layer.after && !layer.bias && !(layer.soft_cap > 0.0f);
            if (plain) {
                const float scale = layer.scale * LOG2E;
#pragma unroll
                for (int n = 0; n < STEP / 8; n++)
#pragma unroll
                    for (int j = 0; j < 4; j++) most[j / 2] = fmaxf(most[j / 2], scores[n][j] *= scale);
            } else {
#pragma unroll
                for (int n = 0; n < STEP / 8; n++)
#pragma unroll
                    for (int j = 0; j < 4; j++) {
                        const int query = int(position) + own_row + j / 2 * 8, own = key + n * 8 + lane % 4 * 2 + j % 2;
                        scores[n][j] = score(scores[n][j], query, own, head, sequence, layer);
                        most[j / 2] = fmaxf(most[j / 2], scores[n][j]);
                    }
            }
            float base[2];
            for (int half = 0; half < 2; half++) {
                most[half] = fmaxf(most[half], __shfl_xor_sync(0xffffffffu, most[half], 1));
                most[half] = fmaxf(most[half], __shfl_xor_sync(0xffffffffu, most[half], 2));
                base[half] = most[half] == -INFINITY ? 0.0f : most[half];
                const float shrink = exp2f(largest[half] - base[half]);
                largest[half] = most[half];
                total[half] *= shrink;
#pragma unroll
                for (int i = 0; i < WIDTH / 8; i++) sums[i][2 * half] *= shrink, sums[i][2 * half + 1] *= shrink;
            }
#pragma unroll
            for (int n = 0; n < STEP / 8; n++)
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    scores[n][j] = exp2f(scores[n][j] - base[j / 2]);
                    total[j / 2] += scores[n][j];
                }
#pragma unroll
            for (int k = 0; k < STEP / 16; k++) {
                const uint32_t weights[4] = {
                    pack(scores[2 * k][0], scores[2 * k][1]), pack(scores[2 * k][2], scores[2 * k][3]),
                    pack(scores[2 * k + 1][0], scores[2 * k + 1][1]), pack(scores[2 * k + 1][2], scores[2 * k + 1][3])};
#pragma unroll
                for (int n = 0; n < WIDTH / 16; n++) {
                    uint32_t b[4];
                    load_four_transposed(
                        b, shared_address(own_values + (k * 16 + lane % 16) * ROW + n * 16 + lane / 16 * 8));
                    multiply(sums[2 * n], weights, b[0], b[1]);
                    multiply(sums[2 * n + 1], weights, b[2], b[3]);
                }
            }
        }
        __syncthreads(); // The next round overwrites the other buffer.
    }
    for (int half = 0; half < 2; half++) {
        total[half] += __shfl_xor_sync(0xffffffffu, total[half], 1);
        total[half] += __shfl_xor_sync(0xffffffffu, total[half], 2);
        const int row = own_row + half * 8;
        if (row >= count) continue;
        const float inverse = total[half] > 0.0f ? 1.0f / total[half] : total[half];
        bf16 *to = out + size_t(sequence.first + tile.first + row) * layer.heads * WIDTH + head * WIDTH + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < WIDTH / 8; i++) {
            const uint32_t both = pack(sums[i][2 * half] * inverse, sums[i][2 * half + 1] * inverse);
            *reinterpret_cast<uint32_t *>(to + 8 * i) = both;
        }
    }
}

#define KERNEL extern "C" __global__ void
#define PLAIN(T, name)                                                                                                 \
    KERNEL append_##name(const T *qkv, const Sequence *sequences, const int *owners, Layer layer, int width) {         \
        append<T>(qkv, sequences, owners, layer, width);                                                               \
    }                                                                                                                  \
    KERNEL __launch_bounds__(128) attend_##name(const T *qkv, T *out, const Sequence *sequences, const Tile *tiles,    \
                                                Layer layer, int width) {                                              \
        attend_plain<T, 32>(qkv, out, sequences, tiles, layer, width);                                                 \
    }                                                                                                                  \
    KERNEL __launch_bounds__(128) attend_wide_##name(const T *qkv, T *out, const Sequence *sequences,                  \
                                                     const Tile *tiles, Layer layer, int width) {                      \
        attend_plain<T, 64>(qkv, out, sequences, tiles, layer, width);                                                 \
    }
PLAIN(float, f32)
PLAIN(bf16, bf16)

// For short sequences and for long ones.
#define TILES(WIDTH)                                                                                                   \
    KERNEL __launch_bounds__(64) attend_short_##WIDTH(const bf16 *qkv, bf16 *out, const Sequence *sequences,           \
                                                      const Tile *tiles, Layer layer, int) {                           \
        attend_tiles<WIDTH, 2, 32>(qkv, out, sequences, tiles, layer);                                                 \
    }                                                                                                                  \
    KERNEL __launch_bounds__(128) attend_long_##WIDTH(const bf16 *qkv, bf16 *out, const Sequence *sequences,           \
                                                      const Tile *tiles, Layer layer, int) {                           \
        attend_tiles<WIDTH, 4, 64>(qkv, out, sequences, tiles, layer);                                                 \
    }
TILES(16)
TILES(32)
TILES(48)
TILES(64)
TILES(80)
TILES(96)
TILES(128)
