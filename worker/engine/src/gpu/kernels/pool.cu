// Pooling of images `[n, h, w, c]`, some channels of a pixel at a time. A gradient is gathered: each input pixel asks the
// windows that hold it, in their order. Sums are f32; those of bf16 are rounded once.

// The largest of each window and the pixel where it lies; the first one wins a tie, a NaN wins always.
template <int V, class T>
__device__ __forceinline__ void largest(T *y, u32 *chosen, const T *x, u64 n, u32 h, u32 w, u32 c, u32 oh, u32 ow, u32 k,
                                        u32 stride, u32 pad) {
  EACH(i, n / V) {
    u64 place = over(i, c / V), line = over(place, ow);
    u32 channel = rest(i, c / V), ox = rest(place, ow), oy = rest(line, oh);
    const T *image = x + over(line, oh) * ((u64)h * w * c);
    u32 top = oy * stride < pad ? 0 : oy * stride - pad, bottom = oy * stride + k - pad;
    u32 left = ox * stride < pad ? 0 : ox * stride - pad, right = ox * stride + k - pad;
    Some<float, V> best = {};
    Some<u32, V> at = {};
    bool first = true;
    for (u32 py = top; py < bottom && py < h; py++)
      for (u32 px = left; px < right && px < w; px++) {
        Some<T, V> read = some<V>(image, ((u64)py * w + px) * (c / V) + channel);
#pragma unroll
        for (int j = 0; j < V; j++) {
          float v = f32_of(read.of[j]);
          if (first || v > best.of[j] || v != v) {
            best.of[j] = v;
            at.of[j] = py * w + px;
          }
        }
        first = false;
      }
    put<V>(y, i, best);
    put<V>(chosen, i, at);
  }
}

extern "C" __global__ void max_pool(float *y, u32 *chosen, const float *x, u64 n, u32 h, u32 w, u32 c, u32 oh, u32 ow,
                                    u32 k, u32 stride, u32 pad) {
  IN_FOURS(by_four(c, x, y) && by_four(c, chosen, chosen), largest, y, chosen, x, n, h, w, c, oh, ow, k, stride, pad);
}

extern "C" __global__ void max_pool_bf16(bf16 *y, u32 *chosen, const bf16 *x, u64 n, u32 h, u32 w, u32 c, u32 oh, u32 ow,
                                         u32 k, u32 stride, u32 pad) {
  IN_EIGHTS(by_four(c, x, y) && by_four(c, chosen, chosen), c, largest, y, chosen, x, n, h, w, c, oh, ow, k, stride, pad);
}

template <int V, class T>
__device__ __forceinline__ void unpooled(T *dx, const T *dy, const u32 *chosen, u64 n, u32 h, u32 w, u32 c, u32 oh, u32 ow,
                                         u32 k, u32 stride, u32 pad) {
  EACH(i, n / V) {
    u64 place = over(i, c / V), line = over(place, w);
    u32 channel = rest(i, c / V), px = rest(place, w), py = rest(line, h), pixel = py * w + px;
    u64 outputs = over(line, h) * ((u64)oh * ow);
    // The first window that reaches this far, and the last one that begins before it.
    u32 top = py + pad < k ? 0 : (py + pad - k) / stride + 1, bottom = (py + pad) / stride;
    u32 left = px + pad < k ? 0 : (px + pad - k) / stride + 1, right = (px + pad) / stride;
    Some<float, V> sum = {};
    for (u32 oy = top; oy <= bottom && oy < oh; oy++)
      for (u32 ox = left; ox <= right && ox < ow; ox++) {
        u64 at = (outputs + (u64)oy * ow + ox) * (c / V) + channel;
        Some<u32, V> own = some<V>(chosen, at);
        Some<T, V> slope = some<V>(dy, at);
#pragma unroll
        for (int j = 0; j < V; j++)
          if (own.of[j] == pixel) sum.of[j] += f32_of(slope.of[j]);
      }
    put<V>(dx, i, sum);
  }
}

extern "C" __global__ void max_pool_back(float *dx, const float *dy, const u32 *chosen, u64 n, u32 h, u32 w, u32 c,
                                         u32 oh, u32 ow, u32 k, u32 stride, u32 pad) {
  IN_FOURS(by_four(c, dx, dy) && by_four(c, chosen, chosen), unpooled, dx, dy, chosen, n, h, w, c, oh, ow, k, stride, pad);
}

extern "C" __global__ void max_pool_back_bf16(bf16 *dx, const bf16 *dy, const u32 *chosen, u64 n, u32 h, u32 w, u32 c,
                                              u32 oh, u32 ow, u32 k, u32 stride, u32 pad) {
  IN_EIGHTS(by_four(c, dx, dy) && by_four(c, chosen, chosen), c, unpooled, dx, dy, chosen, n, h, w, c, oh, ow, k, stride, pad);
}

// Means of windows. A direction is a table of its windows: first pixel, pixel behind the last, divisor.
template <int V, class T>
__device__ __forceinline__ void averaged(T *y, const T *x, const u32 *rows, const u32 *columns, u64 n, u32 h, u32 w, u32 c,
                                         u32 oh, u32 ow) {
  EACH(i, n / V) {
    u64 place = over(i, c / V), line = over(place, ow);
    u32 channel = rest(i, c / V);
    const u32 *column = columns + rest(place, ow) * 3, *row = rows + rest(line, oh) * 3;
    const T *image = x + over(line, oh) * ((u64)h * w * c);
    Some<float, V> sum = {};
    for (u32 py = row[0]; py < row[1]; py++)
      for (u32 px = column[0]; px < column[1]; px++) {
        Some<T, V> v = some<V>(image, ((u64)py * w + px) * (c / V) + channel);
#pragma unroll
        for (int j = 0; j < V; j++) sum.of[j] += f32_of(v.of[j]);
      }
    float by = (float)(row[2] * column[2]);
#pragma unroll
    for (int j = 0; j < V; j++) sum.of[j] /= by;
    put<V>(y, i, sum);
  }
}

extern "C" __global__ void average_pool(float *y, const float *x, const u32 *rows, const u32 *columns, u64 n, u32 h,
                                        u32 w, u32 c, u32 oh, u32 ow) {
  IN_FOURS(by_four(c, x, y), averaged, y, x, rows, columns, n, h, w, c, oh, ow);
}

extern "C" __global__ void average_pool_bf16(bf16 *y, const bf16 *x, const u32 *rows, const u32 *columns, u64 n, u32 h,
                                             u32 w, u32 c, u32 oh, u32 ow) {
  IN_EIGHTS(by_four(c, x, y), c, averaged, y, x, rows, columns, n, h, w, c, oh, ow);
}

// `y_spans` and `x_spans`: for each pixel of a direction the first window that holds it, and the one behind the last.
template <int V, class T>
__device__ __forceinline__ void unaveraged(T *dx, const T *dy, const u32 *rows, const u32 *columns, const u32 *y_spans,
                                           const u32 *x_spans, u64 n, u32 h, u32 w, u32 c, u32 oh, u32 ow) {
  EACH(i, n / V) {
    u64 place = over(i, c / V), line = over(place, w);
    u32 channel = rest(i, c / V);
    const u32 *xs = x_spans + rest(place, w) * 2, *ys = y_spans + rest(line, h) * 2;
    u64 outputs = over(line, h) * ((u64)oh * ow);
    Some<float, V> sum = {};
    for (u32 oy = ys[0]; oy < ys[1]; oy++)
      for (u32 ox = xs[0]; ox < xs[1]; ox++) {
        Some<T, V> v = some<V>(dy, (outputs + (u64)oy * ow + ox) * (c / V) + channel);
        float by = (float)(rows[oy * 3 + 2] * columns[ox * 3 + 2]);
#pragma unroll
        for (int j = 0; j < V; j++) sum.of[j] += f32_of(v.of[j]) / by;
      }
    put<V>(dx, i, sum);
  }
}

extern "C" __global__ void average_pool_back(float *dx, const float *dy, const u32 *rows, const u32 *columns,
                                             const u32 *y_spans, const u32 *x_spans, u64 n, u32 h, u32 w, u32 c, u32 oh,
                                             u32 ow) {
  IN_FOURS(by_four(c, dx, dy), unaveraged, dx, dy, rows, columns, y_spans, x_spans, n, h, w, c, oh, ow);
}

extern "C" __global__ void average_pool_back_bf16(bf16 *dx, const bf16 *dy, const u32 *rows, const u32 *columns,
                                                  const u32 *y_spans, const u32 *x_spans, u64 n, u32 h, u32 w, u32 c,
                                                  u32 oh, u32 ow) {
  IN_EIGHTS(by_four(c, dx, dy), c, unaveraged, dx, dy, rows, columns, y_spans, x_spans, n, h, w, c, oh, ow);
}

// Pixels that a chain asks for before it waits for the first: of one array, or of two.
#define AHEAD (BOTH ? 16 : 32)

// Sums of each image and channel over its pixels, of x or of x·y, in f64, divided by `by`: eight chains of every eighth pixel,
// in order. One block for 32·V channels of one image.
template <int V, bool BOTH, class T>
__device__ __forceinline__ void image_sums(T *out, const T *x, const T *y, double by, u32 area, u32 c) {
  __shared__ double chains[8][32][V];
  u32 words = c / V, word = blockIdx.x * 32 + threadIdx.x;
  if (blockIdx.x * 32 >= words) return; // with its whole block
  u64 image = (u64)blockIdx.y * area * words + word;
  double sum[V] = {};
  if (word < words)
    for (u32 pixel = threadIdx.y; pixel < area; pixel += 8 * AHEAD) {
      Some<T, V> v[AHEAD], w[AHEAD];
#pragma unroll
      for (u32 n = 0; n < AHEAD; n++) {
        if (pixel + 8 * n >= area) break;
        v[n] = some<V>(x, image + (u64)(pixel + 8 * n) * words);
        if (BOTH) w[n] = some<V>(y, image + (u64)(pixel + 8 * n) * words);
      }
#pragma unroll
      for (u32 n = 0; n < AHEAD; n++) {
        if (pixel + 8 * n >= area) break;
#pragma unroll
        for (int j = 0; j < V; j++) {
          double own = (double)f32_of(v[n].of[j]);
          sum[j] += BOTH ? own * (double)f32_of(w[n].of[j]) : own;
        }
      }
    }
#pragma unroll
  for (int j = 0; j < V; j++) chains[threadIdx.y][threadIdx.x][j] = sum[j];
  __syncthreads();
  if (threadIdx.y == 0 && word < words)
#pragma unroll
    for (int j = 0; j < V; j++) {
      for (u32 k = 1; k < 8; k++) sum[j] += chains[k][threadIdx.x][j];
      set(&out[(u64)blockIdx.y * c + word * V + j], (float)(sum[j] / by));
    }
}

extern "C" __global__ void global_mean(float *y, const float *x, u32 area, u32 c) {
  image_sums<1, false>(y, x, x, (double)area, area, c);
}

extern "C" __global__ void global_mean_bf16(bf16 *y, const bf16 *x, u32 area, u32 c) {
  if (c % 2 == 0) image_sums<2, false>(y, x, x, (double)area, area, c);
  else image_sums<1, false>(y, x, x, (double)area, area, c);
}

extern "C" __global__ void global_products(float *out, const float *x, const float *y, u32 area, u32 c) {
  image_sums<1, true>(out, x, y, 1.0, area, c);
}

extern "C" __global__ void global_products_bf16(bf16 *out, const bf16 *x, const bf16 *y, u32 area, u32 c) {
  if (c % 2 == 0) image_sums<2, true>(out, x, y, 1.0, area, c);
  else image_sums<1, true>(out, x, y, 1.0, area, c);
}

template <int V, class T>
__device__ __forceinline__ void shared_out(T *dx, const T *dy, float share, u64 n, u32 area, u32 c) {
  EACH_IN_ROWS(i, n / V, channel, c / V) {
    Some<T, V> v = some<V>(dy, over(over(i, c / V), area) * (c / V) + channel);
#pragma unroll
    for (int j = 0; j < V; j++) set(&v.of[j], f32_of(v.of[j]) * share);
    put<V>(dx, i, v);
  }
}

extern "C" __global__ void global_mean_back(float *dx, const float *dy, float share, u64 n, u32 area, u32 c) {
  IN_FOURS(by_four(c, dx, dy), shared_out, dx, dy, share, n, area, c);
}

extern "C" __global__ void global_mean_back_bf16(bf16 *dx, const bf16 *dy, float share, u64 n, u32 area, u32 c) {
  IN_EIGHTS(by_four(c, dx, dy), c, shared_out, dx, dy, share, n, area, c);
}
