// One time step of an LSTM for all samples that go on; gates in the order input, forget, cell, output.

// `gates` `[m, 4w]` become activated ones, `c` and `h` `[m, w]` the new memory and state.
extern "C" __global__ void lstm_step(float *gates, float *c, float *h, u64 n, u32 w) {
  EACH(k, n) {
    float *own = gates + k / w * 4 * w + k % w;
    float i = sigmoid_of(own[0]), f = sigmoid_of(own[w]), g = tanh_of(own[2 * w]), o = sigmoid_of(own[3 * w]);
    own[0] = i;
    own[w] = f;
    own[2 * w] = g;
    own[3 * w] = o;
    float memory = f * c[k] + i * g;
    c[k] = memory;
    h[k] = o * tanh_of(memory);
  }
}

// The same backwards: `gates` become slopes of what the gates were given, `dc` that of the memory before.
extern "C" __global__ void lstm_back(float *gates, const float *c, const float *before, const float *dh, float *dc,
                                     u64 n, u32 w) {
  EACH(k, n) {
    float *own = gates + k / w * 4 * w + k % w;
    float i = own[0], f = own[w], g = own[2 * w], o = own[3 * w];
    float t = tanh_of(c[k]);
    float d = dc[k] + dh[k] * o * (1.0f - t * t);
    own[0] = d * g * i * (1.0f - i);
    own[w] = d * before[k] * f * (1.0f - f);
    own[2 * w] = d * i * (1.0f - g * g);
    own[3 * w] = dh[k] * t * o * (1.0f - o);
    dc[k] = d * f;
  }
}
