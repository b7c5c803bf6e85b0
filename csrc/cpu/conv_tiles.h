// The kernels of conv3x3.h, written once over a small vector type. Each conv_*.cpp defines VQTOK_TARGET, VQTOK_LANES and
// a vector type V in an unnamed namespace (see scan.h), includes lanes.h before it and this file after it.
//
// V has: rows (tiles that multiply takes at a time), channels (in a word), zero, load, store, broadcast, fma (of words),
// keep (of kLanes channels as words).

namespace {

template <class V>
VQTOK_TARGET void map_input(const float* pixels, int64_t row_stride, int64_t tiles, int64_t C, float* points, int64_t p_stride) {
    for (int64_t t = 0; t < tiles; ++t, pixels += 2 * C, points += C / V::channels)
        for (int64_t c = 0; c < C; c += kLanes) {
            Floats d[4][4];
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) {
                const float* column = pixels + j * C + c;
                Floats x0, x1, x2, x3;
                load(column, x0), load(column + row_stride, x1);
                load(column + 2 * row_stride, x2), load(column + 3 * row_stride, x3);
                d[0][j] = x0 - x2, d[1][j] = x1 + x2, d[2][j] = x2 - x1, d[3][j] = x1 - x3;
            }
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                float* out = points + 4 * i * p_stride + c / V::channels;
                V::keep(out, d[i][0] - d[i][2]);
                V::keep(out + p_stride, d[i][1] + d[i][2]);
                V::keep(out + 2 * p_stride, d[i][2] - d[i][1]);
                V::keep(out + 3 * p_stride, d[i][1] - d[i][3]);
            }
        }
}

// R tiles by two vectors of outputs, which stay in registers over all input channels.
template <class V, int R>
VQTOK_INLINE void multiply_block(const float* points, int64_t words, const float* weights, float* products) {
    typename V::Float sum[R][2];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) sum[r][0] = sum[r][1] = V::zero();
    for (int64_t w = 0; w < words; ++w, weights += vqtok::kOutputs) {
        const typename V::Float first = V::load(weights), second = V::load(weights + kLanes);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const typename V::Float point = V::broadcast(points + r * words + w);
            sum[r][0] = V::fma(point, first, sum[r][0]);
            sum[r][1] = V::fma(point, second, sum[r][1]);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
        V::store(products + r * vqtok::kOutputs, sum[r][0]);
        V::store(products + r * vqtok::kOutputs + kLanes, sum[r][1]);
    }
}

template <class V, int R>
VQTOK_TARGET void multiply_rows(const float* points, int64_t words, const float* weights, float* products) {
    for (int n = 0; n < vqtok::kOutputs; n += 2 * kLanes) multiply_block<V, R>(points, words, weights + n, products + n);
}

// The last rows, fewer than V::rows.
template <class V, int R = V::rows - 1>
VQTOK_TARGET void multiply_rest(const float* points, int64_t T, int64_t words, const float* weights, float* products) {
    if (T == R) return multiply_rows<V, R>(points, words, weights, products);
    if constexpr (R > 1) multiply_rest<V, R - 1>(points, T, words, weights, products);
}

template <class V>
VQTOK_TARGET void multiply(const float* points, int64_t T, int64_t words, const float* weights, float* products) {
    for (; T >= V::rows; T -= V::rows, points += V::rows * words, products += V::rows * vqtok::kOutputs)
        multiply_rows<V, V::rows>(points, words, weights, products);
    if (T > 0) multiply_rest<V>(points, T, words, weights, products);
}

template <class Stored>
VQTOK_INLINE void put(const Floats& value, const Floats& bias, const vqtok::TileRow& to, int64_t at) {
    Floats sum = value + bias;
    if (to.residual != nullptr) {
        Floats more;
        load(static_cast<const Stored*>(to.residual) + at, more);
        sum += more;
    }
    store(static_cast<Stored*>(to.y) + at, sum);
}

template <class Stored>
VQTOK_TARGET void map_output(const float* products, int64_t p_stride, int64_t tiles, const vqtok::TileRow& to) {
    for (int64_t t = 0; t < tiles; ++t, products += vqtok::kOutputs)
        for (int64_t n = 0; n < vqtok::kOutputs; n += kLanes) {
            Floats m[2][4], bias = {};
            if (to.bias != nullptr) load(to.bias + n, bias);
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) {
                const float* p = products + j * p_stride + n;
                Floats x0, x1, x2, x3;
                load(p, x0), load(p + 4 * p_stride, x1), load(p + 8 * p_stride, x2), load(p + 12 * p_stride, x3);
                m[0][j] = x0 + x1 + x2, m[1][j] = x1 - x2 - x3;
            }
            const bool wide = 2 * t + 1 < to.pixels;
#pragma GCC unroll 2
            for (int i = 0; i < 2; ++i) {
                if (i >= to.rows) break;
                const int64_t at = i * to.row + 2 * t * to.pixel + n;
                put<Stored>(m[i][0] + m[i][1] + m[i][2], bias, to, at);
                if (wide) put<Stored>(m[i][1] - m[i][2] - m[i][3], bias, to, at + to.pixel);
            }
        }
}

template <class V>
constexpr vqtok::ConvKernel conv_kernel_of() {
    static_assert(vqtok::kOutputs % (2 * kLanes) == 0 && vqtok::kChannelMultiple % kLanes == 0);
    return {V::channels, map_input<V>, multiply<V>, map_output<float>, map_output<uint16_t>};
}

}  // namespace
