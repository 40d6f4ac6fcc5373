//! Power by mel bands and frames: what librosa calls a mel spectrogram.

use std::ops::Range;

use super::{Scale, fft::Fft};

/// Most values of a frame.
const MAX_FRAME: usize = 1 << 16;
/// Of a second: how long a window is at least.
const WINDOW: f64 = 0.025;

/// How a clip is cut into frames and bands.
pub(super) struct Mel {
    /// Values from one frame to the next.
    pub hop: usize,
    /// Values of the window; around them a frame is filled up with zeros.
    window: Vec<f64>,
    fft: Fft,
    frame: usize,
    /// Of each band: the first frequency that counts, and what each from there on counts.
    bands: Vec<(usize, Vec<f64>)>,
}

impl Mel {
    /// `side` frames of `side` bands for clips of `count` values at `rate`; bands are triangles over `hertz`, their corners
    /// evenly on the scale. With Slaney's scale their areas are one, as in his toolbox and librosa; with HTK's their tips.
    ///
    /// A window is as long as 25 ms or two steps, so that nothing lies between frames, and a frame long enough that every
    /// band has a frequency of its own.
    ///
    /// # Errors
    /// A clip too short for so many frames; bands too narrow.
    pub fn new(side: usize, rate: u32, count: usize, hertz: Range<f64>, scale: Scale) -> Result<Self, String> {
        let (rate, hop) = (f64::from(rate), count / side);
        if hop == 0 {
            return Err(format!("clips of {count} values do not make {side} frames"));
        }
        let length = (2 * hop).max((WINDOW * rate).round() as usize);
        let (low, high) = (scale.mel(hertz.start), scale.mel(hertz.end));
        let corner = |i: usize| scale.hertz(low + (high - low) * i as f64 / (side + 1) as f64);
        let corners: Vec<f64> = (0..side + 2).map(corner).collect();
        // Bands are narrowest at the lower end.
        let fine = (rate / (corners[1] - corners[0])).ceil();
        if fine > MAX_FRAME as f64 || length > MAX_FRAME {
            return Err(format!("{side} bands from {} to {} Hz are too narrow", hertz.start, hertz.end));
        }
        let frame = length.max(fine as usize).next_power_of_two();
        let bands = corners.windows(3).map(|c| {
            let height = if scale == Scale::Slaney { 2.0 / (c[2] - c[0]) } else { 1.0 };
            let of = |k: usize| {
                let f = rate * k as f64 / frame as f64;
                height * ((f - c[0]) / (c[1] - c[0])).min((c[2] - f) / (c[2] - c[1])).max(0.0)
            };
            let first = (0..=frame / 2).find(|k| of(*k) > 0.0).unwrap_or(0);
            (first, (first..=frame / 2).map(of).take_while(|w| *w > 0.0).collect())
        });
        let hann = |i: usize| 0.5 - 0.5 * libm::cos(std::f64::consts::TAU * i as f64 / length as f64);
        let (bands, window) = (bands.collect(), (0..length).map(hann).collect());
        Ok(Self { hop, window, fft: Fft::new(frame), frame, bands })
    }

    /// Power of each band, lowest first, in each frame, as `[bands, frames]`; frame `i` has its middle at `(i + ½)·hop`.
    pub fn power(&self, clip: &[f64]) -> Vec<f64> {
        let side = self.bands.len();
        let mut out = vec![0.0; side * side];
        let (half, pad) = (self.window.len() / 2, (self.frame - self.window.len()) / 2);
        let mut frame = vec![0.0; self.frame];
        for i in 0..side {
            let start = (i * self.hop + self.hop / 2) as i64 - half as i64;
            for (n, (slot, w)) in frame[pad..].iter_mut().zip(&self.window).enumerate() {
                let at = usize::try_from(start + n as i64).ok();
                *slot = w * at.and_then(|at| clip.get(at)).unwrap_or(&0.0);
            }
            let power = self.fft.power(&frame);
            for (band, (first, weights)) in self.bands.iter().enumerate() {
                out[band * side + i] = weights.iter().zip(&power[*first..]).map(|(w, p)| w * p).sum();
            }
        }
        out
    }
}

impl Scale {
    /// Hertz as mel. Slaney's scale (Auditory Toolbox) is linear up to 1000 Hz, with 15 mel there, then logarithmic, with 27
    /// mel to a factor of 6.4; HTK's is 2595·log₁₀(1 + f/700).
    fn mel(self, hertz: f64) -> f64 {
        match self {
            Self::Slaney if hertz < 1000.0 => hertz * 3.0 / 200.0,
            Self::Slaney => 15.0 + 27.0 * libm::log(hertz / 1000.0) / libm::log(6.4),
            Self::Htk => 2595.0 * libm::log10(1.0 + hertz / 700.0),
        }
    }

    fn hertz(self, mel: f64) -> f64 {
        match self {
            Self::Slaney if mel < 15.0 => mel * 200.0 / 3.0,
            Self::Slaney => 1000.0 * libm::exp((mel - 15.0) * libm::log(6.4) / 27.0),
            Self::Htk => 700.0 * (libm::pow(10.0, mel / 2595.0) - 1.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_their_own_inverses_and_meet_their_fixed_points() {
        assert!((Scale::Slaney.mel(1000.0) - 15.0).abs() < 1e-12 && (Scale::Slaney.mel(6400.0) - 42.0).abs() < 1e-12);
        assert!((Scale::Htk.mel(1000.0) - 999.985).abs() < 1e-2);
        for scale in [Scale::Slaney, Scale::Htk] {
            for hertz in [0.0, 20.0, 999.0, 1001.0, 7_000.0, 24_000.0] {
                assert!((scale.hertz(scale.mel(hertz)) - hertz).abs() < 1e-8 * (1.0 + hertz));
            }
        }
    }

    #[test]
    fn every_band_hears_something_and_a_tone_is_loudest_in_its_own() {
        for (side, scale) in [(8, Scale::Slaney), (64, Scale::Htk), (224, Scale::Slaney), (1024, Scale::Htk)] {
            let mel = Mel::new(side, 48_000, 48_000, 0.0..24_000.0, scale).unwrap();
            assert!(mel.bands.iter().all(|(_, weights)| weights.iter().sum::<f64>() > 0.0), "{side}");
        }
        let mel = Mel::new(32, 8_000, 8_000, 0.0..4_000.0, Scale::Slaney).unwrap();
        let tone = |i: usize| if i < 4_000 { 0.0 } else { (std::f64::consts::TAU * 1000.0 * i as f64 / 8_000.0).sin() };
        let power = mel.power(&(0..8_000).map(tone).collect::<Vec<_>>());
        let loudest =
            |frame: usize| (0..32).max_by(|a, b| power[a * 32 + frame].total_cmp(&power[b * 32 + frame])).unwrap();
        let band = (15.0 / Scale::Slaney.mel(4_000.0) * 33.0).round() as usize - 1;
        assert_eq!((loudest(20), loudest(31)), (band, band), "its triangle has its tip nearest to 1000 Hz");
        assert!((0..32).all(|b| power[b * 32 + 8] == 0.0), "silence before it begins");
    }

    #[test]
    fn too_many_frames_or_bands_are_refused() {
        assert!(Mel::new(64, 8_000, 60, 0.0..4_000.0, Scale::Slaney).err().unwrap().contains("64 frames"));
        assert!(Mel::new(64, 48_000, 48_000, 100.0..110.0, Scale::Htk).err().unwrap().contains("too narrow"));
    }
}
