//! A folder per class with JPEG and PNG files in it.

use std::path::PathBuf;

use tl_proto::{
    catalog::{Entry, entry},
    spec::Params,
};

use super::{Dataset, Format, Image, read_file};
use crate::{Error, Result};

pub(super) const FORMAT: Format =
    Format { entry: || -> Entry { entry("image_folder", "a folder per class with JPEG or PNG images in it") }, open };

/// Largest image file, in bytes.
const MAX_FILE: u64 = 256 << 20;
/// Largest side of an image, in pixels: bounds what a crafted header can make us allocate.
const MAX_SIDE: u32 = 20_000;

struct ImageFolder {
    classes: Vec<String>,
    labels: Vec<usize>,
    files: Vec<(PathBuf, String)>,
    digests: Vec<[u8; 32]>,
}

fn open(place: &str, _part: &str, _params: &Params, _seed: u32) -> Result<Box<dyn Dataset>> {
    let list = |dir: &std::path::Path| -> Result<Vec<(String, PathBuf)>> {
        let fail = |e: std::io::Error| {
            Error::user(
                format!("`{}` cannot be listed: {e}", dir.display()),
                "`data.train` and `data.val` are folders with one folder per class",
            )
        };
        let mut found = Vec::new();
        for item in std::fs::read_dir(dir).map_err(fail)? {
            let item = item.map_err(fail)?;
            let name = item.file_name().to_string_lossy().into_owned();
            if !name.starts_with('.') {
                found.push((name, item.path()));
            }
        }
        // Bytewise, so that the order is the same on every machine.
        found.sort();
        Ok(found)
    };
    let root = std::path::Path::new(place);
    let (mut classes, mut labels, mut files) = (Vec::new(), Vec::new(), Vec::new());
    for (class, dir) in list(root)?.into_iter().filter(|(_, p)| p.is_dir()) {
        for (name, path) in list(&dir)?.into_iter().filter(|(_, p)| p.is_file()) {
            labels.push(classes.len());
            files.push((path, format!("{class}/{name}")));
        }
        classes.push(class);
    }
    if classes.is_empty() {
        return Err(Error::user(
            format!("`{place}` has no folders in it"),
            "put the images of each class into a folder named after it",
        ));
    }
    let digests =
        files.iter().map(|(p, _)| Ok(*blake3::hash(&read_file(p, MAX_FILE)?).as_bytes())).collect::<Result<_>>()?;
    Ok(Box::new(ImageFolder { classes, labels, files, digests }))
}

impl Dataset for ImageFolder {
    fn classes(&self) -> &[String] {
        &self.classes
    }
    fn labels(&self) -> &[usize] {
        &self.labels
    }
    fn name(&self, index: usize) -> String {
        self.files[index].1.clone()
    }
    fn digest(&self, index: usize) -> [u8; 32] {
        self.digests[index]
    }
    fn load(&self, index: usize) -> Result<Image, String> {
        let bytes = read_file(&self.files[index].0, MAX_FILE).map_err(|e| e.to_string())?;
        decode(&bytes)
    }
}

/// Decodes a JPEG or PNG.
///
/// # Errors
/// Says in words what is wrong with it.
pub fn decode(bytes: &[u8]) -> Result<Image, String> {
    let mut reader =
        image::ImageReader::new(std::io::Cursor::new(bytes)).with_guessed_format().map_err(|e| e.to_string())?;
    if reader.format().is_none() {
        return Err("it is neither JPEG nor PNG".into());
    }
    let mut limits = image::Limits::default();
    (limits.max_image_width, limits.max_image_height) = (Some(MAX_SIDE), Some(MAX_SIDE));
    reader.limits(limits);
    let rgb = reader.decode().map_err(|e| e.to_string())?.into_rgb8();
    Ok(Image { width: rgb.width() as usize, height: rgb.height() as usize, bytes: rgb.into_raw() })
}
