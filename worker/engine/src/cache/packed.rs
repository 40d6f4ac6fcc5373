//! Records in less room than four bytes a number. What comes back is what counts: whoever computes a record anew rounds it
//! the same way, so that nobody can tell what was in the cache.

use half::f16;

use crate::collective;

/// How the numbers of a record are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packed {
    /// In two bytes each.
    pub half: bool,
    /// Only so many of the largest, which are logits, with their places. All others come back as one number, such that the
    /// probabilities of the kept ones (at temperature 1) are what they were.
    pub top: Option<usize>,
}

impl Packed {
    /// Whether nothing changes.
    pub fn is_plain(self) -> bool {
        self == Self::default()
    }

    /// A name for it, as a part of others.
    pub fn describe(self) -> String {
        let top = self.top.map_or(String::new(), |k| format!(";top{k}"));
        let half = if self.half { ";f16" } else { "" };
        format!("{half}{top}")
    }

    /// Bytes of a record of `width` numbers.
    pub fn bytes(self, width: usize) -> usize {
        match self.kept(width) {
            Some(k) => self.number() * (k + 1) + 4 * k,
            None => self.number() * width,
        }
    }

    /// The record as bytes.
    pub fn pack(self, values: &[f32]) -> Vec<u8> {
        let Some(k) = self.kept(values.len()) else { return self.numbers(values) };
        let mut order: Vec<u32> = (0..values.len() as u32).collect();
        // Of equals the first.
        order.sort_by(|a, b| values[*b as usize].total_cmp(&values[*a as usize]).then(a.cmp(b)));
        let (kept, others) = order.split_at(k);
        let value = |i: &u32| values[*i as usize];
        let mut numbers: Vec<f32> = kept.iter().map(value).collect();
        numbers.push(mean(others.iter().map(value)));
        let mut out = self.numbers(&numbers);
        out.extend(kept.iter().flat_map(|i| i.to_le_bytes()));
        out
    }

    /// The numbers of a record of `width`; nothing if the bytes are none.
    pub fn unpack(self, bytes: &[u8], width: usize) -> Option<Vec<f32>> {
        if bytes.len() != self.bytes(width) {
            return None;
        }
        let Some(k) = self.kept(width) else { return self.floats(bytes) };
        let (numbers, places) = bytes.split_at(self.number() * (k + 1));
        let numbers = self.floats(numbers)?;
        let mut out = vec![*numbers.last()?; width];
        for (value, place) in numbers.iter().zip(places.as_chunks::<4>().0) {
            *out.get_mut(u32::from_le_bytes(*place) as usize)? = *value;
        }
        Some(out)
    }

    /// What comes back of numbers that are kept.
    pub fn round(self, values: &[f32]) -> Vec<f32> {
        if self.is_plain() {
            return values.to_vec();
        }
        self.unpack(&self.pack(values), values.len()).unwrap_or_default()
    }

    /// How many of `width` are kept, where not all are.
    fn kept(self, width: usize) -> Option<usize> {
        self.top.filter(|k| *k < width)
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

    fn floats(self, bytes: &[u8]) -> Option<Vec<f32>> {
        match self.half {
            true => Some(bytes.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect()),
            false => collective::from_bytes(bytes).ok(),
        }
    }
}

/// ln of the mean of eˣ.
fn mean(values: impl ExactSizeIterator<Item = f32> + Clone) -> f32 {
    let largest = values.clone().map(f64::from).fold(f64::NEG_INFINITY, f64::max);
    let n = values.len() as f64;
    let total: f64 = values.map(|v| libm::exp(f64::from(v) - largest)).sum();
    (largest + libm::log(total / n)) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn softmax(z: &[f32]) -> Vec<f64> {
        let e: Vec<f64> = z.iter().map(|v| f64::from(*v).exp()).collect();
        let sum: f64 = e.iter().sum();
        e.iter().map(|v| v / sum).collect()
    }

    #[test]
    fn the_likeliest_classes_keep_their_probabilities() {
        let z = [0.3f32, 4.0, -2.0, 4.0, 1.0, -7.5];
        let packed = Packed { top: Some(3), ..Packed::default() };
        let back = packed.round(&z);
        let (want, got) = (softmax(&z), softmax(&back));
        for i in [1, 3, 4] {
            assert!(back[i] == z[i] && (want[i] - got[i]).abs() < 1e-6, "{i}");
        }
        assert!(back[0] == back[2] && back[2] == back[5]);
        assert_eq!(packed.bytes(6), 4 * 4 + 3 * 4);
        // Of equals the first is kept, and what is rounded once stays.
        assert_eq!(Packed { top: Some(1), ..packed }.round(&z)[1], 4.0);
        assert_ne!(Packed { top: Some(1), ..packed }.round(&z)[3], 4.0);
        assert_eq!(packed.round(&back)[..2], back[..2]);
        assert_eq!(Packed { top: Some(9), ..packed }.round(&z), z);
    }

    #[test]
    fn halves_take_two_bytes_and_come_back_as_what_is_nearest() {
        let half = Packed { half: true, top: None };
        assert_eq!(half.round(&[1.0, 0.1, -65504.0]), [1.0, f16::from_f32(0.1).to_f32(), -65504.0]);
        assert_eq!((half.bytes(10), Packed { half: true, top: Some(2) }.bytes(10)), (20, 2 * 3 + 2 * 4));
        let both = Packed { half: true, top: Some(2) };
        let back = both.round(&[9.0, 1.0, 3.0, 1.0]);
        assert_eq!(back, [9.0, 1.0, 3.0, 1.0]);
        assert_eq!(both.round(&back), back);
        assert!(both.unpack(&[0; 3], 4).is_none());
        let names = [Packed::default(), half, both].map(Packed::describe);
        assert_eq!(names, ["", ";f16", ";f16;top2"]);
    }
}
