// Pooling of images `[n, h, w, c]`. A gradient is gathered: each input pixel asks the windows that hold it, in their order.

// The largest of each window and the pixel where it lies; the first one wins a tie, a NaN wins always.
extern "C" __global__ void max_pool(float *y, u32 *chosen, const float *x, u64 n, u32 h, u32 w, u32 c, u32 oh, u32 ow,
                                    u32 k, u32 stride, u32 pad) {
  EACH(i, n) {
    u64 place = over(i, c), line = over(place, ow);
    u32 channel = rest(i, c), ox = rest(place, ow), oy = rest(line, oh);
    const float *image = x + over(line, oh) * ((u64)h * w * c);
    u32 top = oy * stride < pad ? 0 : oy * stride - pad, bottom = oy * stride + k - pad;
    u32 left = ox * stride < pad ? 0 : ox * stride - pad, right = ox * stride + k - pad;
    float best = 0.0f;
    u32 at = 0;
    bool first = true;
    for (u32 py = top; py < bottom && py < h; py++)
      for (u32 px = left; px < right && px < w; px++) {
        float v = image[((u64)py * w + px) * c + channel];
        if (first || v > best || v != v) {
          best = v;
          at = py * w + px;
        }
        first = false;
      }
    y[i] = best;
    chosen[i] = at;
  }
}

extern "C" __global__ void max_pool_back(float *dx, const float *dy, const u32 *chosen, u64 n, u32 h, u32 w, u32 c,
                                         u32 oh, u32 ow, u32 k, u32 stride, u32 pad) {
  EACH(i, n) {
    u64 place = over(i, c), line = over(place, w);
    u32 channel = rest(i, c), px = rest(place, w), py = rest(line, h), pixel = py * w + px;
    u64 outputs = over(line, h) * ((u64)oh * ow);
    // The first window that reaches this far, and the last one that begins before it.
    u32 top = py + pad < k ? 0 : (py + pad - k) / stride + 1, bottom = (py + pad) / stride;
    u32 left = px + pad < k ? 0 : (px + pad - k) / stride + 1, right = (px + pad) / stride;
    float sum = 0.0f;
    for (u32 oy = top; oy <= bottom && oy < oh; oy++)
      for (u32 ox = left; ox <= right && ox < ow; ox++) {
        u64 at = (outputs + (u64)oy * ow + ox) * c + channel;
        if (chosen[at] == pixel) sum += dy[at];
      }
    dx[i] = sum;
  }
}

// Means of windows. A direction is a table of its windows: first pixel, pixel behind the last, divisor.
extern "C" __global__ void average_pool(float *y, const float *x, const u32 *rows, const u32 *columns, u64 n, u32 h,
                                        u32 w, u32 c, u32 oh, u32 ow) {
  EACH(i, n) {
    u32 channel = i % c;
    const u32 *column = columns + i / c % ow * 3, *row = rows + i / c / ow % oh * 3;
    const float *image = x + i / c / ow / oh * ((u64)h * w * c);
    float sum = 0.0f;
    for (u32 py = row[0]; py < row[1]; py++)
      for (u32 px = column[0]; px < column[1]; px++) sum += image[((u64)py * w + px) * c + channel];
    y[i] = sum / (float)(row[2] * column[2]);
  }
}

// `y_spans` and `x_spans`: for each pixel of a direction the first window that holds it, and the one behind the last.
extern "C" __global__ void average_pool_back(float *dx, const float *dy, const u32 *rows, const u32 *columns,
                                             const u32 *y_spans, const u32 *x_spans, u64 n, u32 h, u32 w, u32 c, u32 oh,
                                             u32 ow) {
  EACH(i, n) {
    u32 channel = i % c;
    const u32 *xs = x_spans + i / c % w * 2, *ys = y_spans + i / c / w % h * 2;
    u64 outputs = i / c / w / h * ((u64)oh * ow);
    float sum = 0.0f;
    for (u32 oy = ys[0]; oy < ys[1]; oy++)
      for (u32 ox = xs[0]; ox < xs[1]; ox++)
        sum += dy[(outputs + (u64)oy * ow + ox) * c + channel] / (float)(rows[oy * 3 + 2] * columns[ox * 3 + 2]);
    dx[i] = sum;
  }
}

// Sums of each image and channel over its pixels, of x or of x·y, in f64: eight chains of every eighth pixel, in order.
// One block for 32 channels of one image.
__device__ __forceinline__ double image_sum(const float *x, const float *y, u32 area, u32 c) {
  __shared__ double chains[8][32];
  u32 channel = blockIdx.x * 32 + threadIdx.x;
  u64 image = (u64)blockIdx.y * area * c;
  double sum = 0.0;
  if (channel < c)
    for (u32 pixel = threadIdx.y; pixel < area; pixel += 8) {
      u64 at = image + (u64)pixel * c + channel;
      sum += y ? (double)x[at] * (double)y[at] : (double)x[at];
    }
  chains[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y == 0)
    for (u32 k = 1; k < 8; k++) sum += chains[k][threadIdx.x];
  return sum;
}

extern "C" __global__ void global_mean(float *y, const float *x, u32 area, u32 c) {
  double sum = image_sum(x, 0, area, c);
  u32 channel = blockIdx.x * 32 + threadIdx.x;
  if (threadIdx.y == 0 && channel < c) y[(u64)blockIdx.y * c + channel] = (float)(sum / (double)area);
}

extern "C" __global__ void global_products(float *out, const float *x, const float *y, u32 area, u32 c) {
  double sum = image_sum(x, y, area, c);
  u32 channel = blockIdx.x * 32 + threadIdx.x;
  if (threadIdx.y == 0 && channel < c) out[(u64)blockIdx.y * c + channel] = (float)sum;
}

extern "C" __global__ void global_mean_back(float *dx, const float *dy, float share, u64 n, u32 area, u32 c) {
  EACH_IN_ROWS(i, n, channel, c) dx[i] = dy[over(over(i, c), area) * c + channel] * share;
}
