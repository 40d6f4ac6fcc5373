//! Files with sound below a folder or in a list, heard as pictures: see [`audio`].

use tl_proto::{
    catalog::{Entry, entry},
    spec::Params,
};

use super::{
    Dataset, Format, Image, audio,
    files::{self, Files, MAX_FILE},
    read_file,
    stray::Kind,
};
use crate::Result;

pub(super) const FORMAT: Format = Format { entry: describe, open, bare };

/// Files of sound, with those of formats that are not read here.
const KIND: Kind = Kind {
    what: "WAV or FLAC sound",
    endings: &["wav", "wave", "flac", "mp3", "ogg", "oga", "opus", "m4a", "aac", "aif", "aiff", "wma", "au"],
    begins: |start| start.starts_with(b"RIFF") || start.starts_with(b"fLaC"),
};

struct AudioFolder {
    files: Files,
    heard: Params,
}

fn describe() -> Entry {
    Entry {
        params: files::params().into_iter().chain(audio::params()).collect(),
        ..entry(
            "audio_folder",
            "a folder per class with WAV or FLAC files in it, classes in their names, or a list: text with the path of a file \
             on each line and, behind it, its class; networks for images see them as mel spectrograms",
        )
    }
}

fn open(place: &str, part: &str, params: &Params, _seed: u32) -> Result<Box<dyn Dataset>> {
    Ok(Box::new(AudioFolder { files: Files::open(place, part, params, &KIND)?, heard: params.clone() }))
}

fn bare(place: &str, part: &str, params: &Params, _seed: u32) -> Result<Box<dyn Dataset>> {
    Ok(Box::new(AudioFolder { files: Files::bare(place, part, params, &KIND)?, heard: params.clone() }))
}

impl Dataset for AudioFolder {
    fn classes(&self) -> &[String] {
        &self.files.classes
    }
    fn labels(&self) -> &[usize] {
        &self.files.labels
    }
    fn name(&self, index: usize) -> String {
        self.files.files[index].0.clone()
    }
    fn digest(&self, index: usize) -> [u8; 32] {
        self.files.digests[index]
    }
    fn load(&self, _: usize) -> Result<Image, String> {
        Err("it is sound, and the network wants images".into())
    }
    fn heard(&self) -> Option<&Params> {
        Some(&self.heard)
    }
    fn clip(&self, index: usize) -> Result<audio::Clip, String> {
        let bytes = read_file(&self.files.files[index].1, MAX_FILE).map_err(|e| e.to_string())?;
        audio::decode(&bytes)
    }
    fn passed_over(&self) -> Option<&str> {
        self.files.passed_over.as_deref()
    }
}
