//! Files with sound, for tests.

/// A WAV file of 16-bit samples, channels interleaved.
pub(crate) fn wav(rate: u32, channels: u16, samples: &[i16]) -> Vec<u8> {
    let bytes = 2 * samples.len() as u32;
    let wide = 2 * u32::from(channels);
    let mut out = [&b"RIFF"[..], &(36 + bytes).to_le_bytes(), b"WAVEfmt ", &16u32.to_le_bytes()].concat();
    out.extend([1, channels].iter().flat_map(|v| v.to_le_bytes()));
    out.extend([rate, rate * wide].iter().flat_map(|v| v.to_le_bytes()));
    out.extend([wide as u16, 16].iter().flat_map(|v| v.to_le_bytes()));
    out.extend([&b"data"[..], &bytes.to_le_bytes()].concat());
    out.extend(samples.iter().flat_map(|v| v.to_le_bytes()));
    out
}
