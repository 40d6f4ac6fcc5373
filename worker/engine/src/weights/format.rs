//! What a file of weights is, by the bytes that it begins with: its name may say something else, or nothing.

use std::{fs::File, io::Read, path::Path};

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// Of safetensors.
    Safetensors,
    /// A zip archive, as PyTorch writes them.
    Archive,
    /// A bare pickle, as PyTorch wrote them before 1.6.
    Pickle,
    /// Of HDF5, as Keras writes them.
    Hdf5,
    /// Hugging Face's list of the files that a model is spread over.
    Shards,
}

impl Format {
    /// What a file is; by its ending where its bytes do not say. Nothing for what is not read.
    pub(super) fn of(path: &Path) -> Option<Self> {
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        match start(path)[..] {
            // The length of a header of at most 4 GiB. First: its bytes may look like what others begin with.
            [_, _, _, _, 0, 0, 0, 0, b'{', ..] => Some(Self::Safetensors),
            [b'P', b'K', 3, 4, ..] => Some(Self::Archive),
            // The opcode that a pickle begins with, and the version of its protocol.
            [0x80, 2..=5, ..] => Some(Self::Pickle),
            [0x89, b'H', b'D', b'F', ..] => Some(Self::Hdf5),
            _ if foreign(path).is_some() => None,
            _ => match ending {
                "safetensors" => Some(Self::Safetensors),
                "pth" | "pt" | "th" | "bin" | "ckpt" | "tar" => Some(Self::Archive),
                "h5" | "hdf5" => Some(Self::Hdf5),
                "json" => Some(Self::Shards),
                _ => None,
            },
        }
    }
}

/// The first bytes of a file; none where it cannot be read, which whoever reads it will say.
fn start(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = File::open(path).and_then(|file| file.take(32).read_to_end(&mut bytes));
    bytes
}

/// What pickles of the first protocols are, which PyTorch writes if it is told to, and what to do about them.
pub(super) const OLD_PROTOCOL: (&str, &str) = (
    "are pickled by protocol 0 or 1",
    "save them again by the usual one: `torch.save(torch.load(path), other)`, without `pickle_protocol`",
);

/// The number that PyTorch's files from before 1.6 begin with, as those protocols write it.
const MAGIC: &[u8] = b"L119547037146038801333356L\n";

/// What a file is that other tools have written and is not read, and what to do about it.
pub(super) fn foreign(path: &Path) -> Option<(&'static str, &'static str)> {
    const PYTORCH: &str =
        "save the tensors of the network that it was made from: `torch.save(model.state_dict(), path)`";
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    let start = start(path);
    Some(match ending {
        _ if start.starts_with(b"version https://git-lfs") => {
            ("are what Git LFS keeps in the place of a file", "bring the file itself: `git lfs pull`")
        }
        _ if start.starts_with(b"<") => ("are a page of the web", "download the file itself"),
        _ if start.starts_with(b"\x93NUMPY") => (
            "are one array of NumPy's",
            "save all tensors under their names: `safetensors.numpy.save_file(dict, path)`",
        ),
        _ if start.starts_with(b"GGUF") => ("are of GGUF", PYTORCH),
        _ if start.starts_with(MAGIC) => OLD_PROTOCOL,
        "onnx" => ("are of ONNX", PYTORCH),
        "pb" | "tflite" | "index" | "meta" => {
            ("are TensorFlow's own", "save the model with Keras, as `.h5`: `model.save(\"NAME.h5\")`")
        }
        "msgpack" => ("are of Flax", "save them with `save_pretrained` of a model of PyTorch (`from_flax = True`)"),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_what_its_bytes_say_then_what_its_name_says() {
        let dir = tempfile::tempdir().unwrap();
        let of = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            (Format::of(&path), foreign(&path).map(|(what, _)| what))
        };
        let header = |len: u64| [&len.to_le_bytes()[..], b"{\"a\":"].concat();
        for name in ["w.pth", "w.safetensors", "w.h5", "w.pth.tar", "last.ckpt", "w"] {
            assert_eq!(of(name, &header(90)).0, Some(Format::Safetensors), "{name}");
            // Its length begins as a pickle does.
            assert_eq!(of(name, &header(0x280)).0, Some(Format::Safetensors), "{name}");
            assert_eq!(of(name, b"PK\x03\x04\x00\x00").0, Some(Format::Archive), "{name}");
            assert_eq!(of(name, b"\x80\x02\x8a\x0al\xfc").0, Some(Format::Pickle), "{name}");
            assert_eq!(of(name, b"\x89HDF\r\n\x1a\n").0, Some(Format::Hdf5), "{name}");
            assert_eq!(of(name, b"version https://git-lfs.github.com/spec/v1\n").0, None, "{name}");
        }
        assert_eq!(of("weights.json", &header(90)).0, Some(Format::Safetensors));
        for (name, format) in [
            ("w.safetensors", Some(Format::Safetensors)),
            ("w.pth.tar", Some(Format::Archive)),
            ("w.ckpt", Some(Format::Archive)),
            ("w.h5", Some(Format::Hdf5)),
            ("pytorch_model.bin.index.json", Some(Format::Shards)),
            ("w.txt", None),
        ] {
            assert_eq!(of(name, b"odd"), (format, None), "{name}");
        }
        assert_eq!(of("w.onnx", b"\x08\x07"), (None, Some("are of ONNX")));
        // pickle.dumps(0x1950a86a20f9469cfc6c, protocol=1)
        assert_eq!(of("w.pth", b"L119547037146038801333356L\n."), (None, Some(OLD_PROTOCOL.0)));
    }
}
