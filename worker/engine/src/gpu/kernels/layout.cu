// Numbers in another order, and parts of matrices.

// `[batch, rows, columns]` to `[batch, columns, rows]`, in tiles, so that reads and writes are both side by side.
template <class F> __device__ __forceinline__ void in_turn(const float *x, u32 rows, u32 columns, F write) {
  __shared__ float tile[32][33];
  u64 first = (u64)blockIdx.z * rows * columns;
  u32 column = blockIdx.x * 32 + threadIdx.x, top = blockIdx.y * 32;
  for (u32 k = threadIdx.y; k < 32; k += 8)
    if (top + k < rows && column < columns) tile[k][threadIdx.x] = x[first + (u64)(top + k) * columns + column];
  __syncthreads();
  u32 row = top + threadIdx.x, left = blockIdx.x * 32;
  for (u32 k = threadIdx.y; k < 32; k += 8)
    if (left + k < columns && row < rows) write(first + (u64)(left + k) * rows + row, tile[threadIdx.x][k]);
}

extern "C" __global__ void transpose(float *y, const float *x, u32 rows, u32 columns) {
  in_turn(x, rows, columns, [=](u64 i, float v) { y[i] = v; });
}

extern "C" __global__ void transpose_bf16(bf16 *y, const float *x, u32 rows, u32 columns) {
  in_turn(x, rows, columns, [=](u64 i, float v) { set(&y[i], v); });
}

// Added to what is there.
extern "C" __global__ void add_transpose(float *y, const float *x, u32 rows, u32 columns) {
  in_turn(x, rows, columns, [=](u64 i, float v) { y[i] += v; });
}

// `width` columns of each row, from one matrix into another.
template <int V, class T>
__device__ __forceinline__ void copied(T *to, u32 to_stride, u32 to_first, const T *from, u32 from_stride, u32 from_first,
                                       u64 n, u32 width) {
  EACH_IN_ROWS(i, n / V, column, width / V) {
    u64 row = over(i, width / V);
    put<V>(to, (row * to_stride + to_first) / V + column, some<V>(from, (row * from_stride + from_first) / V + column));
  }
}

extern "C" __global__ void copy_columns(float *to, u32 to_stride, u32 to_first, const float *from, u32 from_stride,
                                        u32 from_first, u64 n, u32 width) {
  IN_FOURS(by_four(to_stride | to_first | from_stride | from_first | width, to, from), copied, to, to_stride, to_first, from,
           from_stride, from_first, n, width);
}

extern "C" __global__ void copy_columns_bf16(bf16 *to, u32 to_stride, u32 to_first, const bf16 *from, u32 from_stride,
                                             u32 from_first, u64 n, u32 width) {
  u32 all = to_stride | to_first | from_stride | from_first | width;
  IN_EIGHTS(by_four(all, to, from), all, copied, to, to_stride, to_first, from, from_stride, from_first, n, width);
}

// The same, added to what is there.
extern "C" __global__ void add_columns(float *to, u32 to_stride, u32 to_first, const float *from, u32 from_stride,
                                       u32 from_first, u64 n, u32 width) {
  EACH_IN_ROWS(i, n, column, width) {
    u64 row = over(i, width);
    to[row * to_stride + to_first + column] += from[row * from_stride + from_first + column];
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
template <int V, class T>
__device__ __forceinline__ void moved(T *y, const T *x, u64 n, u32 h, u32 w, u32 c, u32 oh, u32 ow, int down, int right) {
  EACH_IN_ROWS(i, n / V, channel, c / V) {
    u64 pixel = over(i, c / V), line = over(pixel, ow), image = over(line, oh);
    u32 px = rest(pixel, ow) - right, py = rest(line, oh) - down; // outside they are huge
    Some<T, V> v = {};
    if (px < w && py < h) v = some<V>(x, ((image * h + py) * w + px) * (c / V) + channel);
    put<V>(y, i, v);
  }
}

extern "C" __global__ void move_image(float *y, const float *x, u64 n, u32 h, u32 w, u32 c, u32 oh, u32 ow, int down,
                                      int right) {
  IN_FOURS(by_four(c, x, y), moved, y, x, n, h, w, c, oh, ow, down, right);
}

extern "C" __global__ void move_image_bf16(bf16 *y, const bf16 *x, u64 n, u32 h, u32 w, u32 c, u32 oh, u32 ow, int down,
                                           int right) {
  IN_EIGHTS(by_four(c, x, y), c, moved, y, x, n, h, w, c, oh, ow, down, right);
}

// Every second pixel of images `[n, h, w, c]`, its channels behind `before` of `[n, oh, ow, channels]` that are zero.
template <int V, class T>
__device__ __forceinline__ void thinned(T *y, const T *x, u64 n, u32 h, u32 w, u32 c, u32 oh, u32 ow, u32 channels,
                                        u32 before) {
  EACH_IN_ROWS(i, n / V, place, channels / V) {
    u64 pixel = over(i, channels / V), line = over(pixel, ow), image = over(line, oh);
    u32 channel = (u32)place - before / V, px = rest(pixel, ow) * 2, py = rest(line, oh) * 2; // before the first it is huge
    Some<T, V> v = {};
    if (channel < c / V) v = some<V>(x, ((image * h + py) * w + px) * (c / V) + channel);
    put<V>(y, i, v);
  }
}

extern "C" __global__ void subsample(float *y, const float *x, u64 n, u32 h, u32 w, u32 c, u32 oh, u32 ow, u32 channels,
                                     u32 before) {
  IN_FOURS(by_four(c | channels | before, x, y), thinned, y, x, n, h, w, c, oh, ow, channels, before);
}

extern "C" __global__ void subsample_bf16(bf16 *y, const bf16 *x, u64 n, u32 h, u32 w, u32 c, u32 oh, u32 ow,
                                          u32 channels, u32 before) {
  u32 all = c | channels | before;
  IN_EIGHTS(by_four(all, x, y), all, thinned, y, x, n, h, w, c, oh, ow, channels, before);
}

// And back: what was passed over has no slope.
template <int V, class T>
__device__ __forceinline__ void unthinned(T *dx, const T *dy, u64 n, u32 h, u32 w, u32 c, u32 oh, u32 ow, u32 channels,
                                          u32 before) {
  EACH_IN_ROWS(i, n / V, channel, c / V) {
    u64 pixel = over(i, c / V), line = over(pixel, w), image = over(line, h);
    u32 px = rest(pixel, w), py = rest(line, h);
    Some<T, V> v = {};
    if (px % 2 == 0 && py % 2 == 0)
      v = some<V>(dy, (((image * oh + py / 2) * ow + px / 2) * channels + before) / V + channel);
    put<V>(dx, i, v);
  }
}

extern "C" __global__ void subsample_back(float *dx, const float *dy, u64 n, u32 h, u32 w, u32 c, u32 oh, u32 ow,
                                          u32 channels, u32 before) {
  IN_FOURS(by_four(c | channels | before, dx, dy), unthinned, dx, dy, n, h, w, c, oh, ow, channels, before);
}

extern "C" __global__ void subsample_back_bf16(bf16 *dx, const bf16 *dy, u64 n, u32 h, u32 w, u32 c, u32 oh, u32 ow,
                                               u32 channels, u32 before) {
  u32 all = c | channels | before;
  IN_EIGHTS(by_four(all, dx, dy), all, unthinned, dx, dy, n, h, w, c, oh, ow, channels, before);
}

// Packed rows of all samples, `stride` apart, to `[samples·heads, t, depth]` with zeros behind the end of each.
template <int V, class To, class From>
__device__ __forceinline__ void split(To *y, const From *x, const u32 *starts, const u32 *lengths, u64 n, u32 heads,
                                      u32 t, u32 depth, u32 stride, u32 first) {
  EACH(i, n / V) {
    u64 line = over(i * V, depth), square = over(line, t), sample = over(square, heads);
    u32 d = rest(i * V, depth), row = rest(line, t), head = rest(square, heads);
    Some<To, V> made = {};
    if (row < lengths[sample]) {
      Some<From, V> v = some<V>(x + (u64)(starts[sample] + row) * stride + first + head * depth + d, 0);
#pragma unroll
      for (int k = 0; k < V; k++) set(&made.of[k], f32_of(v.of[k]));
    }
    put<V>(y, i, made);
  }
}

extern "C" __global__ void split_heads(float *y, const float *x, const u32 *starts, const u32 *lengths, u64 n, u32 heads,
                                       u32 t, u32 depth, u32 stride, u32 first) {
  IN_FOURS(by_four(depth | stride | first, x, y), split, y, x, starts, lengths, n, heads, t, depth, stride, first);
}

extern "C" __global__ void split_heads_bf16(bf16 *y, const bf16 *x, const u32 *starts, const u32 *lengths, u64 n,
                                            u32 heads, u32 t, u32 depth, u32 stride, u32 first) {
  IN_FOURS(by_four(depth | stride | first, x, y), split, y, x, starts, lengths, n, heads, t, depth, stride, first);
}

extern "C" __global__ void split_heads_to_bf16(bf16 *y, const float *x, const u32 *starts, const u32 *lengths, u64 n,
                                               u32 heads, u32 t, u32 depth, u32 stride, u32 first) {
  IN_FOURS(by_four(depth | stride | first, x, y), split, y, x, starts, lengths, n, heads, t, depth, stride, first);
}

extern "C" __global__ void split_heads_from_bf16(float *y, const bf16 *x, const u32 *starts, const u32 *lengths, u64 n,
                                                 u32 heads, u32 t, u32 depth, u32 stride, u32 first) {
  IN_FOURS(by_four(depth | stride | first, x, y), split, y, x, starts, lengths, n, heads, t, depth, stride, first);
}

// And back: only what is real is written.
template <int V, class T>
__device__ __forceinline__ void unsplit(T *y, const T *x, const u32 *starts, const u32 *lengths, u64 n, u32 heads,
                                        u32 t, u32 depth, u32 stride, u32 first) {
  EACH(i, n / V) {
    u64 line = over(i * V, depth), square = over(line, t), sample = over(square, heads);
    u32 d = rest(i * V, depth), row = rest(line, t), head = rest(square, heads);
    if (row >= lengths[sample]) continue;
    put<V>(y + (u64)(starts[sample] + row) * stride + first + head * depth + d, 0, some<V>(x, i));
  }
}

extern "C" __global__ void join_heads(float *y, const float *x, const u32 *starts, const u32 *lengths, u64 n, u32 heads,
                                      u32 t, u32 depth, u32 stride, u32 first) {
  IN_FOURS(by_four(depth | stride | first, x, y), unsplit, y, x, starts, lengths, n, heads, t, depth, stride, first);
}

extern "C" __global__ void join_heads_bf16(bf16 *y, const bf16 *x, const u32 *starts, const u32 *lengths, u64 n,
                                           u32 heads, u32 t, u32 depth, u32 stride, u32 first) {
  IN_FOURS(by_four(depth | stride | first, x, y), unsplit, y, x, starts, lengths, n, heads, t, depth, stride, first);
}
