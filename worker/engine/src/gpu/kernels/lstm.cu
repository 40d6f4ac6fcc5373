// One time step of an LSTM for all samples that go on; gates in the order input, forget, cell, output.
//
// Rows lie time by time: those of a step from `first` on, and those of the step before, of the same samples in the same
// order, from `before` on, unless the step `begins`.

// `gates` `[rows, 4w]` and `product` `[n / w, 4w]`, which is what the states before give, become activated gates; `memories`
// and `states` `[rows, w]` have new rows.
extern "C" __global__ void lstm_step(float *gates, float *memories, float *states, const float *product, u64 first,
                                     u64 before, int begins, u64 n, u32 w) {
  EACH(k, n) {
    u64 row = k / w, to = (first + row) * w + k % w;
    float *own = gates + (first + row) * 4 * w + k % w;
    const float *more = product + row * 4 * w + k % w;
    float i = sigmoid_of(own[0] + more[0]), f = sigmoid_of(own[w] + more[w]);
    float g = tanh_of(own[2 * w] + more[2 * w]), o = sigmoid_of(own[3 * w] + more[3 * w]);
    own[0] = i;
    own[w] = f;
    own[2 * w] = g;
    own[3 * w] = o;
    float memory = begins ? 0.0f : memories[before * w + k];
    memory = f * memory + i * g;
    memories[to] = memory;
    states[to] = o * tanh_of(memory);
  }
}

// The same backwards: `gates` become slopes of what the gates were given, `dmemory` that of the memory before. The slope of a
// state is what comes from outside, `outer` `[rows, w]`, and for the first `later / w` samples what comes from the step behind.
extern "C" __global__ void lstm_back(float *gates, const float *memories, const float *outer, const float *dstate,
                                     float *dmemory, u64 first, u64 before, int begins, u64 later, u64 n, u32 w) {
  EACH(k, n) {
    u64 row = k / w, from = (first + row) * w + k % w;
    float *own = gates + (first + row) * 4 * w + k % w;
    float i = own[0], f = own[w], g = own[2 * w], o = own[3 * w];
    float t = tanh_of(memories[from]), earlier = begins ? 0.0f : memories[before * w + k];
    float dh = (k < later ? dstate[k] : 0.0f) + outer[from];
    float d = dmemory[k] + dh * o * (1.0f - t * t);
    own[0] = d * g * i * (1.0f - i);
    own[w] = d * earlier * f * (1.0f - f);
    own[2 * w] = d * i * (1.0f - g * g);
    own[3 * w] = dh * t * o * (1.0f - o);
    dmemory[k] = d * f;
  }
}
