//! Whether what is judged was trained on: validation samples that are training samples too, by what is in them.

use super::samples::Samples;

/// What there is to say of validation samples that are trained on too.
pub(super) fn warning(parts: [&Samples; 2]) -> Option<String> {
    let [train, val] = parts.map(|samples| (0..samples.count()).collect::<Vec<_>>());
    among(parts, [&train, &val])
}

/// The same where only some samples of each part are used.
pub(super) fn among([train, val]: [&Samples; 2], [trained, judged]: [&[usize]; 2]) -> Option<String> {
    let mut known: Vec<[u8; 32]> = trained.iter().map(|i| train.dataset.digest(*i)).collect();
    known.sort_unstable();
    let mut both = judged.iter().filter(|i| known.binary_search(&val.dataset.digest(**i)).is_ok());
    let name = val.dataset.name(*both.next()?);
    let (n, all) = (1 + both.count(), judged.len());
    let are = if n == 1 { "is" } else { "are" };
    Some(format!(
        "{n} of {all} samples of `{}` {are} in `{}` too, first `{name}`: how well new ones are judged is not measured by those; \
         give other samples, or divide one folder by `params.held_out`",
        val.key(),
        train.key()
    ))
}

#[cfg(test)]
mod tests {
    use tl_proto::spec::DataSection;

    use super::*;

    #[test]
    fn samples_are_the_same_by_what_is_in_them_and_only_those_that_are_used_count() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let (train, val) =
            (file("train", "a\tone\nb\ttwo\na\tthree\n"), file("val", "a\tnew\nb\tone\na\tthree\nb\tthree\n"));
        let data = serde_json::json!({ "format": "text", "train": train, "val": val, "batch": 2 });
        let data: DataSection = serde_json::from_value(data).unwrap();
        let open = |part| Samples::open(&data, part, 1).unwrap();
        let parts = [&open("train"), &open("val")];
        // Whatever their class is called.
        let said = warning(parts).unwrap();
        assert!(said.starts_with("3 of 4 samples of `data.val` are in `data.train` too, first `line 2`: "), "{said}");
        let one = among(parts, [&[1, 2], &[0, 1, 2]]).unwrap();
        assert!(one.starts_with("1 of 3 samples of `data.val` is in `data.train` too, first `line 3`"), "{one}");
        assert_eq!(among(parts, [&[1], &[0, 1, 2, 3]]), None);
    }
}
