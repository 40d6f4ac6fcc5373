//! Records in less room than four bytes a number, in memory and on disk. What comes back is what counts: whoever works a
//! record out anew rounds it the same way, so that nobody can tell what was kept.

use half::f16;

use crate::{Error, Result, collective};

/// How the numbers of a record are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Packed {
    /// In two bytes each.
    pub half: bool,
    /// Not all of them.
    pub top: Option<Top>,
}

/// The largest numbers of a record, which are logits, with their places. All others come back as one number, such that the
/// probabilities of the kept ones are what they were at the temperature at which they are learned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Top {
    /// How many.
    pub count: usize,
    /// What logits are divided by.
    pub temperature: f64,
}

impl Packed {
    /// Whether nothing changes.
    pub fn is_plain(self) -> bool {
        self == Self::default()
    }

    /// A name for it, as a part of others.
    pub fn describe(self) -> String {
        let top = self.top.map_or(String::new(), |top| format!(";top{}@{}", top.count, top.temperature));
        let half = if self.half { ";half" } else { "" };
        format!("{half}{top}")
    }

    /// Words of four bytes of a record of `width` numbers.
    pub fn words(self, width: usize) -> usize {
        self.bytes(width).div_ceil(WORD)
    }

    /// The record as words, which are no numbers unless it is plain.
    ///
    /// # Errors
    /// A number that two bytes cannot hold.
    pub fn pack(self, values: &[f32]) -> Result<Vec<f32>> {
        if self.is_plain() {
            return Ok(values.to_vec());
        }
        // Infinite already, it is no fault of how it is kept.
        let large = |v: &&f32| v.is_finite() && f16::from_f32(**v).is_infinite();
        if let Some(v) = values.iter().find(large).filter(|_| self.half) {
            return Err(Error::user(
                format!("a logit of a teacher is {v}, and `objective.logits = \"f16\"` holds none above {}", f16::MAX),
                "set `objective.logits = \"f32\"`",
            ));
        }
        let mut bytes = match self.kept(values.len()) {
            Some(top) => self.largest(values, top),
            None => self.numbers(values),
        };
        bytes.resize(self.words(values.len()) * WORD, 0);
        collective::from_bytes(&bytes)
    }

    /// Adds the numbers of a record of `width` to `out`.
    ///
    /// # Errors
    /// Words that are none of such a record.
    pub fn unpack(self, words: &[f32], width: usize, out: &mut Vec<f32>) -> Result<()> {
        if self.is_plain() {
            out.extend(words);
            return Ok(());
        }
        let odd = || Error::Internal("a record of the cache is of another kind".into());
        let bytes = collective::to_bytes(words);
        let bytes = bytes.get(..self.bytes(width)).ok_or_else(odd)?;
        let Some(top) = self.kept(width) else {
            out.extend(self.floats(bytes)?);
            return Ok(());
        };
        let (numbers, places) = bytes.split_at(self.number() * (top.count + 1));
        let numbers = self.floats(numbers)?;
        let mut record = vec![numbers.last().copied().unwrap_or_default(); width];
        for (value, place) in numbers.iter().zip(places.as_chunks::<4>().0) {
            *record.get_mut(u32::from_le_bytes(*place) as usize).ok_or_else(odd)? = *value;
        }
        out.extend(record);
        Ok(())
    }

    /// What comes back of numbers that are kept.
    ///
    /// # Errors
    /// See [`Packed::pack`].
    pub fn round(self, values: &[f32]) -> Result<Vec<f32>> {
        let mut out = Vec::with_capacity(values.len());
        self.unpack(&self.pack(values)?, values.len(), &mut out)?;
        Ok(out)
    }

    fn bytes(self, width: usize) -> usize {
        match self.kept(width) {
            Some(top) => self.number() * (top.count + 1) + 4 * top.count,
            None => self.number() * width,
        }
    }

    fn largest(self, values: &[f32], top: Top) -> Vec<u8> {
        let mut order: Vec<u32> = (0..values.len() as u32).collect();
        // Of equals the first.
        order.sort_by(|a, b| values[*b as usize].total_cmp(&values[*a as usize]).then(a.cmp(b)));
        let (kept, others) = order.split_at(top.count);
        let value = |i: &u32| values[*i as usize];
        let mut numbers: Vec<f32> = kept.iter().map(value).collect();
        numbers.push(folded(others.iter().map(value), top.temperature));
        let mut out = self.numbers(&numbers);
        out.extend(kept.iter().flat_map(|i| i.to_le_bytes()));
        out
    }

    /// How many of `width` are kept, where not all are.
    fn kept(self, width: usize) -> Option<Top> {
        self.top.filter(|top| top.count < width)
    }

    fn number(self) -> usize {
        if self.half { 2 } else { 4 }
    }

    fn numbers(self, values: &[f32]) -> Vec<u8> {
        match self.half {
            true => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
            false => collective::to_bytes(values),
        }
    }

    fn floats(self, bytes: &[u8]) -> Result<Vec<f32>> {
        match self.half {
            true => Ok(bytes.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect()),
            false => collective::from_bytes(bytes),
        }
    }
}

/// Bytes of a word.
const WORD: usize = size_of::<f32>();

/// T·ln of the mean of e^(x/T): as many times this weighs in a softmax over T what all of them weigh.
fn folded(values: impl ExactSizeIterator<Item = f32> + Clone, temperature: f64) -> f32 {
    let scaled = values.map(|v| f64::from(v) / temperature);
    let largest = scaled.clone().fold(f64::NEG_INFINITY, f64::max);
    let n = scaled.len() as f64;
    let total: f64 = scaled.map(|v| libm::exp(v - largest)).sum();
    (temperature * (largest + libm::log(total / n))) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn softmax(z: &[f32], temperature: f64) -> Vec<f64> {
        let e: Vec<f64> = z.iter().map(|v| (f64::from(*v) / temperature).exp()).collect();
        let sum: f64 = e.iter().sum();
        e.iter().map(|v| v / sum).collect()
    }

    fn top(count: usize, temperature: f64) -> Option<Top> {
        Some(Top { count, temperature })
    }

    #[test]
    fn the_likeliest_classes_keep_their_probabilities_at_the_temperature_of_the_job() {
        let z = [0.3f32, 4.0, -2.0, 4.0, 1.0, -7.5];
        for temperature in [1.0, 4.0] {
            let packed = Packed { top: top(3, temperature), ..Packed::default() };
            let back = packed.round(&z).unwrap();
            let (want, got) = (softmax(&z, temperature), softmax(&back, temperature));
            for i in [1, 3, 4] {
                assert!(back[i] == z[i] && (want[i] - got[i]).abs() < 1e-6, "{i} at {temperature}");
            }
            assert!(back[0] == back[2] && back[2] == back[5]);
            assert_eq!((packed.bytes(6), packed.words(6)), (4 * 4 + 3 * 4, 7));
            assert_eq!(packed.round(&back).unwrap()[..2], back[..2]);
        }
        // Of equals the first is kept.
        let round = |count| Packed { top: top(count, 1.0), ..Packed::default() }.round(&z).unwrap();
        assert_eq!(round(1)[1], 4.0);
        assert_ne!(round(1)[3], 4.0);
        assert_eq!(round(9), z);
    }

    #[test]
    fn halves_take_two_bytes_and_come_back_as_what_is_nearest() {
        let half = Packed { half: true, top: None };
        assert_eq!(half.round(&[1.0, 0.1, -65504.0]).unwrap(), [1.0, f16::from_f32(0.1).to_f32(), -65504.0]);
        let both = Packed { half: true, top: top(2, 1.0) };
        assert_eq!((half.bytes(10), both.bytes(10)), (20, 2 * 3 + 2 * 4));
        assert_eq!((half.words(3), both.words(10)), (2, 4), "whole words");
        let back = both.round(&[9.0, 1.0, 3.0, 1.0]).unwrap();
        assert_eq!(back, [9.0, 1.0, 3.0, 1.0]);
        assert_eq!(both.round(&back).unwrap(), back);
        assert!(both.unpack(&[0.0; 2], 4, &mut Vec::new()).is_err());
        let wide = Packed { top: top(2, 2.5), ..both };
        let names = [Packed::default(), half, both, wide].map(Packed::describe);
        assert_eq!(names, ["", ";half", ";half;top2@1", ";half;top2@2.5"]);
    }

    #[test]
    fn what_two_bytes_cannot_hold_is_refused_with_the_key() {
        for top in [None, top(1, 1.0)] {
            let half = Packed { half: true, top };
            for large in [7e4, -7e4] {
                let error = half.round(&[1.0, large, 0.0]).unwrap_err();
                assert!(matches!(&error, Error::User { hint, .. } if hint.contains("objective.logits")), "{error}");
                assert!(Packed { half: false, top }.round(&[1.0, large, 0.0]).is_ok());
            }
            // A teacher that has gone astray by itself is another matter.
            assert!(half.pack(&[f32::INFINITY, f32::NAN, 0.0]).is_ok());
        }
    }
}
