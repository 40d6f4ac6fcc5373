//! Samples that are the same by what is in them: validation samples that are trained on too, and training samples of different
//! classes.

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
    let key = train.key();
    // Another domain is learned from without labels, and benchmarks judge the same samples on purpose.
    let so = if train.part.starts_with("target.") {
        "they are learned from without their labels, and what is told of them is not told of new ones".to_owned()
    } else {
        let section = key.strip_suffix("train").filter(|_| train.divides);
        let divide = section.map(|section| format!(", or divide one folder by `{section}params.held_out`"));
        let divide = divide.unwrap_or_default();
        format!("how well new ones are judged is not measured by those; give other samples{divide}")
    };
    Some(format!("{n} of {all} samples of `{}` {are} in `{key}` too, first `{name}`: {so}", val.key()))
}

/// What there is to say of training samples that are learned as of different classes.
pub(super) fn two_classes(train: &Samples) -> Option<String> {
    let (labels, n) = (train.dataset.labels(), train.count());
    let mut all: Vec<([u8; 32], usize)> = (0..n).map(|i| (train.dataset.digest(i), i)).collect();
    all.sort_unstable();
    let torn = all.chunk_by(|one, next| one.0 == next.0).filter_map(|same| {
        let first = same.first()?.1;
        let other = same.iter().map(|(_, i)| *i).find(|i| labels[*i] != labels[first])?;
        Some((first, other, same.len()))
    });
    let torn: Vec<(usize, usize, usize)> = torn.collect();
    let (first, other, _) = *torn.iter().min()?;
    let shown = |i: usize| format!("`{}` in `{}`", train.dataset.name(i), train.dataset.classes()[labels[i]]);
    let count: usize = torn.iter().map(|(_, _, same)| same).sum();
    Some(format!(
        "{count} of {n} samples of `{}` are in more than one class by what is in them, first {} and {}: what is learned of \
         one is unlearned by the other; remove those that are wrong",
        train.key(),
        shown(first),
        shown(other)
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
        assert!(said.ends_with("give other samples"), "text has no `held_out`: {said}");
        let one = among(parts, [&[1, 2], &[0, 1, 2]]).unwrap();
        assert!(one.starts_with("1 of 3 samples of `data.val` is in `data.train` too, first `line 3`"), "{one}");
        assert_eq!(among(parts, [&[1], &[0, 1, 2, 3]]), None);
        let (mut divided, val) = (open("train").called("tasks.parity.train"), open("val"));
        divided.divides = true;
        let said = warning([&divided, &val]).unwrap();
        assert!(said.ends_with("give other samples, or divide one folder by `tasks.parity.params.held_out`"), "{said}");
        let said = warning([&divided.called("target.train"), &val.called("target.val")]).unwrap();
        assert!(said.contains("learned from without their labels") && !said.contains("held_out"), "{said}");
    }

    #[test]
    fn samples_of_different_classes_are_counted_and_those_of_one_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let said = |text: &str| {
            let path = dir.path().join("train.tsv").display().to_string();
            std::fs::write(&path, text).unwrap();
            let data = serde_json::json!({ "format": "text", "train": path, "val": path, "batch": 2 });
            let data: DataSection = serde_json::from_value(data).unwrap();
            two_classes(&Samples::open(&data, "train", 1).unwrap())
        };
        assert_eq!(said("a\tone\nb\ttwo\na\tone\na\tthree\n"), None, "twice in one class");
        let told = said("a\tzero\na\tone\nb\ttwo\nb\tone\na\ttwo\na\tone\n").unwrap();
        let wanted = "5 of 6 samples of `data.train` are in more than one class by what is in them, first `line 2` in `a` and \
                      `line 4` in `b`: ";
        assert!(told.starts_with(wanted), "{told}");
    }
}
