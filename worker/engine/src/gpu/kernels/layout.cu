// Numbers in another order, and parts of matrices.

// `[batch, rows, columns]` to `[batch, columns, rows]`, in tiles, so that reads and writes are both side by side.
extern "C" __global__ void transpose(float *y, const float *x, u32 rows, u32 columns) {
  __shared__ float tile[32][33];
  u64 first = (u64)blockIdx.z * rows * columns;
  u32 column = blockIdx.x * 32 + threadIdx.x, top = blockIdx.y * 32;
  for (u32 k = threadIdx.y; k < 32; k += 8)
    if (top + k < rows && column < columns) tile[k][threadIdx.x] = x[first + (u64)(top + k) * columns + column];
  __syncthreads();
  u32 row = top + threadIdx.x, left = blockIdx.x * 32;
  for (u32 k = threadIdx.y; k < 32; k += 8)
    if (left + k < columns && row < rows) y[first + (u64)(left + k) * rows + row] = tile[threadIdx.x][k];
}

// `width` columns of each row, from one matrix into another; added where `add`.
extern "C" __global__ void copy_columns(float *to, u32 to_stride, u32 to_first, const float *from, u32 from_stride,
                                        u32 from_first, u64 n, u32 width, int add) {
  EACH(i, n) {
    u64 row = over(i, width);
    u32 column = rest(i, width);
    float *target = to + row * to_stride + to_first + column;
    float value = from[row * from_stride + from_first + column];
    *target = add ? *target + value : value;
  }
}

// Rows by number; zeros where there is none.
extern "C" __global__ void take_rows(float *y, const float *x, const u32 *which, u64 n, u32 c) {
  EACH(i, n) {
    u32 row = which[over(i, c)];
    y[i] = row == 0xffffffffu ? 0.0f : x[(u64)row * c + rest(i, c)];
  }
}

// Images `[n, h, w, c]` moved down and right, cut or filled up with zeros to `[n, oh, ow, c]`.
extern "C" __global__ void move_image(float *y, const float *x, u64 n, u32 h, u32 w, u32 c, u32 oh, u32 ow, int down,
                                      int right) {
  EACH(i, n) {
    u64 pixel = over(i, c), line = over(pixel, ow), image = over(line, oh);
    u32 channel = rest(i, c), px = rest(pixel, ow) - right, py = rest(line, oh) - down; // outside they are huge
    y[i] = px < w && py < h ? x[((image * h + py) * w + px) * c + channel] : 0.0f;
  }
}

// Every second pixel of images `[n, h, w, c]`, its channels behind `before` of `[n, oh, ow, channels]` that are zero.
extern "C" __global__ void subsample(float *y, const float *x, u64 n, u32 h, u32 w, u32 c, u32 oh, u32 ow, u32 channels,
                                     u32 before) {
  EACH(i, n) {
    u32 channel = (u32)(i % channels) - before; // before the first it is huge
    u32 px = i / channels % ow * 2, py = i / channels / ow % oh * 2;
    u64 image = i / channels / ow / oh;
    y[i] = channel < c ? x[((image * h + py) * w + px) * c + channel] : 0.0f;
  }
}

// And back: what was passed over has no slope.
extern "C" __global__ void subsample_back(float *dx, const float *dy, u64 n, u32 h, u32 w, u32 c, u32 oh, u32 ow,
                                          u32 channels, u32 before) {
  EACH(i, n) {
    u32 channel = i % c, px = i / c % w, py = i / c / w % h;
    u64 image = i / c / w / h;
    bool kept = px % 2 == 0 && py % 2 == 0;
    dx[i] = kept ? dy[((image * oh + py / 2) * ow + px / 2) * channels + before + channel] : 0.0f;
  }
}

// Packed rows of all samples, `stride` apart, to `[samples·heads, t, depth]` with zeros behind the end of each.
template <int V, class T>
__device__ __forceinline__ void split(T *y, const float *x, const u32 *starts, const u32 *lengths, u64 n, u32 heads,
                                      u32 t, u32 depth, u32 stride, u32 first) {
  EACH(i, n / V) {
    u64 line = over(i * V, depth), square = over(line, t), sample = over(square, heads);
    u32 d = rest(i * V, depth), row = rest(line, t), head = rest(square, heads);
    Some<T, V> made = {};
    if (row < lengths[sample]) {
      Some<float, V> v = some<V>(x + (u64)(starts[sample] + row) * stride + first + head * depth + d, 0);
#pragma unroll
      for (int k = 0; k < V; k++) set(&made.of[k], v.of[k]);
    }
    put<V>(y, i, made);
  }
}

extern "C" __global__ void split_heads(float *y, const float *x, const u32 *starts, const u32 *lengths, u64 n, u32 heads,
                                       u32 t, u32 depth, u32 stride, u32 first) {
  IN_FOURS(by_four(depth | stride | first, x, y), split, y, x, starts, lengths, n, heads, t, depth, stride, first);
}

extern "C" __global__ void split_heads_bf16(bf16 *y, const float *x, const u32 *starts, const u32 *lengths, u64 n,
                                            u32 heads, u32 t, u32 depth, u32 stride, u32 first) {
  IN_FOURS(by_four(depth | stride | first, x, y), split, y, x, starts, lengths, n, heads, t, depth, stride, first);
}

// And back: only what is real is written.
template <int V, class T>
__device__ __forceinline__ void unsplit(float *y, const T *x, const u32 *starts, const u32 *lengths, u64 n, u32 heads,
                                        u32 t, u32 depth, u32 stride, u32 first) {
  EACH(i, n / V) {
    u64 line = over(i * V, depth), square = over(line, t), sample = over(square, heads);
    u32 d = rest(i * V, depth), row = rest(line, t), head = rest(square, heads);
    if (row >= lengths[sample]) continue;
    Some<T, V> v = some<V>(x, i);
    Some<float, V> made;
#pragma unroll
    for (int k = 0; k < V; k++) made.of[k] = f32_of(v.of[k]);
    put<V>(y + (u64)(starts[sample] + row) * stride + first + head * depth + d, 0, made);
  }
}

extern "C" __global__ void join_heads(float *y, const float *x, const u32 *starts, const u32 *lengths, u64 n, u32 heads,
                                      u32 t, u32 depth, u32 stride, u32 first) {
  IN_FOURS(by_four(depth | stride | first, x, y), unsplit, y, x, starts, lengths, n, heads, t, depth, stride, first);
}

extern "C" __global__ void join_heads_bf16(float *y, const bf16 *x, const u32 *starts, const u32 *lengths, u64 n,
                                           u32 heads, u32 t, u32 depth, u32 stride, u32 first) {
  IN_FOURS(by_four(depth | stride | first, x, y), unsplit, y, x, starts, lengths, n, heads, t, depth, stride, first);
}
