//! Tensors of a `.safetensors` file, those too of types that candle does not take: masks and small numbers that lie beside
//! weights.

use candle_core::{Device, Tensor, safetensors::Load};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

/// All tensors of a file; truth values as 0 and 1.
///
/// # Errors
/// A file that is not whole, or a type that nobody here takes.
pub(super) fn tensors(bytes: &[u8]) -> candle_core::Result<Vec<(String, Tensor)>> {
    let one = |(name, view): (String, TensorView<'_>)| {
        let tensor = match view.dtype() {
            Dtype::BOOL => Tensor::from_slice(view.data(), view.shape(), &Device::Cpu)?,
            Dtype::I8 => {
                let values: Vec<f32> = view.data().iter().map(|b| f32::from(i8::from_le_bytes([*b]))).collect();
                Tensor::from_vec(values, view.shape(), &Device::Cpu)?
            }
            _ => view.load(&Device::Cpu)?,
        };
        Ok((name, tensor))
    };
    SafeTensors::deserialize(bytes)?.tensors().into_iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_and_small_numbers_lie_beside_weights() {
        let (weight, mask, small) = ([1.5f32, -2.0].map(f32::to_le_bytes).concat(), [1u8, 0], [255u8, 7]);
        let view = |kind, bytes| TensorView::new(kind, vec![2], bytes).unwrap();
        let all = [
            ("mask", view(Dtype::BOOL, &mask[..])),
            ("small", view(Dtype::I8, &small[..])),
            ("weight", view(Dtype::F32, &weight[..])),
        ];
        let bytes = safetensors::serialize(all, None).unwrap();
        for (name, tensor) in tensors(&bytes).unwrap() {
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
