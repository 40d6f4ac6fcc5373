//! The numbers of a storage as f32, and the tensors that lie in it.

use half::{bf16, f16};

/// What numbers a storage is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    F64,
    F32,
    F16,
    Bf16,
    I64,
    I32,
    I16,
    I8,
    /// A truth is one of 0 and 1.
    U8,
}

impl Kind {
    /// By the class of the storage; nothing for complex and quantized numbers, and those that PyTorch has had for a short
    /// time.
    pub fn of(storage: &str) -> Option<Self> {
        Some(match storage {
            "DoubleStorage" => Self::F64,
            "FloatStorage" => Self::F32,
            "HalfStorage" => Self::F16,
            "BFloat16Storage" => Self::Bf16,
            "LongStorage" => Self::I64,
            "IntStorage" => Self::I32,
            "ShortStorage" => Self::I16,
            "CharStorage" => Self::I8,
            "ByteStorage" | "BoolStorage" => Self::U8,
            _ => return None,
        })
    }

    /// Bytes of a number.
    pub fn width(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::Bf16 | Self::I16 => 2,
            Self::I8 | Self::U8 => 1,
        }
    }

    /// Numbers, each with its least byte first, as f32.
    pub fn floats(self, bytes: &[u8]) -> Vec<f32> {
        fn each<const N: usize>(bytes: &[u8], float: impl Fn([u8; N]) -> f32) -> Vec<f32> {
            bytes.as_chunks::<N>().0.iter().map(|number| float(*number)).collect()
        }
        match self {
            Self::F64 => each(bytes, |b| f64::from_le_bytes(b) as f32),
            Self::F32 => each(bytes, f32::from_le_bytes),
            Self::F16 => each(bytes, |b| f16::from_le_bytes(b).to_f32()),
            Self::Bf16 => each(bytes, |b| bf16::from_le_bytes(b).to_f32()),
            Self::I64 => each(bytes, |b| i64::from_le_bytes(b) as f32),
            Self::I32 => each(bytes, |b| i32::from_le_bytes(b) as f32),
            Self::I16 => each(bytes, |b| f32::from(i16::from_le_bytes(b))),
            Self::I8 => each(bytes, |b| f32::from(i8::from_le_bytes(b))),
            Self::U8 => each(bytes, |b| f32::from(u8::from_le_bytes(b))),
        }
    }
}

/// Bytes of a number of a storage that may be of none that are read.
pub fn width(storage: &str) -> Option<usize> {
    Kind::of(storage).map(Kind::width).or(match storage {
        "ComplexDoubleStorage" => Some(16),
        "ComplexFloatStorage" => Some(8),
        "QInt32Storage" => Some(4),
        "QInt8Storage" | "QUInt8Storage" => Some(1),
        _ => None,
    })
}

/// Where a tensor lies in the numbers of a storage.
#[derive(Debug, PartialEq)]
pub struct Place {
    first: usize,
    /// Its shape.
    pub shape: Vec<usize>,
    strides: Vec<usize>,
    /// Its elements.
    pub count: usize,
}

impl Place {
    /// A tensor whose elements along each dimension lie as many numbers apart as `strides` say. At most `most` elements,
    /// in a storage of `stored`.
    ///
    /// # Errors
    /// What is wrong with it, as the end of a sentence.
    pub fn new(
        first: usize,
        shape: Vec<usize>,
        mut strides: Vec<usize>,
        (most, stored): (usize, usize),
    ) -> Result<Self, &'static str> {
        if shape.len() != strides.len() || shape.len() > 64 {
            return Err("has a shape that is none");
        }
        let count = shape.iter().try_fold(1, |n: usize, size| n.checked_mul(*size));
        let count = count.filter(|n| *n <= most).ok_or("is larger than the file")?;
        // What does not count may be anything.
        strides.iter_mut().zip(&shape).filter(|(_, size)| **size <= 1).for_each(|(stride, _)| *stride = 0);
        let mut steps = shape.iter().zip(&strides).map(|(size, stride)| size.saturating_sub(1).checked_mul(*stride));
        let last = steps.try_fold(first, |at, step| at.checked_add(step?));
        if count > 0 && last.is_none_or(|last| last >= stored) {
            return Err("lies outside of its storage");
        }
        Ok(Self { first, shape, strides, count })
    }

    /// Its elements one after the other, as if it were contiguous.
    pub fn gather(&self, stored: &[f32]) -> Vec<f32> {
        let mut out = Vec::with_capacity(self.count);
        let (mut index, mut at) = (vec![0; self.shape.len()], self.first);
        for _ in 0..self.count {
            out.push(stored[at]);
            for (i, (size, stride)) in index.iter_mut().zip(self.shape.iter().zip(&self.strides)).rev() {
                *i += 1;
                at += stride;
                if *i < *size {
                    break;
                }
                at -= size * stride;
                *i = 0;
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_gathered_by_their_strides_and_none_beyond_what_is_there() {
        let stored: Vec<f32> = (0..24u8).map(f32::from).collect();
        let place = |first, shape: &[usize], strides: &[usize]| {
            Place::new(first, shape.to_vec(), strides.to_vec(), (24, 24)).map(|place| place.gather(&stored))
        };
        // Two rows of three, turned, every second, the same one again, and none.
        assert_eq!(place(4, &[2, 3], &[3, 1]).unwrap(), [4.0, 5.0, 6.0, 7.0, 8.0, 9.0]);
        assert_eq!(place(0, &[3, 2], &[1, 3]).unwrap(), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        assert_eq!(place(1, &[2, 1, 2], &[12, 1 << 60, 2]).unwrap(), [1.0, 3.0, 13.0, 15.0]);
        assert_eq!(place(23, &[3], &[0]).unwrap(), [23.0; 3]);
        assert_eq!(place(99, &[2, 0], &[1, 1]).unwrap(), [0.0; 0]);
        assert_eq!(place(23, &[], &[]).unwrap(), [23.0]);
        let bad: [(usize, &[usize], &[usize]); 7] = [
            (24, &[1], &[1]),
            (0, &[2, 3], &[22, 1]),
            (0, &[2, 2], &[usize::MAX, 1]),
            (usize::MAX, &[2], &[1]),
            (0, &[2], &[]),
            (0, &[5, 5], &[0, 0]),
            (0, &[1 << 40, 1 << 40], &[0, 0]),
        ];
        for (first, shape, strides) in bad {
            assert!(place(first, shape, strides).is_err(), "{first} {shape:?} {strides:?}");
        }
    }

    #[test]
    fn all_kinds_of_numbers_become_floats() {
        for (storage, bytes, floats) in [
            ("DoubleStorage", [(-1.5f64).to_le_bytes(), 2f64.to_le_bytes()].concat(), [-1.5, 2.0]),
            ("FloatStorage", [(-1.5f32).to_le_bytes(), 2f32.to_le_bytes()].concat(), [-1.5, 2.0]),
            ("HalfStorage", vec![0x00, 0xbe, 0x00, 0x40], [-1.5, 2.0]),
            ("BFloat16Storage", vec![0xc0, 0xbf, 0x00, 0x40], [-1.5, 2.0]),
            ("LongStorage", [(-3i64).to_le_bytes(), 7i64.to_le_bytes()].concat(), [-3.0, 7.0]),
            ("IntStorage", [(-3i32).to_le_bytes(), 7i32.to_le_bytes()].concat(), [-3.0, 7.0]),
            ("ShortStorage", [(-3i16).to_le_bytes(), 7i16.to_le_bytes()].concat(), [-3.0, 7.0]),
            ("CharStorage", vec![0xfd, 7], [-3.0, 7.0]),
            ("ByteStorage", vec![0xfd, 7], [253.0, 7.0]),
            ("BoolStorage", vec![1, 0], [1.0, 0.0]),
        ] {
            let kind = Kind::of(storage).unwrap();
            assert_eq!((kind.floats(&bytes), 2 * kind.width()), (floats.to_vec(), bytes.len()), "{storage}");
        }
    }
}
