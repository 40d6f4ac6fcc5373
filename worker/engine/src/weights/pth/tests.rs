//! Files as PyTorch writes them, made byte by byte.

use std::collections::BTreeMap;

use crate::{nn::host, weights};

const DICT: &[u8] = b"ccollections\nOrderedDict\n)R";
const WEIGHT: [f32; 6] = [1.0, -2.0, 3.5, 0.0, 5.0, 1e-7];
const BIAS: [f32; 2] = [7.0, -8.0];
const EIGHT: [f32; 8] = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0];

fn text(s: &str) -> Vec<u8> {
    [&b"X"[..], &(s.len() as u32).to_le_bytes()[..], s.as_bytes()].concat()
}

fn number(n: usize) -> Vec<u8> {
    [&b"J"[..], &(n as i32).to_le_bytes()[..]].concat()
}

fn tuple(items: &[Vec<u8>]) -> Vec<u8> {
    [&b"("[..], &items.concat()[..], &b"t"[..]].concat()
}

fn numbers(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// The pickle of a storage of that class; files from before 1.6 say more of it.
fn storage(class: &str, key: &str, count: usize, more: &[Vec<u8>]) -> Vec<u8> {
    let class = format!("ctorch\n{class}\n").into_bytes();
    let id = [vec![text("storage"), class, text(key), text("cpu"), number(count)], more.to_vec()].concat();
    [tuple(&id), b"Q".to_vec()].concat()
}

/// The pickle of a tensor that begins at `first` in a storage.
fn view(storage: Vec<u8>, first: usize, shape: &[usize], strides: &[usize]) -> Vec<u8> {
    let list = |numbers: &[usize]| tuple(&numbers.iter().map(|n| number(*n)).collect::<Vec<_>>());
    let arguments = [storage, number(first), list(shape), list(strides), b"\x89".to_vec(), DICT.to_vec()];
    [b"ctorch._utils\n_rebuild_tensor_v2\n".to_vec(), tuple(&arguments), b"R".to_vec()].concat()
}

/// The pickle of a tensor whose bytes lie in `data/{file}`.
fn tensor(file: &str, shape: &[usize]) -> Vec<u8> {
    let strides: Vec<usize> = (0..shape.len()).map(|i| shape[i + 1..].iter().product()).collect();
    view(storage("FloatStorage", file, shape.iter().product(), &[]), 0, shape, &strides)
}

fn dict(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let entries: Vec<u8> = entries.iter().flat_map(|(key, value)| [text(key), value.clone()].concat()).collect();
    [DICT, &b"("[..], &entries[..], &b"u"[..]].concat()
}

fn state(prefix: &str) -> Vec<u8> {
    let names = [format!("{prefix}fc.weight"), format!("{prefix}fc.bias")];
    dict(&[(names[0].as_str(), tensor("0", &[2, 3])), (names[1].as_str(), tensor("1", &[2]))])
}

/// A zip archive whose entries are stored as they are, with the records of large archives, which PyTorch always writes.
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
    let end = out.len() as u64;
    // What is left of the record, versions, disks; entries here and in all; the directory; then where this record begins.
    out.extend([&b"PK\x06\x06"[..], &44u64.to_le_bytes()[..], &[45u8, 0, 45, 0, 0, 0, 0, 0, 0, 0, 0, 0][..]].concat());
    out.extend([u64::from(count), u64::from(count), u64::from(len), u64::from(start)].map(u64::to_le_bytes).concat());
    out.extend([&b"PK\x06\x07\0\0\0\0"[..], &end.to_le_bytes()[..], &[1u8, 0, 0, 0][..]].concat());
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
    file_of("archive", top)
}

/// The same, where the folder in the archive has that name: PyTorch calls it as the file.
fn file_of(folder: &str, top: &[u8]) -> Vec<u8> {
    let pickle = [&b"\x80\x02"[..], top, &b"."[..]].concat();
    let names = ["data.pkl", "data/0", "data/1", "data/2"].map(|name| format!("{folder}/{name}"));
    let entries = [pickle, numbers(&WEIGHT), numbers(&BIAS), numbers(&EIGHT)];
    let files: Vec<(&str, Vec<u8>)> = names.iter().map(String::as_str).zip(entries).collect();
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

fn want() -> BTreeMap<String, Vec<f32>> {
    [("fc.weight".to_owned(), WEIGHT.to_vec()), ("fc.bias".to_owned(), BIAS.to_vec())].into()
}

fn refused(top: &[u8]) -> String {
    read("w.pth", top).unwrap_err().to_string()
}

#[test]
fn the_usual_files_are_read_flat_nested_and_wrapped() {
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
        ("script.pth.tar", script("state_dict", "module.")),
        ("script.ckpt", script("net", "module._orig_mod.")),
        ("script", script("state_dict_ema", "")),
        ("twice.pth", dict(&[("model", dict(&[("state_dict", state(""))]))])),
        ("averaged.pth", dict(&[("model", state("")), ("model_ema", dict(&[("fc.bias", tensor("2", &[2]))]))])),
    ] {
        assert_eq!(read(name, &top).unwrap(), want(), "{name}");
    }
    // Only a prefix that all share is none of theirs.
    let mixed = dict(&[("module.fc.bias", tensor("1", &[2])), ("fc.bias", tensor("1", &[2]))]);
    assert_eq!(read("mixed.pth", &mixed).unwrap().into_keys().collect::<Vec<_>>(), ["fc.bias", "module.fc.bias"]);
    let error = refused(&dict(&[("epoch", number(3)), ("student", state("")), ("teacher", state(""))]));
    assert!(error.contains("keep tensors under `student` and `teacher`"), "{error}");
}

#[test]
fn a_file_is_read_whatever_the_length_of_its_name() {
    for len in 1..=40 {
        let name = "n".repeat(len);
        assert_eq!(read_bytes("w.pth", &file_of(&name, &state(""))).unwrap(), want(), "{len} letters");
    }
}

#[test]
fn what_pytorch_writes_only_if_it_is_told_to_is_refused_by_what_it_is() {
    // pickle.dumps({'a': 1}, protocol=1)
    let old = archive(&[("m/data.pkl", b"}q\x00X\x01\x00\x00\x00aq\x01K\x01s.".to_vec())]);
    let error = read_bytes("w.pth", &old).unwrap_err();
    assert!(error.to_string().contains("are pickled by protocol 0 or 1"), "{error}");
    assert!(error.to_failure().hint.contains("without `pickle_protocol`"));
    // The method of the first entry, in the archive and in its directory: deflated.
    let mut packed = file(&state(""));
    let directory = packed.windows(4).position(|part| part == b"PK\x01\x02").unwrap();
    (packed[8], packed[directory + 10]) = (8, 8);
    let error = read_bytes("w.pth", &packed).unwrap_err().to_string();
    assert!(error.contains("packed again, with compression"), "{error}");
}

#[test]
fn tensors_lie_in_storages_as_their_strides_say() {
    let eight = || storage("FloatStorage", "2", 8, &[]);
    // Two samples of two channels, two rows, one column, in `channels_last`; every second number; a part; a row twice.
    let top = dict(&[
        ("a", view(eight(), 0, &[2, 2, 2, 1], &[4, 1, 2, 2])),
        ("b", view(eight(), 1, &[3], &[2])),
        ("c", view(eight(), 5, &[2], &[1])),
        ("d", view(eight(), 6, &[2, 2], &[0, 1])),
    ]);
    let tensors = read("w.pth", &top).unwrap();
    assert_eq!(tensors["a"], [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
    assert_eq!((&tensors["b"][..], &tensors["c"][..]), (&[1.0, 3.0, 5.0][..], &[5.0, 6.0][..]));
    assert_eq!(tensors["d"], [6.0, 7.0, 6.0, 7.0]);
    for (first, count) in [(7, 2), (9, 1), (0, 9)] {
        let error = refused(&dict(&[("a", view(eight(), first, &[count], &[1]))]));
        assert!(error.contains("tensor `a` lies outside of its storage"), "{error}");
    }
    let error = refused(&dict(&[("a", view(storage("FloatStorage", "2", 9, &[]), 0, &[9], &[1]))]));
    assert!(error.contains("`archive/data/2` in it"), "{error}");
}

#[test]
fn what_makes_tensors_is_known_by_name_and_nothing_else_is_run() {
    let parameter = |data: Vec<u8>| {
        let arguments = tuple(&[data, b"\x88".to_vec(), DICT.to_vec()]);
        [b"ctorch._utils\n_rebuild_parameter\n".to_vec(), arguments, b"R".to_vec()].concat()
    };
    let of_class = |data: &[u8]| {
        // The function and its arguments, without the call.
        let plain = data.strip_prefix(b"ctorch._utils\n_rebuild_tensor_v2\n").unwrap().strip_suffix(b"R").unwrap();
        let function = b"ctorch._utils\n_rebuild_tensor_v2\n".to_vec();
        let arguments = tuple(&[function, b"cmine\nTensor\n".to_vec(), plain.to_vec(), DICT.to_vec()]);
        [b"ctorch._tensor\n_rebuild_from_type_v2\n".to_vec(), arguments, b"R".to_vec()].concat()
    };
    let run = [&b"cos\nsystem\n"[..], &tuple(&[text("exit 1")]), b"R}b"].concat();
    let mut top = dict(&[
        ("fc.weight", parameter(tensor("0", &[2, 3]))),
        ("fc.bias", of_class(&tensor("1", &[2]))),
        ("spectrum", view(storage("ComplexFloatStorage", "0", 3, &[]), 0, &[3], &[1])),
        ("run", run),
    ]);
    // What lies in an object beside its keys.
    top.extend(b"}b");
    assert_eq!(read("w.pth", &top).unwrap(), want());

    // Python 2 wrote bytes for texts, and lists of pairs for dictionaries.
    let short = |s: &str| [&b"U"[..], &[s.len() as u8], s.as_bytes()].concat();
    let pair = |key: &str, value: Vec<u8>| [&b"]("[..], &short(key), &value, b"e"].concat();
    let pairs = [pair("fc.weight", tensor("0", &[2, 3])), pair("fc.bias", tensor("1", &[2]))].concat();
    let top = [&b"ccollections\nOrderedDict\n]("[..], &pairs, b"e\x85R"].concat();
    assert_eq!(read("w.pth", &top).unwrap(), want());
}

/// A file as PyTorch wrote them before 1.6.
fn legacy(top: &[u8], storages: &[(&str, &[f32])]) -> Vec<u8> {
    let pickle = |top: &[u8]| [&b"\x80\x02"[..], top, b"."].concat();
    let keys: Vec<u8> = storages.iter().flat_map(|(key, _)| text(key)).collect();
    let mut out = [
        pickle(b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"),
        pickle(b"M\xe9\x03"),
        pickle(&dict(&[("little_endian", b"\x88".to_vec())])),
        pickle(top),
        pickle(&[&b"]("[..], &keys, b"e"].concat()),
    ]
    .concat();
    for (_, values) in storages {
        out.extend((values.len() as u64).to_le_bytes());
        out.extend(numbers(values));
    }
    out
}

#[test]
fn files_from_before_1_6_are_read() {
    let whole = |key: &str, count| storage("FloatStorage", key, count, &[b"N".to_vec()]);
    // The bias is a part of a storage, which says where it begins.
    let part = tuple(&[text("99"), number(4), number(2)]);
    let bias = storage("FloatStorage", "71", 6, &[part]);
    let top = dict(&[("fc.weight", view(whole("70", 6), 0, &[2, 3], &[3, 1])), ("fc.bias", view(bias, 0, &[2], &[1]))]);
    let parts = [0.0, 0.0, 0.0, 0.0, BIAS[0], BIAS[1]];
    let bytes = legacy(&top, &[("70", &WEIGHT[..]), ("71", &parts[..])]);
    for name in ["w.pth", "w.pth.tar", "w"] {
        assert_eq!(read_bytes(name, &bytes).unwrap(), want(), "{name}");
    }
    for len in [22, 60, bytes.len() - 40, bytes.len() - 1] {
        let error = read_bytes("w.pth", &bytes[..len]).unwrap_err().to_string();
        assert!(error.contains("are not a whole file"), "{len}: {error}");
    }
    let error = read_bytes("w.pth", b"\x80\x02}.").unwrap_err().to_string();
    assert!(error.contains("a pickle that PyTorch did not write"), "{error}");
}

#[test]
fn a_small_file_takes_little_memory_however_it_is_made() {
    // Each pair holds the one before twice.
    let doubled = (1..40u8).flat_map(|i| [b'h', i, b'h', i, 0x86, b'q', i + 1]);
    let doubled: Vec<u8> = b"K\x01K\x01\x86q\x01".iter().copied().chain(doubled).collect();
    let nested = |deep: usize| [vec![b')'], vec![0x85; deep]].concat();
    for (top, says) in [
        (doubled, "hold no tensors"),
        (nested(1_000_000), "hold no tensors"),
        (nested(3_000_000), "objects"),
        (b"N0".repeat(4_500_000), "instructions"),
        (b"X\xff\xff\xff\x7f".to_vec(), "cut off"),
        (b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff".to_vec(), "cut off"),
        (b"(h\x07".to_vec(), "contradicts itself"),
        (b"(0".to_vec(), "contradicts itself"),
        (b"NN(R".to_vec(), "contradicts itself"),
        (b"S'x'\n".to_vec(), "the instruction 0x53"),
    ] {
        let error = refused(&top);
        assert!(error.contains(says), "{says}: {error}");
    }
    // Many tensors, each as large as the file, of one number.
    let one = |i: usize| (format!("w{i}"), view(storage("FloatStorage", "1", 2, &[]), 0, &[1400], &[0]));
    let many: Vec<(String, Vec<u8>)> = (0..40).map(one).collect();
    let many: Vec<(&str, Vec<u8>)> = many.iter().map(|(name, t)| (name.as_str(), t.clone())).collect();
    for (some, says) in [(&many[..1], "`w0` is larger than the file"), (&many[..], "are larger than 16 such files")] {
        let error = refused(&dict(some));
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn files_without_tensors_of_other_tools_or_beyond_their_size_are_refused_by_what_they_are() {
    let error = refused(&dict(&[("epoch", number(3))]));
    assert!(error.contains("hold no tensors"), "{error}");
    let error = refused(&dict(&[("fc.bias", tensor("1", &[1 << 30, 1 << 30]))]));
    assert!(error.contains("tensor `fc.bias` is larger than the file"), "{error}");
    let pickle = || ("m/data.pkl", b"\x80\x02}.".to_vec());
    for (files, says) in [
        (vec![("conv1.weight.npy", vec![0; 9])], "are an archive of NumPy's"),
        (vec![("config.json", vec![0; 9]), ("model.weights.h5", vec![0; 9])], "are a `.keras` archive"),
        (vec![("notes.txt", vec![0; 9])], "are an archive without a pickle of PyTorch's"),
        (vec![pickle(), ("m/constants.pkl", vec![0; 9])], "are a program of TorchScript"),
        (vec![pickle(), ("m/byteorder", b"big".to_vec())], "most significant byte"),
        (vec![pickle(), ("m/byteorder", b"little".to_vec())], "hold no tensors"),
    ] {
        let error = read_bytes("w.pth", &archive(&files)).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}
