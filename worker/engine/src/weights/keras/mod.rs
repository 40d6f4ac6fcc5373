//! Weights of `keras.applications`: layers and variables of Keras under the names of ours, kernels turned into their order,
//! and the preprocessing that belongs to them.

mod h5;

use std::{collections::BTreeMap, path::Path};

use candle_core::Tensor;

use h5::Bad;
pub use h5::Variable;

use super::{Contract, Scale, format::Format};
use crate::{Error, Result, backbone::DEVIATIONS, nn::Store};

/// Whether a file is one of HDF5.
pub fn is_h5(path: &Path) -> bool {
    Format::of(path) == Some(Format::Hdf5)
}

/// Tensors of a file by layer and variable.
///
/// # Errors
/// A file that is not whole, or holds no layers that Keras would name.
pub fn read(path: &Path, size: u64) -> Result<Vec<Variable>> {
    let shown = path.display();
    // Before 3.6 Keras wrote the layers of `.weights.h5` by number alone.
    let hint = "give a file that says which layer is which: `model.save(\"NAME.h5\")`, or from Keras 3.6 on \
        `model.save_weights(\"NAME.weights.h5\")`";
    // The reader is somebody else's: a panic in it is a bad file, not a bug of the run.
    let read = std::panic::catch_unwind(|| h5::read(path, size));
    let read = read.unwrap_or_else(|_| Err("it contradicts itself".into()));
    let found = read.map_err(|bad| match bad {
        Bad::NotWhole(why) => Error::user(format!("weights `{shown}` are not a whole file: {why}"), hint),
        Bad::Precision { name, bits } => Error::user(
            format!("`{name}` in the weights `{shown}` is of {bits}-bit numbers, and only 32-bit ones are read"),
            "save them in single precision: build the network under `keras.config.set_floatx(\"float32\")`, load these \
             weights into it, and save it",
        ),
    })?;
    if found.is_empty() {
        let why = "hold no tensors that belong to a layer by name";
        return Err(Error::user(format!("weights `{shown}` {why}"), hint));
    }
    Ok(found)
}

/// Tensors under the names of `backbone`, in PyTorch's order, for the shapes that `store` has.
///
/// # Errors
/// A tensor that cannot be turned, or a name that two layers have.
pub fn usual_names(backbone: &str, variables: Vec<Variable>, store: &Store) -> Result<BTreeMap<String, Tensor>> {
    let entries = store.params.iter().chain(&store.buffers);
    let shapes: BTreeMap<&str, &[usize]> = entries.map(|e| (e.name.as_str(), e.shape.as_slice())).collect();
    let mut out = BTreeMap::new();
    for Variable { layers, name, value } in variables {
        let ours = |layer: String| if backbone == "mobilenet_v2" { mobilenet(&layer) } else { Some(layer) };
        let mut full = layers
            .into_iter()
            .filter_map(ours)
            .flat_map(|layer| kinds(&name).iter().map(move |kind| format!("{layer}.{kind}")));
        // The names of a head are nobody's business here, and those of other networks are refused later, by name.
        let Some(full) = full.find(|name| shapes.contains_key(name.as_str())) else { continue };
        let entry = shapes.get(full.as_str()).copied();
        let value = turned(&value, name == "depthwise_kernel", entry)?;
        if out.insert(full.clone(), value).is_some() {
            return Err(Error::user(
                format!("the weights hold `{full}` twice"),
                "save the network alone, without others around it",
            ));
        }
    }
    if backbone == "efficientnet_b0_keras" {
        plain_normalisation(&mut out)?;
    }
    Ok(out)
}

/// Keras normalises the input of an EfficientNet a second time if it was built with `weights = "imagenet"`, as ours always
/// does. Of one that was built without, the variances are scaled so that the second time has no effect.
fn plain_normalisation(file: &mut BTreeMap<String, Tensor>) -> Result<()> {
    const NAME: &str = "normalization.variance";
    let Some(variance) = file.get(NAME) else { return Ok(()) };
    let variance: Vec<f32> = variance.flatten_all()?.to_vec1()?;
    let published = variance.iter().zip(DEVIATIONS).all(|(v, d)| (v - d).abs() < 1e-3);
    if variance.len() == DEVIATIONS.len() && !published {
        let scaled = variance.iter().zip(DEVIATIONS).map(|(v, d)| v / d).collect();
        file.insert(NAME.to_owned(), crate::nn::tensor(scaled, &[DEVIATIONS.len()])?);
    }
    Ok(())
}

/// What we may call a variable, below its layer.
fn kinds(variable: &str) -> &'static [&'static str] {
    match variable {
        "kernel" | "gamma" => &["weight"],
        "bias" | "beta" => &["bias"],
        "mean" => &["mean"],
        "variance" => &["variance"],
        "moving_mean" => &["running_mean"],
        "moving_variance" => &["running_var"],
        "pointwise_kernel" => &["pointwise.weight"],
        // Half of a separable convolution, or a layer of its own, as Keras named it before its third version.
        "depthwise_kernel" => &["depthwise.weight", "weight"],
        _ => &[],
    }
}

/// From `[h, w, in, out]` to `[out, in, h, w]`, from `[h, w, c, 1]` to `[c, 1, h, w]`, from `[in, out]` to `[out, in]`.
fn turned(value: &Tensor, depthwise: bool, shape: Option<&[usize]>) -> Result<Tensor> {
    let turned = match *value.dims() {
        [_, _, c, 1] if depthwise || shape.is_some_and(|s| s.len() == 4 && s[0] == c && s[1] == 1) => {
            value.permute((2, 3, 0, 1))?
        }
        [_, _, _, _] => value.permute((3, 2, 0, 1))?,
        [_, _] => value.t()?,
        _ => return Ok(value.clone()),
    };
    Ok(turned.contiguous()?)
}

/// Our name of a layer of MobileNetV2, whose names are torchvision's.
fn mobilenet(layer: &str) -> Option<String> {
    let fixed = match layer {
        "Conv1" => "features.0.0",
        "bn_Conv1" => "features.0.1",
        "Conv_1" => "features.18.0",
        "Conv_1_bn" => "features.18.1",
        "predictions" => "classifier.1",
        _ => "",
    };
    if !fixed.is_empty() {
        return Some(fixed.into());
    }
    let (block, part) = match layer.strip_prefix("expanded_conv_") {
        Some(part) => (0, part),
        None => {
            let (number, part) = layer.strip_prefix("block_")?.split_once('_')?;
            (number.parse::<usize>().ok()?, part)
        }
    };
    // The first block does not expand, and so begins one earlier.
    let first = usize::from(block > 0);
    let part = match part {
        "expand" => "0.0".into(),
        "expand_BN" => "0.1".into(),
        "depthwise" => format!("{first}.0"),
        "depthwise_BN" => format!("{first}.1"),
        "project" => (first + 1).to_string(),
        "project_BN" => (first + 2).to_string(),
        _ => return None,
    };
    Some(format!("features.{}.conv.{part}", block + 1))
}

/// The contract of a file of Keras', which has none beside it: pixels as the job says, if it does, and layers as Keras'.
///
/// # Errors
/// None that can be caused from outside.
pub fn agreed(backbone: &str, side: u32, named: Option<&Contract>, padding: bool) -> Result<Option<Contract>> {
    let Some(usual) = contract(backbone, side)? else { return Ok(None) };
    let Some(named) = named else { return Ok(Some(usual)) };
    let padding = if padding { named.padding.clone() } else { usual.padding };
    Ok(Some(Contract { padding, batch_norm_eps: usual.batch_norm_eps, ..named.clone() }))
}

/// What `keras.applications` does to images before `backbone` sees them, at inputs of `side`.
pub fn contract(backbone: &str, side: u32) -> Result<Option<Contract>> {
    let named = |name| Contract::named(name, side, Some("same"));
    Ok(Some(match backbone {
        // Its batch-norms have an eps of their own, which in ours is part of the contract.
        "mobilenet_v2" => Contract { batch_norm_eps: 1e-3, ..named("tf")? },
        "nasnet_mobile" => named("tf")?,
        "efficientnet_b0_keras" => named("unit")?,
        // Caffe's: blue first, the means of the channels subtracted, and not divided by anything.
        "resnet50_keras" => Contract {
            scale: Scale::Unit,
            color: "bgr".into(),
            mean: [103.939, 116.779, 123.68].map(|m: f32| m / 255.0),
            std: [1.0 / 255.0; 3],
            ..named("unit")?
        },
        _ => return Ok(None),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keras' network without the second normalisation: (x − mean) / √variance is what ours must come to.
    #[test]
    fn an_efficientnet_that_was_built_without_imagenet_is_normalised_once() {
        let normalised = |variance: [f32; 3]| {
            let tensor = crate::nn::tensor(variance.to_vec(), &[3]).unwrap();
            let mut file = BTreeMap::from([("normalization.variance".to_owned(), tensor)]);
            plain_normalisation(&mut file).unwrap();
            let ours: Vec<f32> = file["normalization.variance"].to_vec1().unwrap();
            // What our layer makes of mean + 1.
            std::array::from_fn::<f32, 3, _>(|i| 1.0 / ours[i].sqrt() / DEVIATIONS[i].sqrt())
        };
        for (found, wanted) in normalised([1.0, 4.0, 0.25]).into_iter().zip([1.0, 0.5, 2.0]) {
            assert!((found - wanted).abs() < 1e-6, "{found} {wanted}");
        }
        for (found, deviation) in normalised(DEVIATIONS).into_iter().zip(DEVIATIONS) {
            assert!((found - 1.0 / deviation).abs() < 1e-5, "published weights: twice");
        }
    }
}
