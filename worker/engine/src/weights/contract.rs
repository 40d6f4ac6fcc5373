//! The preprocessing that weights were trained with, and the conventions of their layers, kept in `preprocess.json`
//! beside them.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{
    Error, Result,
    data::{audio::Audio, drawing::Strokes, pixels::Filter, tokens::Text},
    nn::Builder,
};

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

/// What an image goes through before the network sees it, and what the network's layers take for granted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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
    /// `rgb` or `bgr`: the order of the channels, that of `mean` and `std` too.
    #[serde(default = "rgb")]
    pub color: String,
    /// How the resize interpolates.
    #[serde(default = "bilinear")]
    pub interpolation: String,
    /// What is cut out after the resize.
    #[serde(default = "center")]
    pub crop: String,
    /// What batch-norms add to a variance.
    #[serde(default = "batch_norm_eps")]
    pub batch_norm_eps: f32,
    /// The network's rectifier, where the contract says which.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activation: Option<String>,
    /// For text: how it becomes ids. What is said of images means nothing then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<Text>,
    /// For sound: how it becomes a picture. Then that picture, in grey, is what `scale`, `mean` and `std` are of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audio: Option<Audio>,
    /// For drawings: how strokes become rows. What is said of images means nothing then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strokes: Option<Strokes>,
}

fn ones() -> [f32; 3] {
    [1.0; 3]
}

fn symmetric() -> String {
    "symmetric".into()
}

fn rgb() -> String {
    "rgb".into()
}

fn bilinear() -> String {
    "bilinear".into()
}

fn center() -> String {
    "center".into()
}

fn batch_norm_eps() -> f32 {
    Builder::EPS
}

/// Largest `preprocess.json`, in bytes.
const MAX_BYTES: u64 = 64 << 20;

/// Keys for people: nothing depends on them.
const REMARKS: [&str; 7] = ["classes", "comment", "description", "license", "note", "origin", "source"];

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
        Ok(Self {
            input_size: [3, side, side],
            resize_short_side: side,
            scale,
            mean,
            std,
            padding,
            color: rgb(),
            interpolation: bilinear(),
            crop: center(),
            batch_norm_eps: batch_norm_eps(),
            activation: None,
            text: None,
            audio: None,
            strokes: None,
        })
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
        let bad = |e: serde_json::Error| {
            Error::user(
                format!("`{shown}` is no preprocessing contract: {e}"),
                "mend it, or remove it and write `preprocess` in the job instead",
            )
        };
        let mut keys: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text).map_err(bad)?;
        keys.retain(|key, _| !REMARKS.contains(&key.as_str()));
        let mut contract: Self = serde_json::from_value(keys.into()).map_err(bad)?;
        let [c, h, w] = contract.input_size;
        if c != 3 || h != w || !(8..=1024).contains(&h) {
            return Err(Error::user(
                format!("`{shown}` wants an input of {c}x{h}x{w}"),
                "the input must be 3 channels, square, 8 to 1024 pixels",
            ));
        }
        if contract.resize_short_side < h {
            contract.resize_short_side = h;
        }
        let words: [(&str, &str, &[&str]); 4] = [
            ("padding", contract.padding.as_str(), &["tf_same", "symmetric"]),
            ("color", contract.color.as_str(), &["rgb", "bgr"]),
            ("interpolation", contract.interpolation.as_str(), &["bilinear", "bicubic"]),
            ("crop", contract.crop.as_str(), &["center"]),
        ];
        if let Some((key, word, known)) = words.iter().find(|(_, word, known)| !known.contains(word)) {
            return Err(Error::user(
                format!("`{shown}` wants the {key} `{word}`, which is not known"),
                format!("known: {}", known.join(", ")),
            ));
        }
        if contract.std.iter().any(|s| !s.is_normal()) {
            return Err(Error::user(format!("`{shown}` has a `std` of zero"), "every channel is divided by its `std`"));
        }
        if !(f32::MIN_POSITIVE..=1.0).contains(&contract.batch_norm_eps) {
            return Err(Error::user(
                format!("`{shown}` has a `batch_norm_eps` of {}", contract.batch_norm_eps),
                "it must be above 0 and at most 1; PyTorch's is 1e-5",
            ));
        }
        let kinds = [contract.text.is_some(), contract.audio.is_some(), contract.strokes.is_some()];
        if kinds.into_iter().filter(|there| *there).count() > 1 {
            return Err(Error::user(
                format!("`{shown}` is for more than one of text, sound and drawings"),
                "keep what the network reads: `text`, `audio` or `strokes`",
            ));
        }
        if let Some(text) = &contract.text {
            text.check(shown)?;
        }
        if let Some(audio) = &contract.audio {
            audio.check(shown)?;
            audio.fits(contract.side())?;
        }
        if let Some(strokes) = &contract.strokes {
            strokes.check(shown)?;
        }
        Ok(contract)
    }

    /// The same preprocessing for inputs of another side: as much of an image is cut off as before.
    pub fn scaled_to(mut self, side: u32) -> Self {
        let old = u64::from(self.input_size[1].max(1));
        let resized = (2 * u64::from(self.resize_short_side) * u64::from(side) + old) / (2 * old);
        self.input_size = [3, side, side];
        self.resize_short_side = u32::try_from(resized).unwrap_or(u32::MAX).max(side);
        self
    }

    /// The same, of weights that a network for images begins with; `section` is where the job says which network that is.
    ///
    /// # Errors
    /// Weights of a network for text or drawings.
    pub fn for_images(self, section: &str, weights: &Path) -> Result<Self> {
        if self.has_pixels() {
            return Ok(self);
        }
        Err(Error::user(
            format!("weights `{}` are not of a network for images, and `{section}.backbone` is one", weights.display()),
            format!("`{section}.backbone` must be the network that the weights were trained with"),
        ))
    }

    /// The format of files for a network that reads by it.
    pub fn format(&self) -> &'static str {
        match self {
            Self { text: Some(_), .. } => "text",
            Self { strokes: Some(_), .. } => "strokes",
            Self { audio: Some(_), .. } => "audio_folder",
            _ => "image_folder",
        }
    }

    /// How bytes become numbers and what layers pad with, for people.
    pub fn sentence(&self) -> String {
        let scale = match self.scale {
            Scale::Tf => "x / 127.5 - 1",
            Scale::Unit => "x / 255",
        };
        let each = |values: [f32; 3]| values.map(|value| value.to_string()).join(" ");
        let plain = self.mean == [0.0; 3] && self.std == ones();
        let norm = format!(", less the mean {}, divided by {}", each(self.mean), each(self.std));
        let padding = if self.same() { "same" } else { "symmetric" };
        format!("{scale}{}, padding `{padding}`", if plain { "" } else { norm.as_str() })
    }

    /// Whether it is for pixels, be they those of images or of how sound looks.
    pub fn has_pixels(&self) -> bool {
        self.text.is_none() && self.strokes.is_none()
    }

    /// Whether strided layers pad as TensorFlow's "SAME".
    pub fn same(&self) -> bool {
        self.padding == "tf_same"
    }

    /// Whether the network wants blue first.
    pub fn bgr(&self) -> bool {
        self.color == "bgr"
    }

    /// How an image is resized.
    pub fn filter(&self) -> Filter {
        if self.interpolation == "bicubic" { Filter::Bicubic } else { Filter::Bilinear }
    }

    /// Side of the input in pixels.
    pub fn side(&self) -> usize {
        self.input_size[1] as usize
    }

    /// What changes pixels, as text: part of the key of cached features.
    pub fn describe(&self) -> String {
        if let Some(text) = &self.text {
            return text.describe();
        }
        if let Some(strokes) = &self.strokes {
            return strokes.describe();
        }
        let text =
            format!("{:?}", (self.input_size, self.resize_short_side, self.scale, self.mean, self.std, &self.color));
        if let Some(audio) = &self.audio {
            return format!("{text}{}", audio.describe());
        }
        // The usual one is not named: what was cached before there was another stays of use.
        match self.filter() {
            Filter::Bilinear => text,
            other => format!("{text}{other:?}"),
        }
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

    /// As it lies beside published weights.
    const PUBLISHED: &str = r#"{"input_size": [3, 224, 224], "crop": "center", "resize_short_side": 256,
        "interpolation": "bilinear", "color": "rgb", "scale": "x / 127.5 - 1", "padding": "tf_same",
        "activation": "relu6", "batch_norm_eps": 1e-5, "classes": "ImageNet-1k in wnid order"}"#;

    fn parse(from: &str, to: &str) -> Result<Contract> {
        assert!(PUBLISHED.contains(from));
        Contract::parse(&PUBLISHED.replace(from, to), "p.json")
    }

    #[test]
    fn the_contract_of_published_weights_is_read() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("preprocess.json"), PUBLISHED).unwrap();
        let c = Contract::beside(&dir.path().join("model.safetensors")).unwrap().unwrap();
        assert!(c.same() && !c.bgr() && c.side() == 224);
        assert_eq!((c.value(0, 0.0), c.value(1, 255.0)), (-1.0, 1.0));
        assert_eq!((c.batch_norm_eps, c.activation.as_deref()), (Builder::EPS, Some("relu6")));
        std::fs::write(dir.path().join("preprocess.json"), PUBLISHED.replace("tf_same", "odd")).unwrap();
        assert!(Contract::beside(&dir.path().join("model.safetensors")).is_err());
    }

    #[test]
    fn preprocessing_is_told_in_the_words_of_files() {
        assert_eq!(parse("1e-5", "1e-5").unwrap().sentence(), "x / 127.5 - 1, padding `same`");
        let torch = Contract::named("torch", 224, None).unwrap();
        let want = "x / 255, less the mean 0.485 0.456 0.406, divided by 0.229 0.224 0.225, padding `symmetric`";
        assert_eq!(torch.sentence(), want);
    }

    #[test]
    fn what_we_do_not_do_is_refused_by_its_key() {
        for (from, to, says) in [
            ("bilinear", "lanczos", "the interpolation `lanczos`"),
            ("\"center\"", "\"random\"", "the crop `random`"),
            ("\"rgb\"", "\"grey\"", "the color `grey`"),
            ("tf_same", "odd", "the padding `odd`"),
            ("1e-5", "0", "a `batch_norm_eps` of 0"),
            ("\"crop\"", "\"gamma\": 2.2, \"crop\"", "unknown field `gamma`"),
        ] {
            let error = parse(from, to).unwrap_err().to_string();
            assert!(error.contains(says) && error.contains("`p.json`"), "{to}: {error}");
        }
    }

    #[test]
    fn a_contract_is_for_samples_of_one_kind() {
        let (said, named) = (tl_proto::spec::Params::new(), Contract::named("unit", 32, None).unwrap());
        let strokes = Some(Strokes::agreed(None, &said).unwrap());
        let parsed = |contract: &Contract| Contract::parse(&serde_json::to_string(contract).unwrap(), "p.json");
        let drawn = Contract { strokes, ..named.clone() };
        assert_eq!(parsed(&drawn).unwrap(), drawn);
        let both = Contract { audio: Some(Audio::agreed(None, &said).unwrap()), ..drawn.clone() };
        let error = parsed(&both).unwrap_err().to_string();
        assert!(error.contains("`p.json` is for more than one of"), "{error}");
        let images = |contract: Contract| contract.for_images("nets.tower", Path::new("w.safetensors"));
        assert_eq!(images(named.clone()).unwrap(), named);
        let error = images(drawn).unwrap_err().to_string();
        assert!(error.contains("`nets.tower.backbone` is one"), "{error}");
    }

    #[test]
    fn what_a_contract_says_comes_back_from_its_own_text() {
        let said = parse("1e-5", "0.001").unwrap();
        let text = serde_json::to_string(&said).unwrap();
        assert_eq!(Contract::parse(&text, "p.json").unwrap(), said);
        assert_eq!(said.batch_norm_eps, 0.001);
        // Files of ours from before these keys.
        let old = r#"{"input_size":[3,32,32],"resize_short_side":32,"scale":"x / 255",
            "mean":[0.0,0.0,0.0],"std":[1.0,1.0,1.0],"padding":"symmetric"}"#;
        assert_eq!(Contract::parse(old, "p.json").unwrap(), Contract::named("unit", 32, None).unwrap());
    }

    #[test]
    fn another_side_keeps_the_part_that_is_cut_off() {
        let published = || parse("1e-5", "1e-5").unwrap();
        for (side, resized) in [(112, 128), (224, 256), (32, 37), (8, 9)] {
            let c = published().scaled_to(side);
            assert_eq!((c.side(), c.resize_short_side), (side as usize, resized));
        }
        let whole = parse("256", "224").unwrap().scaled_to(33);
        assert_eq!(whole.resize_short_side, 33);
        assert_eq!(parse("256", "4294967295").unwrap().scaled_to(1024).resize_short_side, u32::MAX);
    }
}
