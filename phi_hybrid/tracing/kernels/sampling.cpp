// Gradients of multilinear interpolation, Σ over the 2^D corners of weight · value, at points given in cells.
//
// values (batch, channel, *sizes), each component of the points (batch, count), cotangents (batch, channel, count), all
// contiguous. Coordinates wrap around if the values are periodic, and stop at the outermost ones if not. NaN gives NaN.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>

namespace {

constexpr int BLOCK = 256;  // points at a time: what is known about them stays in the first cache

struct Shape {
    int64_t batch, channels, count, cells, sizes[3];
    bool periodic;
    int threads;
};

// Indices of the corners and fractions of one block of points.
template <typename T, int D>
struct Corners {
    int32_t index[1 << D][BLOCK];
    T fraction[D][BLOCK];
    T inside[D][BLOCK];  // 1 where the result depends on the coordinate, 0 beyond an end

    void find(const Shape& shape, const T* const* points, int64_t offset, int n) {
        for (int c = 0; c < 1 << D; ++c) std::fill(index[c], index[c] + n, 0);
        for (int d = 0; d < D; ++d) {
            const T* point = points[d] + offset;
            const T size = shape.sizes[d], inverse = 1 / size;
            const int32_t last = shape.sizes[d] - 1;
            int32_t low[BLOCK], high[BLOCK];
            if (shape.periodic) {
                for (int p = 0; p < n; ++p) {
                    const T lower = std::floor(point[p]);
                    fraction[d][p] = point[p] - lower;
                    int32_t i = static_cast<int32_t>(lower - std::floor(lower * inverse) * size);
                    i = i > last ? i - (last + 1) : i;
                    i = i < 0 || i > last ? 0 : i;  // NaN and infinity
                    low[p] = i;
                    high[p] = i == last ? 0 : i + 1;
                    inside[d][p] = 1;
                }
            } else {
                for (int p = 0; p < n; ++p) {
                    T x = point[p] < 0 ? T(0) : point[p];
                    x = x > last ? T(last) : x;
                    inside[d][p] = point[p] > 0 && point[p] < last ? T(1) : T(0);
                    const T lower = std::floor(x);
                    fraction[d][p] = x - lower;
                    int32_t i = static_cast<int32_t>(lower);
                    i = i < 0 || i > last ? 0 : i;
                    low[p] = i;
                    high[p] = i == last ? i : i + 1;
                }
            }
            const int32_t stride = shape.sizes[d];
            for (int c = 0; c < 1 << D; ++c) {
                const int32_t* own = c >> d & 1 ? high : low;
                for (int p = 0; p < n; ++p) index[c][p] = index[c][p] * stride + own[p];
            }
        }
    }
};

// Values at the corners of a block of points.
template <typename T, int D>
void gather(T (*level)[BLOCK], const Corners<T, D>& corners, const T* values, int n) {
    for (int c = 0; c < 1 << D; ++c)
        for (int p = 0; p < n; ++p) level[c][p] = values[corners.index[c][p]];
}

// Interpolation along the axes one after the other, but for `skip`; the result replaces the values at the first corner.
template <typename T, int D>
void interpolate(T (*level)[BLOCK], const Corners<T, D>& corners, int skip, int n) {
    for (int d = D - 1; d >= 0; --d) {
        if (d == skip) continue;
        for (int c = 0; c < 1 << d; ++c) {
            if (skip >= 0 && c >> skip & 1) continue;
            const T *fraction = corners.fraction[d], *high = level[c | 1 << d];
            T* low = level[c];
            for (int p = 0; p < n; ++p) low[p] += fraction[p] * (high[p] - low[p]);
        }
    }
}

// Adds the share of one block of points to the gradients of one channel.
template <typename T, int D>
void pull_back_block(const Corners<T, D>& corners, const T* given, const T* values, T* by_values, T* const* by_points,
                     int n) {
    T level[1 << D][BLOCK], other[1 << D][BLOCK];
    gather<T, D>(level, corners, values, n);
    for (int d = 0; d < D; ++d) {  // differences along d, interpolated across
        for (int c = 0; c < 1 << D; ++c) {
            if (c >> d & 1) continue;
            for (int p = 0; p < n; ++p) other[c][p] = level[c | 1 << d][p] - level[c][p];
        }
        interpolate<T, D>(other, corners, d, n);
        T* __restrict out = by_points[d];
        for (int p = 0; p < n; ++p) out[p] += corners.inside[d][p] * given[p] * other[0][p];
    }
    std::copy(given, given + n, level[0]);
    for (int d = 0; d < D; ++d)
        for (int c = 0; c < 1 << d; ++c)
            for (int p = 0; p < n; ++p) {
                level[c | 1 << d][p] = corners.fraction[d][p] * level[c][p];
                level[c][p] -= level[c | 1 << d][p];
            }
    for (int c = 0; c < 1 << D; ++c)  // neighbours in a row meet in one cell, but not at the same corner
        for (int p = 0; p < n; ++p) by_values[corners.index[c][p]] += level[c][p];
}

// Threads add to values of their own, which are summed afterwards, always in the same order: reproducible for a number of
// threads. Batch entries are apart anyway.
template <typename T, int D>
void pull_back(const Shape& shape, const T* cotangent, const T* values, const T* const* points, T* by_values,
               T* const* by_points) {
    const int64_t blocks = (shape.count + BLOCK - 1) / BLOCK, own = shape.channels * shape.cells;
    const int parts = std::max<int64_t>(1, std::min<int64_t>(shape.threads / std::max<int64_t>(shape.batch, 1), blocks));
    std::unique_ptr<T[]> copies(parts > 1 ? new T[shape.batch * (parts - 1) * own] : nullptr);
#pragma omp parallel num_threads(shape.threads)
    {
#pragma omp for schedule(static)
        for (int64_t job = 0; job < shape.batch * parts; ++job) {
            const int64_t b = job / parts, part = job % parts;
            T* target = part ? copies.get() + (b * (parts - 1) + part - 1) * own : by_values + b * own;
            std::memset(target, 0, own * sizeof(T));
            for (int64_t i = blocks * part / parts; i < blocks * (part + 1) / parts; ++i) {
                const int n = std::min<int64_t>(BLOCK, shape.count - i * BLOCK);
                const int64_t offset = b * shape.count + i * BLOCK;
                Corners<T, D> corners;
                corners.find(shape, points, offset, n);
                T* own_points[D];
                for (int d = 0; d < D; ++d) {
                    own_points[d] = by_points[d] + offset;
                    std::fill(own_points[d], own_points[d] + n, T(0));
                }
                for (int64_t k = 0; k < shape.channels; ++k) {
                    const int64_t channel = b * shape.channels + k;
                    const T* given = cotangent + channel * shape.count + i * BLOCK;
                    pull_back_block<T, D>(corners, given, values + channel * shape.cells, target + k * shape.cells,
                                          own_points, n);
                }
            }
        }
        for (int part = 1; part < parts; ++part) {
#pragma omp for schedule(static)
            for (int64_t i = 0; i < shape.batch * own; ++i)
                by_values[i] += copies[(i / own * (parts - 1) + part - 1) * own + i % own];
        }
    }
}

template <typename T>
void pull_back_in(int dims, const Shape& s, const T* cotangent, const T* values, const T* const* points, T* by_values,
                  T* const* by_points) {
    dims == 1 ? pull_back<T, 1>(s, cotangent, values, points, by_values, by_points)
    : dims == 2 ? pull_back<T, 2>(s, cotangent, values, points, by_values, by_points)
                : pull_back<T, 3>(s, cotangent, values, points, by_values, by_points);
}

}  // namespace

// Sizes and addresses beyond the number of dimensions are 0.
#define ENTRY(T, NAME)                                                                                                \
    extern "C" void pull_back_##NAME(int64_t dims, int64_t size0, int64_t size1, int64_t size2, int64_t batch,       \
                                     int64_t channels, int64_t count, int64_t periodic, int64_t threads,             \
                                     const T* cotangent, const T* values, const T* point0, const T* point1,          \
                                     const T* point2, T* by_values, T* by_point0, T* by_point1, T* by_point2) {      \
        Shape shape{batch, channels, count, 1, {size0, size1, size2}, periodic != 0, 1};                             \
        for (int d = 0; d < dims; ++d) shape.cells *= shape.sizes[d];                                                \
        if (batch * count > 4 * BLOCK) shape.threads = threads;                                                      \
        const T* const points[] = {point0, point1, point2};                                                          \
        T* const by_points[] = {by_point0, by_point1, by_point2};                                                    \
        pull_back_in<T>(dims, shape, cotangent, values, points, by_values, by_points);                               \
    }

ENTRY(float, float32)
ENTRY(double, float64)
