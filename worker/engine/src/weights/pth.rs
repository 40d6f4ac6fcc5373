//! PyTorch's own files: a zip archive of the bytes of tensors, and of a pickle that says which is which.

use std::{io::Read, path::Path};

use candle_core::{
    Error, Result, Tensor,
    pickle::{TensorInfo, read_all_with_key, read_pth_tensor_info},
};

/// Where training scripts keep the tensors of the model, beside epochs, optimizers and figures.
const NESTED: [&str; 3] = ["state_dict", "model_state_dict", "model"];

/// Whether a file is a bare pickle, as PyTorch wrote them before 1.6, and no archive.
pub(super) fn is_legacy(path: &Path) -> bool {
    let mut start = [0; 2];
    let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut start));
    // The opcode that a pickle begins with, and the version of its protocol.
    read.is_ok() && start[0] == 0x80 && (2..=5).contains(&start[1])
}

/// Tensors of an archive of `size` bytes, under one of the usual keys or else at the top.
pub(super) fn read(path: &Path, size: u64) -> Result<Vec<(String, Tensor)>> {
    let under = |key: Option<&str>| read_pth_tensor_info(path, false, key);
    // What is damaged says so here, not as a key that is not there.
    let mut list = under(None)?;
    let mut at = None;
    for key in NESTED {
        // Such a key wins over tensors at the top: those are figures that the script has kept.
        if let Ok(found) = under(Some(key))
            && !found.is_empty()
        {
            (list, at) = (found, Some(key));
            break;
        }
    }
    if let Some(odd) = list.iter().find(|t| !fits(t, size)) {
        return Err(Error::Msg(format!("tensor `{}` is larger than the file", odd.name)));
    }
    read_all_with_key(path, at)
}

/// What a tensor claims is allocated before it is read, so it may not claim more than there is.
fn fits(tensor: &TensorInfo, size: u64) -> bool {
    let bytes = tensor.layout.dims().iter().try_fold(tensor.dtype.size_in_bytes(), |n, dim| n.checked_mul(*dim));
    bytes.is_some_and(|n| n as u64 <= size)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use crate::{nn::host, weights};

    const DICT: &[u8] = b"ccollections\nOrderedDict\n)R";
    const WEIGHT: [f32; 6] = [1.0, -2.0, 3.5, 0.0, 5.0, 1e-7];
    const BIAS: [f32; 2] = [7.0, -8.0];

    fn text(s: &str) -> Vec<u8> {
        [&b"X"[..], &(s.len() as u32).to_le_bytes()[..], s.as_bytes()].concat()
    }

    fn number(n: usize) -> Vec<u8> {
        [&b"J"[..], &(n as i32).to_le_bytes()[..]].concat()
    }

    fn tuple(items: &[Vec<u8>]) -> Vec<u8> {
        [&b"("[..], &items.concat()[..], &b"t"[..]].concat()
    }

    /// The pickle of a tensor whose bytes lie in `data/{file}`.
    fn tensor(file: &str, shape: &[usize]) -> Vec<u8> {
        let sizes: Vec<Vec<u8>> = shape.iter().map(|d| number(*d)).collect();
        let strides: Vec<Vec<u8>> = (0..shape.len()).map(|i| number(shape[i + 1..].iter().product())).collect();
        let count = number(shape.iter().product());
        let storage = tuple(&[text("storage"), b"ctorch\nFloatStorage\n".to_vec(), text(file), text("cpu"), count]);
        let storage = [storage, b"Q".to_vec()].concat();
        let arguments = [storage, number(0), tuple(&sizes), tuple(&strides), b"\x89".to_vec(), DICT.to_vec()];
        [b"ctorch._utils\n_rebuild_tensor_v2\n".to_vec(), tuple(&arguments), b"R".to_vec()].concat()
    }

    fn dict(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
        let entries: Vec<u8> = entries.iter().flat_map(|(key, value)| [text(key), value.clone()].concat()).collect();
        [DICT, &b"("[..], &entries[..], &b"u"[..]].concat()
    }

    fn state(prefix: &str) -> Vec<u8> {
        let names = [format!("{prefix}fc.weight"), format!("{prefix}fc.bias")];
        dict(&[(names[0].as_str(), tensor("0", &[2, 3])), (names[1].as_str(), tensor("1", &[2]))])
    }

    /// A zip archive whose entries are stored as they are.
    fn archive(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
        let (mut out, mut directory) = (Vec::<u8>::new(), Vec::<u8>::new());
        for (name, bytes) in files {
            let mut crc = flate2::Crc::new();
            crc.update(bytes);
            // Version, flags, method, time, date; checksum; both sizes; lengths of the name and of what follows it.
            let mut header = vec![20, 0, 0, 0, 0, 0, 0, 0, 0x21, 0];
            header.extend(crc.sum().to_le_bytes());
            header.extend((bytes.len() as u32).to_le_bytes().repeat(2));
            header.extend([name.len() as u8, 0, 0, 0]);
            directory.extend([&b"PK\x01\x02\x14\x00"[..], &header[..], &[0; 10][..]].concat());
            directory.extend((out.len() as u32).to_le_bytes());
            directory.extend(name.as_bytes());
            out.extend([&b"PK\x03\x04"[..], &header[..], name.as_bytes(), &bytes[..]].concat());
        }
        let (count, start, len) = (files.len() as u8, out.len() as u32, directory.len() as u32);
        out.extend(directory);
        out.extend([&b"PK\x05\x06"[..], &[0, 0, 0, 0, count, 0, count, 0][..]].concat());
        out.extend([len.to_le_bytes(), start.to_le_bytes()].concat());
        out.extend([0, 0]);
        out
    }

    /// What is read from a file of this name whose pickle is `top`.
    fn read(name: &str, top: &[u8]) -> crate::Result<BTreeMap<String, Vec<f32>>> {
        read_bytes(name, &file(top))
    }

    fn read_bytes(name: &str, bytes: &[u8]) -> crate::Result<BTreeMap<String, Vec<f32>>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let tensors = weights::read(&path)?;
        Ok(tensors.iter().map(|(name, t)| (name.clone(), host(t).unwrap().to_vec())).collect())
    }

    fn file(top: &[u8]) -> Vec<u8> {
        let pickle = [&b"\x80\x02"[..], top, &b"."[..]].concat();
        let numbers = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        let files =
            [("archive/data.pkl", pickle), ("archive/data/0", numbers(&WEIGHT)), ("archive/data/1", numbers(&BIAS))];
        archive(&files)
    }

    proptest::proptest! {
        /// Bytes changed, put in or cut off anywhere: tensors, or an error with a sentence, and no memory that the file
        /// does not have.
        #[test]
        fn damaged_files_are_refused_without_a_panic(
            at in 0usize..4096, drop in 0usize..12, put in proptest::collection::vec(0u8.., 0..12), nested: bool,
        ) {
            let top = if nested { dict(&[("state_dict", state("module."))]) } else { state("") };
            let mut bytes = file(&top);
            let at = at % bytes.len();
            let end = (at + drop).min(bytes.len());
            bytes.splice(at..end, put);
            if let Err(e) = read_bytes("w.pth", &bytes) {
                assert!(!e.to_string().is_empty());
            }
        }
    }

    #[test]
    fn the_usual_files_are_read_flat_nested_and_wrapped() {
        let want: BTreeMap<String, Vec<f32>> =
            [("fc.weight".to_owned(), WEIGHT.to_vec()), ("fc.bias".to_owned(), BIAS.to_vec())].into();
        // As training scripts write them: what else they keep may hold a tensor too.
        let script = |key: &str, prefix: &str| {
            dict(&[("epoch", number(3)), ("best", tensor("1", &[2])), (key, state(prefix)), ("arch", text("net"))])
        };
        for (name, top) in [
            ("flat.pth", state("")),
            ("wrapped.pt", state("module.")),
            ("script.pth", script("state_dict", "")),
            ("script.th", script("state_dict", "module.")),
            ("script.pt", script("model_state_dict", "")),
            ("script.bin", script("model", "module.")),
        ] {
            assert_eq!(read(name, &top).unwrap(), want, "{name}");
        }
        // Only a prefix that all share is none of theirs.
        let mixed = dict(&[("module.fc.bias", tensor("1", &[2])), ("fc.bias", tensor("1", &[2]))]);
        assert_eq!(read("mixed.pth", &mixed).unwrap().into_keys().collect::<Vec<_>>(), ["fc.bias", "module.fc.bias"]);
    }

    #[test]
    fn files_without_tensors_of_the_old_format_or_beyond_their_size_are_refused_by_what_they_are() {
        let error = read("w.pth", &dict(&[("epoch", number(3))])).unwrap_err().to_string();
        assert!(error.contains("hold no tensors"), "{error}");
        let error = read("w.pth", &dict(&[("fc.bias", tensor("1", &[1 << 30, 1 << 30]))])).unwrap_err().to_string();
        assert!(error.contains("tensor `fc.bias` is larger than the file"), "{error}");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.th");
        std::fs::write(&path, b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.").unwrap();
        let Err(crate::Error::User { message, hint }) = weights::read(&path) else { panic!("no error") };
        assert!(message.contains("PyTorch wrote before 1.6") && hint.contains("torch.save"), "{message}: {hint}");
    }
}
