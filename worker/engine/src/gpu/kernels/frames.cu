// Sequences of different lengths: the rows of all samples packed, and frames of `rows` rows each, the first of which is a
// header. `starts` and `lengths` say which packed rows are a sample's.

// A header with the length as its first number (zeros where not `header`), the sample's rows, then zeros.
extern "C" __global__ void frame(float *y, const float *x, const u32 *starts, const u32 *lengths, u64 n, u32 rows, u32 c,
                                 int header) {
  EACH(i, n) {
    u32 channel = i % c, row = i / c % rows;
    u64 sample = i / c / rows;
    u32 length = lengths[sample];
    float value = 0.0f;
    if (row == 0) value = header && channel == 0 ? (float)length : 0.0f;
    else if (row <= length) value = x[((u64)starts[sample] + row - 1) * c + channel];
    y[i] = value;
  }
}

// And back: every packed row is some sample's.
extern "C" __global__ void unframe(float *y, const float *x, const u32 *starts, const u32 *lengths, u64 n, u32 rows,
                                   u32 c) {
  EACH(i, n) {
    u32 row = i / c % rows;
    u64 sample = i / c / rows;
    if (row > 0 && row <= lengths[sample]) y[((u64)starts[sample] + row - 1) * c + i % c] = x[i];
  }
}

// Frames to one row each: the mean of what is real, added up in order, or its first row.
extern "C" __global__ void pool_rows(float *y, const float *x, const u32 *lengths, u64 n, u32 rows, u32 c, int mean) {
  EACH(i, n) {
    u64 sample = i / c;
    const float *own = x + (sample * rows + 1) * c + i % c;
    u32 length = mean ? lengths[sample] : 1;
    float sum = 0.0f;
    for (u32 row = 0; row < length; row++) sum += own[(u64)row * c];
    y[i] = sum / (float)length;
  }
}

extern "C" __global__ void pool_rows_back(float *dx, const float *dy, const u32 *lengths, u64 n, u32 rows, u32 c,
                                          int mean) {
  EACH(i, n) {
    u32 row = i / c % rows;
    u64 sample = i / c / rows;
    u32 length = mean ? lengths[sample] : 1;
    dx[i] = row > 0 && row <= length ? dy[sample * c + i % c] / (float)length : 0.0f;
  }
}
