//! Tensors of a `.safetensors` file, those too of types that candle does not take: masks and small numbers that lie beside
//! weights.

use candle_core::{Device, Tensor, safetensors::Load};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

/// Types that candle reads, and that become floats.
const OTHERS: [Dtype; 11] = [
    Dtype::F64,
    Dtype::F32,
    Dtype::F16,
    Dtype::BF16,
    Dtype::F8_E4M3,
    Dtype::I64,
    Dtype::I32,
    Dtype::I16,
    Dtype::U32,
    Dtype::U16,
    Dtype::U8,
];

/// The tensors of a file; truth values as 0 and 1. Those of types that nobody here takes are left out: one that is wanted is
/// missed by its name.
///
/// # Errors
/// A file that is not whole.
pub(super) fn tensors(bytes: &[u8]) -> candle_core::Result<Vec<(String, Tensor)>> {
    let one = |(name, view): (String, TensorView<'_>)| {
        let tensor = match view.dtype() {
            Dtype::BOOL => Tensor::from_slice(view.data(), view.shape(), &Device::Cpu),
            Dtype::I8 => {
                let values: Vec<f32> = view.data().iter().map(|b| f32::from(i8::from_le_bytes([*b]))).collect();
                Tensor::from_vec(values, view.shape(), &Device::Cpu)
            }
            kind if OTHERS.contains(&kind) => view.load(&Device::Cpu),
            _ => return None,
        };
        Some(tensor.map(|tensor| (name, tensor)))
    };
    SafeTensors::deserialize(bytes)?.tensors().into_iter().filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_and_small_numbers_lie_beside_weights() {
        let (weight, mask, small) = ([1.5f32, -2.0].map(f32::to_le_bytes).concat(), [1u8, 0], [255u8, 7]);
        let seeds = [7u64, 8].map(u64::to_le_bytes).concat();
        let view = |kind, bytes| TensorView::new(kind, vec![2], bytes).unwrap();
        let all = [
            ("mask", view(Dtype::BOOL, &mask[..])),
            ("small", view(Dtype::I8, &small[..])),
            ("scale", view(Dtype::F8_E8M0, &small[..])),
            ("seeds", view(Dtype::U64, &seeds[..])),
            ("short", view(Dtype::F8_E5M2, &small[..])),
            ("spectrum", view(Dtype::C64, &seeds[..])),
            ("weight", view(Dtype::F32, &weight[..])),
        ];
        let bytes = safetensors::serialize(all, None).unwrap();
        let read = tensors(&bytes).unwrap();
        assert_eq!(read.len(), 3, "the others are of types that are not taken");
        for (name, tensor) in read {
            let wanted = match name.as_str() {
                "mask" => [1.0, 0.0],
                "small" => [-1.0, 7.0],
                _ => [1.5, -2.0],
            };
            let values: Vec<f32> = tensor.to_dtype(candle_core::DType::F32).unwrap().to_vec1().unwrap();
            assert_eq!(values, wanted, "{name}");
        }
        assert!(tensors(&bytes[..bytes.len() - 1]).is_err());
    }
}
