//! Power by mel bands and frames: what librosa calls a mel spectrogram.

use std::ops::Range;

use super::{MelScale, fft::Fft};

/// Most values of a frame.
const MAX_FRAME: usize = 1 << 16;
/// Of a second: how long a window is at least.
const WINDOW: f64 = 0.025;

/// Part of a clip that may be lost because it is no whole number of steps.
const LOST: f64 = 0.1;

/// Why clips make no picture of some side.
#[derive(Debug)]
pub(super) struct Unfit {
    pub why: String,
    /// What to do about it.
    pub hint: String,
}

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
    /// band has a frequency of its own. Steps are whole values: what is left over is lost at both ends.
    ///
    /// # Errors
    /// A clip too short or too long for so many frames, or of which too much would be left over; bands too narrow.
    pub fn new(side: usize, rate: u32, count: usize, hertz: Range<f64>, scale: MelScale) -> Result<Self, Unfit> {
        let unfit = |why: String, hint: &str| Err(Unfit { why, hint: hint.into() });
        let (rate, hop) = (f64::from(rate), count / side);
        if hop == 0 {
            let hint = "lower `model.input`, or raise `data.params.seconds` or `data.params.rate`";
            return unfit(format!("clips of {count} values do not make {side} frames"), hint);
        }
        let lost = (count - hop * side) as f64 / count as f64;
        if lost > LOST {
            // Rounded up: so long it has one value more in each frame.
            let more = ((hop + 1) * side * 10_000).div_ceil(rate as usize) as f64 / 1e4;
            return unfit(
                format!("{side} frames of {hop} values leave out {:.0} % of clips of {count} values", 100.0 * lost),
                &format!("set `data.params.seconds` to {more}, or lower `model.input`"),
            );
        }
        let length = (2 * hop).max((WINDOW * rate).round() as usize);
        let (low, high) = (scale.mel(hertz.start), scale.mel(hertz.end));
        let corner = |i: usize| scale.hertz(low + (high - low) * i as f64 / (side + 1) as f64);
        let corners: Vec<f64> = (0..side + 2).map(corner).collect();
        // Bands are narrowest at the lower end.
        let fine = (rate / (corners[1] - corners[0])).ceil();
        if length > MAX_FRAME {
            return unfit(
                format!("{side} frames of clips of {count} values are too long, of {length} values each"),
                "raise `model.input`, or lower `data.params.seconds` or `data.params.rate`",
            );
        }
        if fine > MAX_FRAME as f64 {
            return unfit(
                format!("{side} bands from {} to {} Hz are too narrow", hertz.start, hertz.end),
                "lower `model.input`, or raise the distance from `data.params.low` to `high`",
            );
        }
        let frame = length.max(fine as usize).next_power_of_two();
        let bands = corners.windows(3).map(|c| {
            let height = if scale == MelScale::Slaney { 2.0 / (c[2] - c[0]) } else { 1.0 };
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

impl MelScale {
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
        let (at_one, higher) = (MelScale::Slaney.mel(1000.0), MelScale::Slaney.mel(6400.0));
        assert!((at_one - 15.0).abs() < 1e-12 && (higher - 42.0).abs() < 1e-12);
        assert!((MelScale::Htk.mel(1000.0) - 999.985).abs() < 1e-2);
        for scale in [MelScale::Slaney, MelScale::Htk] {
            for hertz in [0.0, 20.0, 999.0, 1001.0, 7_000.0, 24_000.0] {
                assert!((scale.hertz(scale.mel(hertz)) - hertz).abs() < 1e-8 * (1.0 + hertz));
            }
        }
    }

    #[test]
    fn every_band_hears_something_and_a_tone_is_loudest_in_its_own() {
        let (slaney, htk) = (MelScale::Slaney, MelScale::Htk);
        for (side, scale) in [(8, slaney), (64, htk), (224, slaney), (1024, htk)] {
            let mel = Mel::new(side, 48_000, 48_000, 0.0..24_000.0, scale).unwrap();
            assert!(mel.bands.iter().all(|(_, weights)| weights.iter().sum::<f64>() > 0.0), "{side}");
        }
        let mel = Mel::new(32, 8_000, 8_000, 0.0..4_000.0, MelScale::Slaney).unwrap();
        let tone = |i: usize| if i < 4_000 { 0.0 } else { (std::f64::consts::TAU * 1000.0 * i as f64 / 8_000.0).sin() };
        let power = mel.power(&(0..8_000).map(tone).collect::<Vec<_>>());
        let loudest =
            |frame: usize| (0..32).max_by(|a, b| power[a * 32 + frame].total_cmp(&power[b * 32 + frame])).unwrap();
        let band = (15.0 / MelScale::Slaney.mel(4_000.0) * 33.0).round() as usize - 1;
        assert_eq!((loudest(20), loudest(31)), (band, band), "its triangle has its tip nearest to 1000 Hz");
        assert!((0..32).all(|b| power[b * 32 + 8] == 0.0), "silence before it begins");
    }

    #[test]
    fn too_many_frames_or_bands_are_refused() {
        let refused = |side: usize, rate: u32, count: usize, hertz: Range<f64>| {
            let Unfit { why, hint } = Mel::new(side, rate, count, hertz, MelScale::Htk).err().unwrap();
            format!("{why}; {hint}")
        };
        for (said, parts) in [
            (refused(64, 8_000, 60, 0.0..4_000.0), ["do not make 64 frames", "lower `model.input`"]),
            (refused(64, 48_000, 48_000, 100.0..110.0), ["bands from 100 to 110 Hz are too narrow", "distance"]),
            // A step of 30 seconds in 32 frames is longer than any frame.
            (refused(32, 44_100, 30 * 44_100, 0.0..22_050.0), ["are too long", "raise `model.input`"]),
        ] {
            assert!(parts.iter().all(|part| said.contains(part)), "{said}");
        }
    }

    #[test]
    fn a_clip_of_which_much_would_be_left_over_is_refused_with_a_length_that_fits() {
        let new = |count: usize| Mel::new(224, 8_000, count, 0.0..4_000.0, MelScale::Slaney);
        // 50 ms are 400 values, and one each is as much as 224 frames can have.
        let Unfit { why, hint } = new(400).err().unwrap();
        assert!(why.contains("leave out 44 %") && hint.contains("seconds` to 0.056,"), "{why}; {hint}");
        assert!(new(448).is_ok() && new(450).is_ok());
    }
}
