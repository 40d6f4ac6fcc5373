//! The preprocessing that weights were trained with, kept in `preprocess.json` beside them.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// How bytes become numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scale {
    /// To [-1, 1].
    #[serde(rename = "x / 127.5 - 1")]
    Tf,
    /// To [0, 1].
    #[serde(rename = "x / 255")]
    Unit,
}

/// What an image goes through before the network sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Contract {
    /// Channels, height, width.
    pub input_size: [u32; 3],
    /// The short side is resized to this, then the centre is cut out.
    #[serde(default)]
    pub resize_short_side: u32,
    /// First step from bytes.
    pub scale: Scale,
    /// Then subtracted per channel.
    #[serde(default)]
    pub mean: [f32; 3],
    /// Then divided by, per channel.
    #[serde(default = "ones")]
    pub std: [f32; 3],
    /// `tf_same` or `symmetric`.
    #[serde(default = "symmetric")]
    pub padding: String,
}

fn ones() -> [f32; 3] {
    [1.0; 3]
}

fn symmetric() -> String {
    "symmetric".into()
}

/// Largest `preprocess.json`, in bytes.
const MAX_BYTES: u64 = 1 << 20;

impl Contract {
    /// A contract by its name in the job file: `tf`, `torch` or `unit`.
    ///
    /// # Errors
    /// An unknown name.
    pub fn named(name: &str, side: u32, padding: Option<&str>) -> Result<Self> {
        let (scale, mean, std) = match name {
            "tf" => (Scale::Tf, [0.0; 3], ones()),
            "torch" => (Scale::Unit, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
            "unit" => (Scale::Unit, [0.0; 3], ones()),
            _ => return Err(Error::user(format!("there is no preprocessing `{name}`"), "known: tf, torch, unit")),
        };
        let padding = match padding {
            None | Some("symmetric") => symmetric(),
            Some("same" | "tf_same") => "tf_same".into(),
            Some(other) => return Err(Error::user(format!("there is no padding `{other}`"), "known: same, symmetric")),
        };
        Ok(Self { input_size: [3, side, side], resize_short_side: side, scale, mean, std, padding })
    }

    /// The contract beside the weights, if there is one.
    ///
    /// # Errors
    /// A file that says something we cannot do.
    pub fn beside(weights: &Path) -> Result<Option<Self>> {
        let path = weights.with_file_name("preprocess.json");
        match std::fs::metadata(&path) {
            Err(_) => return Ok(None),
            Ok(meta) if meta.len() > MAX_BYTES => {
                return Err(Error::user(format!("`{}` is too large", path.display()), ""));
            }
            Ok(_) => {}
        }
        let text = std::fs::read_to_string(&path).map_err(Error::disk(format!("read `{}`", path.display())))?;
        Self::parse(&text, &path.display().to_string()).map(Some)
    }

    /// Reads the text of a contract.
    ///
    /// # Errors
    /// As [`Contract::beside`].
    pub fn parse(text: &str, shown: &str) -> Result<Self> {
        let mut contract: Self = serde_json::from_str(text).map_err(|e| {
            Error::user(
                format!("`{}` is no preprocessing contract: {e}", shown),
                "write `preprocess` in the job instead",
            )
        })?;
        let [c, h, w] = contract.input_size;
        if c != 3 || h != w || !(8..=1024).contains(&h) {
            return Err(Error::user(
                format!("`{}` wants an input of {c}x{h}x{w}", shown),
                "the input must be 3 channels, square, 8 to 1024 pixels",
            ));
        }
        if contract.resize_short_side < h {
            contract.resize_short_side = h;
        }
        if !["tf_same", "symmetric"].contains(&contract.padding.as_str()) || contract.std.iter().any(|s| !s.is_normal())
        {
            return Err(Error::user(format!("`{}` has an unknown padding, or a `std` of zero", shown), ""));
        }
        Ok(contract)
    }

    /// Whether strided layers pad as TensorFlow's "SAME".
    pub fn same(&self) -> bool {
        self.padding == "tf_same"
    }

    /// Side of the input in pixels.
    pub fn side(&self) -> usize {
        self.input_size[1] as usize
    }

    /// What changes pixels, as text: part of the key of cached features.
    pub fn describe(&self) -> String {
        format!("{:?}", (self.input_size, self.resize_short_side, self.scale, self.mean, self.std))
    }

    /// One byte of channel `c` as the network wants it.
    pub fn value(&self, c: usize, byte: f32) -> f32 {
        let scaled = match self.scale {
            Scale::Tf => byte / 127.5 - 1.0,
            Scale::Unit => byte / 255.0,
        };
        (scaled - self.mean[c]) / self.std[c]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_contract_of_published_weights_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"{"input_size": [3, 224, 224], "crop": "center", "resize_short_side": 224, "scale": "x / 127.5 - 1", "padding": "tf_same"}"#;
        std::fs::write(dir.path().join("preprocess.json"), text).unwrap();
        let c = Contract::beside(&dir.path().join("model.safetensors")).unwrap().unwrap();
        assert!(c.same() && c.side() == 224);
        assert_eq!((c.value(0, 0.0), c.value(1, 255.0)), (-1.0, 1.0));
        std::fs::write(dir.path().join("preprocess.json"), text.replace("tf_same", "odd")).unwrap();
        assert!(Contract::beside(&dir.path().join("model.safetensors")).is_err());
    }
}
