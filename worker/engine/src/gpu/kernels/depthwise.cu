// Depthwise convolution of images `[n, h, w, c]`, weights `[c, k·k]`; taps in the CPU's order, fused as there. `rounds`: images
// and slopes are rounded to bf16 when they are read, and so is what layers go on with.

__device__ __forceinline__ float seen(float x, int rounds) { return rounds ? rounded(x) : x; }

extern "C" __global__ void depthwise(float *y, const float *x, const float *weights, u64 n, u32 h, u32 w, u32 c, u32 oh,
                                     u32 ow, u32 k, u32 stride, u32 top, u32 left, int rounds) {
  EACH(i, n) {
    u64 pixel = over(i, c), line = over(pixel, ow);
    u32 channel = rest(i, c), ox = rest(pixel, ow), oy = rest(line, oh);
    const float *image = x + over(line, oh) * ((u64)h * w * c), *own = weights + (u64)channel * k * k;
    float sum = 0.0f;
    for (u32 ky = 0; ky < k; ky++) {
      u32 py = oy * stride + ky - top; // before the first row it is huge
      if (py >= h) continue;
      for (u32 kx = 0; kx < k; kx++) {
        u32 px = ox * stride + kx - left;
        if (px < w) sum = fmaf(seen(image[((u64)py * w + px) * c + channel], rounds), own[ky * k + kx], sum);
      }
    }
    y[i] = seen(sum, rounds);
  }
}

extern "C" __global__ void depthwise_input(float *dx, const float *dy, const float *weights, u64 n, u32 h, u32 w, u32 c,
                                           u32 oh, u32 ow, u32 k, u32 stride, u32 top, u32 left, int rounds) {
  EACH(i, n) {
    u64 pixel = over(i, c), line = over(pixel, w);
    u32 channel = rest(i, c), px = rest(pixel, w), py = rest(line, h);
    const float *image = dy + over(line, h) * ((u64)oh * ow * c), *own = weights + (u64)channel * k * k;
    float sum = 0.0f;
    for (u32 ky = 0; ky < k && ky <= py + top; ky++) {
      u32 oy = (py + top - ky) / stride;
      if ((py + top - ky) % stride || oy >= oh) continue;
      for (u32 kx = 0; kx < k && kx <= px + left; kx++) {
        u32 ox = (px + left - kx) / stride;
        if ((px + left - kx) % stride || ox >= ow) continue;
        sum = fmaf(seen(image[((u64)oy * ow + ox) * c + channel], rounds), own[ky * k + kx], sum);
      }
    }
    dx[i] = seen(sum, rounds);
  }
}

// For each row of outputs one line of `k·k·c` sums, a chain over the row each.
extern "C" __global__ void depthwise_weights(float *lines, const float *dy, const float *x, u64 rows, u32 h, u32 w,
                                             u32 c, u32 oh, u32 ow, u32 k, u32 stride, u32 top, u32 left, int rounds) {
  EACH(i, rows * k * k * c) {
    u64 place = over(i, c), row = over(place, k * k);
    u32 channel = rest(i, c), tap = rest(place, k * k);
    u32 py = rest(row, oh) * stride + tap / k - top;
    float sum = 0.0f;
    if (py < h) {
      const float *line = x + (over(row, oh) * h + py) * ((u64)w * c) + channel, *g = dy + row * ow * c + channel;
      for (u32 ox = 0; ox < ow; ox++) {
        u32 px = ox * stride + tap % k - left;
        if (px < w) sum = fmaf(seen(g[(u64)ox * c], rounds), seen(line[(u64)px * c], rounds), sum);
      }
    }
    lines[i] = sum;
  }
}
