//! Sound as a picture: a clip becomes as many mel bands in as many frames as the network's input has pixels a side, so that
//! every network for images hears. How is a part of the contract, which an exported model keeps.

mod decode;
mod fft;
mod mel;
mod resample;
#[cfg(test)]
pub(crate) mod testing;

use serde::{Deserialize, Serialize};
use tl_proto::{
    catalog::{Entry, Param, choice, entry, number},
    spec::Params,
};

pub use self::decode::decode;
use self::mel::{Mel, Unfit};
use crate::{Error, Result};

/// A sound as decoded: one channel.
#[derive(Clone, Debug, PartialEq)]
pub struct Clip {
    /// Values of a second.
    pub rate: u32,
    /// From −1 to 1, as a rule.
    pub samples: Vec<f32>,
}

/// A scale of pitch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MelScale {
    /// Of Slaney's Auditory Toolbox, and librosa.
    Slaney,
    /// Of HTK, and torchaudio.
    Htk,
}

/// What a spectrogram is measured against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// The loudest place of the clip: how loud it is as a whole is not heard.
    Peak,
    /// A power of one.
    Absolute,
}

/// How a clip becomes a picture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Audio {
    /// Clips are resampled to this rate, in Hz.
    pub rate: u32,
    /// Then cut or filled up with silence to this length, in seconds.
    pub seconds: f64,
    /// Lowest frequency, in Hz.
    pub low: f64,
    /// Highest frequency, in Hz; half the rate at most, which 0 stands for.
    pub high: f64,
    /// How bands lie.
    pub scale: MelScale,
    /// Where decibels count from.
    pub level: Level,
    /// Decibels from black to white.
    pub range: f64,
}

/// No power is taken for smaller than this, 100 dB below what decibels count from; a clip that is nowhere louder is silence.
const LEAST: f64 = 1e-10;

/// Parameters of a format of sound, with what they are where nothing is said.
pub(super) fn params() -> Vec<Param> {
    vec![
        number("rate", 16_000.0, 4_000.0, 48_000.0, "clips are resampled to this, in Hz"),
        number("seconds", 1.0, 0.05, 60.0, "clips lose both ends, or get silence around them, to last this long"),
        number("low", 0.0, 0.0, 20_000.0, "lowest frequency that is heard, in Hz"),
        number("high", 0.0, 0.0, 24_000.0, "highest frequency that is heard, in Hz; 0: half of `rate`"),
        choice(
            "scale",
            &["slaney", "htk"],
            "mel bands as in librosa (areas of one), or as in torchaudio (tips of one)",
        ),
        choice(
            "level",
            &["peak", "absolute"],
            "decibels below the loudest place of the clip, or of its power as it is",
        ),
        number("range", 80.0, 10.0, 100.0, "what is so many decibels below counts as silence"),
    ]
}

impl Audio {
    /// What a job says, over what its weights were trained with.
    ///
    /// # Errors
    /// A job that wants to hear otherwise than its weights do; values that do not go together.
    pub fn agreed(known: Option<&Self>, said: &Params) -> Result<Self> {
        let entry = Entry { params: params(), ..entry("", "") };
        let number = |name: &str, known: Option<f64>| match known {
            Some(known) if !said.contains_key(name) => known,
            _ => entry.number(said, name),
        };
        let word = |name: &str| entry.word(said, name);
        let audio = Self {
            rate: number("rate", known.map(|k| k.rate.into())).round() as u32,
            seconds: number("seconds", known.map(|k| k.seconds)),
            low: number("low", known.map(|k| k.low)),
            high: number("high", known.map(|k| k.high)),
            scale: match known {
                Some(known) if !said.contains_key("scale") => known.scale,
                _ if word("scale") == "htk" => MelScale::Htk,
                _ => MelScale::Slaney,
            },
            level: match known {
                Some(known) if !said.contains_key("level") => known.level,
                _ if word("level") == "absolute" => Level::Absolute,
                _ => Level::Peak,
            },
            range: number("range", known.map(|k| k.range)),
        };
        match known {
            Some(known) if *known != audio => Err(Error::user(
                format!(
                    "the weights were trained on sound heard as {}, and the job says {}",
                    known.sentence(),
                    audio.sentence()
                ),
                "remove what differs from `data.params`",
            )),
            _ => audio.check("data.params").map(|()| audio),
        }
    }

    /// Checks that the values go together, whoever has written them.
    ///
    /// # Errors
    /// Names `shown`.
    pub fn check(&self, shown: &str) -> Result<()> {
        let sane = (4_000..=48_000).contains(&self.rate)
            && (0.05..=60.0).contains(&self.seconds)
            && (10.0..=100.0).contains(&self.range)
            && self.low >= 0.0
            && self.low < self.top()
            && self.top() <= f64::from(self.rate) / 2.0;
        let hint = "`low` must be below `high`, and `high` at most half of `rate`";
        if sane { Ok(()) } else { Err(Error::user(format!("`{shown}` cannot be heard as {}", self.sentence()), hint)) }
    }

    /// Checks that there are so many frames and bands.
    ///
    /// # Errors
    /// An input that is too large or too small for the clips.
    pub fn fits(&self, side: usize) -> Result<()> {
        self.mel(side).map(|_| ()).map_err(|Unfit { why, hint }| Error::user(why, hint))
    }

    /// The picture of a clip, `[side, side]`: a row for each band, lowest first, a column for each frame. 1 is the loudest, 0
    /// what is `range` decibels below it, or with absolute levels a power of one and what is `range` below that.
    ///
    /// # Errors
    /// See [`Audio::fits`].
    pub fn picture(&self, clip: &Clip, side: usize) -> Result<Vec<f32>, String> {
        let mel = self.mel(side).map_err(|unfit| unfit.why)?;
        let power = mel.power(&resample::middle(clip, self.rate, mel.hop * side));
        let loudest = power.iter().copied().fold(0.0, f64::max);
        let reference = match self.level {
            Level::Peak if loudest <= LEAST => return Ok(vec![0.0; power.len()]),
            Level::Peak => loudest,
            Level::Absolute => 1.0,
        };
        // The floor goes with the reference: else silence in a quiet clip would not be black.
        let (least, top) = (LEAST * reference, 10.0 * libm::log10(reference));
        let level = |p: &f64| 1.0 + (10.0 * libm::log10(p.max(least)) - top) / self.range;
        Ok(power.iter().map(|p| level(p).max(0.0) as f32).collect())
    }

    fn top(&self) -> f64 {
        if self.high == 0.0 { f64::from(self.rate) / 2.0 } else { self.high }
    }

    fn mel(&self, side: usize) -> Result<Mel, Unfit> {
        let count = (self.seconds * f64::from(self.rate)).round() as usize;
        Mel::new(side, self.rate, count, self.low..self.top(), self.scale)
    }

    /// For people.
    pub fn sentence(&self) -> String {
        let Self { rate, seconds, low, scale, level, range, .. } = self;
        format!("{seconds} s at {rate} Hz, {low} to {} Hz in mel ({scale:?}), {range} dB ({level:?})", self.top())
    }

    /// What changes pictures, as text: part of the key of cached features. The number is that of this code: another one where
    /// the same clip becomes another picture.
    pub fn describe(&self) -> String {
        format!("audio/2:{self:?}")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(params: serde_json::Value) -> Params {
        serde_json::from_value(params).unwrap()
    }

    fn noise(gain: f32) -> Clip {
        let value = |i: usize| gain * (((i * 7919 + 13) % 1009) as f32 / 504.5 - 1.0);
        Clip { rate: 16_000, samples: (0..16_000).map(value).collect() }
    }

    #[test]
    fn a_louder_clip_is_the_same_picture_by_its_peak_and_a_lighter_one_by_its_power() {
        let picture = |level: &str, gain: f32| {
            let audio = Audio::agreed(None, &said(json!({ "level": level }))).unwrap();
            audio.picture(&noise(gain), 16).unwrap()
        };
        let (soft, loud) = (picture("peak", 0.01), picture("peak", 0.5));
        assert!(soft.iter().zip(&loud).all(|(a, b)| (a - b).abs() < 1e-4));
        assert_eq!(loud.iter().copied().fold(0.0, f32::max), 1.0);
        let (soft, loud) = (picture("absolute", 0.05), picture("absolute", 0.5));
        // Ten times the amplitude is 20 dB of 80.
        assert!(soft.iter().zip(&loud).all(|(a, b)| (b - a - 0.25).abs() < 1e-3 || *a == 0.0));
        assert!(picture("peak", 0.0).iter().all(|v| *v == 0.0), "silence is black");
    }

    #[test]
    fn silence_is_black_beside_a_soft_sound_too() {
        let audio = Audio::agreed(None, &Params::new()).unwrap();
        for gain in [1e-5, 0.5] {
            let mut clip = noise(gain);
            clip.samples[..8_000].fill(0.0);
            let picture = audio.picture(&clip, 16).unwrap();
            assert!((0..16).all(|band| picture[band * 16 + 2] < 1e-6), "{gain}: {picture:?}");
            assert!((0..16).any(|band| picture[band * 16 + 12] > 0.9), "{gain}: {picture:?}");
        }
    }

    #[test]
    fn what_weights_heard_stays_unless_the_job_says_the_same() {
        let known = Audio::agreed(None, &said(json!({ "rate": 8000, "scale": "htk", "level": "absolute" }))).unwrap();
        assert_eq!(Audio::agreed(Some(&known), &Params::new()).unwrap(), known);
        assert_eq!(Audio::agreed(Some(&known), &said(json!({ "rate": 8000 }))).unwrap(), known);
        for other in [json!({ "rate": 16000 }), json!({ "scale": "slaney" }), json!({ "level": "peak" })] {
            let error = Audio::agreed(Some(&known), &said(other)).unwrap_err().to_string();
            assert!(error.contains("8000 Hz, 0 to 4000 Hz in mel (Htk)"), "{error}");
        }
        let text = serde_json::to_string(&known).unwrap();
        assert_eq!(serde_json::from_str::<Audio>(&text).unwrap(), known);
    }

    #[test]
    fn values_that_do_not_go_together_are_refused() {
        for bad in [json!({ "rate": 8000, "high": 5000 }), json!({ "low": 3000, "high": 2000 }), json!({ "low": 9000 })]
        {
            assert!(Audio::agreed(None, &said(bad)).is_err());
        }
        let short = Audio::agreed(None, &said(json!({ "rate": 4000, "seconds": 0.05 }))).unwrap();
        assert!(short.fits(200).is_ok());
        assert!(short.fits(201).unwrap_err().to_string().contains("201 frames"));
    }
}
