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

// The way back: each number of images `[n, h, w, c]` adds up what the windows over it have of it, by tap.
extern "C" __global__ void fold(float *x, const float *windows, u64 n, u32 h, u32 w, u32 c, u32 oh, u32 ow, u32 kh, u32 kw,
                                u32 stride, u32 top, u32 left) {
  EACH(i, n) {
    u64 pixel = over(i, c), row = over(pixel, w), image = over(row, h);
    u32 channel = rest(i, c), py = rest(row, h) + top, px = rest(pixel, w) + left;
    float sum = 0.0f;
    for (u32 ty = 0; ty < kh && ty <= py; ty++) {
      u32 oy = (py - ty) / stride;
      if (oy * stride != py - ty || oy >= oh) continue;
      for (u32 tx = 0; tx < kw && tx <= px; tx++) {
        u32 ox = (px - tx) / stride;
        if (ox * stride != px - tx || ox >= ow) continue;
        u64 window = (image * oh + oy) * ow + ox;
        sum += windows[((window * kh + ty) * kw + tx) * c + channel];
      }
    }
    x[i] = sum;
  }
}
