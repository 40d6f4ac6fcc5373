// Depthwise convolution of images `[n, h, w, c]`, weights `[c, k·k]`; taps in the CPU's order, fused as there.

extern "C" __global__ void depthwise(float *y, const float *x, const float *weights, u64 n, u32 h, u32 w, u32 c, u32 oh,
                                     u32 ow, u32 k, u32 stride, u32 top, u32 left) {
  EACH(i, n) {
    u32 channel = i % c, ox = i / c % ow, oy = i / c / ow % oh;
    const float *image = x + i / c / ow / oh * ((u64)h * w * c), *own = weights + (u64)channel * k * k;
    float sum = 0.0f;
    for (u32 ky = 0; ky < k; ky++) {
      u32 py = oy * stride + ky - top; // before the first row it is huge
      if (py >= h) continue;
      for (u32 kx = 0; kx < k; kx++) {
        u32 px = ox * stride + kx - left;
        if (px < w) sum = fmaf(image[((u64)py * w + px) * c + channel], own[ky * k + kx], sum);
      }
    }
    y[i] = sum;
  }
}

extern "C" __global__ void depthwise_input(float *dx, const float *dy, const float *weights, u64 n, u32 h, u32 w, u32 c,
                                           u32 oh, u32 ow, u32 k, u32 stride, u32 top, u32 left) {
  EACH(i, n) {
    u32 channel = i % c, px = i / c % w, py = i / c / w % h;
    const float *image = dy + i / c / w / h * ((u64)oh * ow * c), *own = weights + (u64)channel * k * k;
    float sum = 0.0f;
    for (u32 ky = 0; ky < k && ky <= py + top; ky++) {
      u32 oy = (py + top - ky) / stride;
      if ((py + top - ky) % stride || oy >= oh) continue;
      for (u32 kx = 0; kx < k && kx <= px + left; kx++) {
        u32 ox = (px + left - kx) / stride;
        if ((px + left - kx) % stride || ox >= ow) continue;
        sum = fmaf(image[((u64)oy * ow + ox) * c + channel], own[ky * k + kx], sum);
      }
    }
    dx[i] = sum;
  }
}

// For each row of outputs one line of `k·k·c` sums, a chain over the row each.
extern "C" __global__ void depthwise_weights(float *lines, const float *dy, const float *x, u64 rows, u32 h, u32 w,
                                             u32 c, u32 oh, u32 ow, u32 k, u32 stride, u32 top, u32 left) {
  EACH(i, rows * k * k * c) {
    u32 channel = i % c, tap = i / c % (k * k);
    u64 row = i / c / (k * k);
    u32 py = (u32)(row % oh) * stride + tap / k - top;
    float sum = 0.0f;
    if (py < h) {
      const float *line = x + (row / oh * h + py) * ((u64)w * c) + channel, *g = dy + row * ow * c + channel;
      for (u32 ox = 0; ox < ow; ox++) {
        u32 px = ox * stride + tap % k - left;
        if (px < w) sum = fmaf(g[(u64)ox * c], line[(u64)px * c], sum);
      }
    }
    lines[i] = sum;
  }
}
