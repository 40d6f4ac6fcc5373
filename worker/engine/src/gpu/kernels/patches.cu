// Windows of a convolution, `[outputs, line]`: what each covers, by tap and channel, and zeros beyond the border of an image
// and behind the last tap. Numbers are moved and nothing else: a unit is one, or as many channels as sixteen bytes have.

struct alignas(16) Sixteen {
  u32 of[4];
};

template <class T>
__device__ __forceinline__ void unfold(T *y, const T *x, u64 n, u32 h, u32 w, u32 c, u32 oh, u32 ow, u32 kw, u32 depth,
                                       u32 line, u32 stride, u32 top, u32 left) {
  EACH_IN_ROWS(i, n, place, line) {
    u64 output = over(i, line), row = over(output, ow), image = over(row, oh);
    u32 tap = (u32)place / c, channel = (u32)place % c;
    u32 py = rest(row, oh) * stride + tap / kw - top, px = rest(output, ow) * stride + tap % kw - left; // or huge
    T value = T();
    if (place < depth && py < h && px < w) value = x[((image * h + py) * w + px) * c + channel];
    y[i] = value;
  }
}

extern "C" __global__ void patches_2(bf16 *y, const bf16 *x, u64 n, u32 h, u32 w, u32 c, u32 oh, u32 ow, u32 kw, u32 depth,
                                     u32 line, u32 stride, u32 top, u32 left) {
  unfold(y, x, n, h, w, c, oh, ow, kw, depth, line, stride, top, left);
}

extern "C" __global__ void patches_4(u32 *y, const u32 *x, u64 n, u32 h, u32 w, u32 c, u32 oh, u32 ow, u32 kw, u32 depth,
                                     u32 line, u32 stride, u32 top, u32 left) {
  unfold(y, x, n, h, w, c, oh, ow, kw, depth, line, stride, top, left);
}

extern "C" __global__ void patches_16(Sixteen *y, const Sixteen *x, u64 n, u32 h, u32 w, u32 c, u32 oh, u32 ow, u32 kw,
                                      u32 depth, u32 line, u32 stride, u32 top, u32 left) {
  unfold(y, x, n, h, w, c, oh, ow, kw, depth, line, stride, top, left);
}
