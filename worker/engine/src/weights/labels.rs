//! What others call the outputs of a classifier, in `config.json` beside its weights: `id2label` of Hugging Face's,
//! `label_names` of timm's. By these names the outputs of a head that is kept are put in the order of the job's classes;
//! where no name is a class, outputs and classes are paired in order, and that is told.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use candle_core::{Device, Tensor};
use serde_json::Value;

use super::text::beside;
use crate::{
    Error, Result,
    data::classes::{listed, short},
};

/// Most pairs that are told.
const PAIRS: usize = 6;

/// Which output of a head is each class, by what lies beside its weights.
#[derive(Debug)]
pub(super) struct Order {
    /// The output of each class.
    rows: Vec<usize>,
    /// What the outputs are called there.
    names: Vec<String>,
    /// The file that says so.
    shown: String,
    /// Whether nothing says which output is which class: they are paired in order.
    guessed: bool,
}

impl Order {
    /// The outputs of `classes` in the weights at `path`; nothing where no names lie beside them, or those that transformers
    /// gives by itself, and that cannot be paired. Names are compared without case and kind of separator; a class may also
    /// be called by the number of its output. Where no output has the name of a class, people may have given the classes
    /// other names: as many are paired in order, or by numbers from 1.
    ///
    /// # Errors
    /// Other classes than those of the head: some have the name of an output and others not, there are more or fewer, or
    /// their numbers say another order.
    pub fn beside(path: &Path, classes: &[String]) -> Result<Option<Self>> {
        let Some(names) = beside(path, "config.json")?.as_deref().and_then(called) else { return Ok(None) };
        let shown = path.with_file_name("config.json").display().to_string();
        let n = names.len();
        let numbers = |first: usize| -> Vec<String> { (first..first + n).map(|i| i.to_string()).collect() };
        let known = found(&names, classes);
        // Numbers that are names of outputs say what these say.
        let is_apart = known.is_none() && !share(&names, classes);
        let known = known.or_else(|| found(&numbers(0), classes).filter(|_| is_apart));
        let in_order = || (classes.len() == n && !contradict(classes)).then(|| (0..n).collect());
        let paired = || found(&numbers(1), classes).or_else(in_order).filter(|_| is_apart);
        let guessed = known.is_none();
        match known.or_else(paired) {
            Some(rows) => Ok(Some(Self { rows, names, shown, guessed })),
            // What transformers writes where nobody has named anything, and no order to be seen: how many there are, tensors say.
            None if names.iter().enumerate().all(|(i, name)| *name == format!("LABEL_{i}")) => Ok(None),
            None => Err(Error::user(
                format!(
                    "`{shown}` says that the head of the weights is for {}, and {}",
                    listed(&names),
                    difference(&names, classes)
                ),
                "a head, such as a teacher's, can only be kept for the classes that it was trained on: call them in the data \
                 as that file does, or by the numbers of the outputs, from 0",
            )),
        }
    }

    /// Puts the rows of a classifier in the order of the classes.
    ///
    /// # Errors
    /// Tensors that cannot be read.
    pub fn apply(&self, file: &mut BTreeMap<String, Tensor>, classifier: &str) -> Result<()> {
        if self.keeps_order() {
            return Ok(());
        }
        let rows: Vec<u32> = self.rows.iter().map(|row| *row as u32).collect();
        let rows = Tensor::from_vec(rows, self.rows.len(), &Device::Cpu)?;
        for kind in ["weight", "bias"] {
            // One of another length is refused where all shapes are.
            let own = file.get_mut(&format!("{classifier}.{kind}"));
            if let Some(tensor) = own.filter(|t| t.dims().first() == Some(&self.rows.len())) {
                *tensor = tensor.index_select(&rows, 0)?;
            }
        }
        Ok(())
    }

    /// For people, where outputs have another order than `classes`, or other names.
    pub fn sentence(&self, classes: &[String]) -> Option<String> {
        if self.guessed {
            let pair = |(row, class): (&usize, &String)| {
                let name = self.names.get(*row).map_or_else(String::new, |name| short(name));
                format!("output {row} {name} is judged as {}", short(class))
            };
            let pairs: Vec<String> = self.rows.iter().zip(classes).map(pair).take(PAIRS).collect();
            let more = match classes.len().saturating_sub(PAIRS) {
                0 => String::new(),
                more => format!(", and {more} more"),
            };
            return Some(format!(
                "`{}` gives no output of the head the name of a class of the data, and they are paired in order: {}{more}; if \
                 that is wrong, call the classes in the data as that file does, or by the numbers of the outputs, from 0",
                self.shown,
                pairs.join(", ")
            ));
        }
        let same = |(name, class): (&String, &String)| plain(name) == plain(class);
        if self.keeps_order() && self.names.iter().zip(classes).all(same) {
            return None;
        }
        let rows: Vec<String> = self.rows.iter().map(usize::to_string).collect();
        Some(format!(
            "`{}` says that the outputs of the head are {}: the classes {} are its outputs {}",
            self.shown,
            listed(&self.names),
            listed(classes),
            listed(&rows)
        ))
    }

    fn keeps_order(&self) -> bool {
        self.rows.iter().copied().eq(0..self.rows.len())
    }
}

/// The names of outputs that a `config.json` has, in their order: a list, or by number.
fn called(text: &str) -> Option<Vec<String>> {
    let config: Value = serde_json::from_str(text).ok()?;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let said = |key: &str| config.get(key).filter(|names| !names.is_null());
    let names: Option<Vec<String>> = match ["id2label", "label_names"].iter().find_map(|key| said(key))? {
        Value::Array(list) => list.iter().map(text).collect(),
        Value::Object(by_number) => (0..by_number.len()).map(|i| text(by_number.get(&i.to_string())?)).collect(),
        _ => None,
    };
    names.filter(|names| !names.is_empty())
}

/// Where each class is among names, where these are the same, in any order.
fn found(names: &[String], classes: &[String]) -> Option<Vec<usize>> {
    let by = |key: fn(&str) -> String| {
        let at: BTreeMap<String, usize> = names.iter().map(|name| key(name)).zip(0..).collect();
        let rows: Option<Vec<usize>> = classes.iter().map(|class| at.get(&key(class)).copied()).collect();
        // Each output is one class.
        let whole = |rows: &Vec<usize>| rows.len() == names.len() && BTreeSet::from_iter(rows).len() == rows.len();
        rows.filter(whole)
    };
    by(str::to_owned).or_else(|| by(plain))
}

/// A name without case and kind of separator: `not_entailment` is `Not-Entailment`.
fn plain(name: &str) -> String {
    name.trim().to_lowercase().replace(['-', '_'], " ")
}

/// Whether some class has the name of an output.
fn share(names: &[String], classes: &[String]) -> bool {
    let names: BTreeSet<String> = names.iter().map(|name| plain(name)).collect();
    classes.iter().any(|class| names.contains(&plain(class)))
}

/// Whether classes that are numbers say another order than they have: that of their letters, or one is the number of
/// another output than the one in its place.
fn contradict(classes: &[String]) -> bool {
    let numbers =
        classes.iter().enumerate().filter_map(|(i, class)| Some((i as i64, class.trim().parse::<i64>().ok()?)));
    let numbers: Vec<(i64, i64)> = numbers.collect();
    let outputs = 0..classes.len() as i64;
    numbers.iter().any(|(i, number)| outputs.contains(number) && i != number) || !numbers.is_sorted_by_key(|(_, n)| *n)
}

/// The first class that is on one side alone.
fn difference(names: &[String], classes: &[String]) -> String {
    let without = |list: &[String], other: &[String]| {
        let other: BTreeSet<String> = other.iter().map(|name| plain(name)).collect();
        list.iter().find(|name| !other.contains(&plain(name))).map(|name| listed(&[name]))
    };
    match (without(classes, names), without(names, classes)) {
        (Some(class), _) => format!("not for the class {class} of the data"),
        (None, Some(name)) => format!("the data have no class {name}"),
        (None, None) => "some of these names are one".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    /// What a `config.json` makes of these classes: the outputs, and the sentence.
    fn order(config: &str, classes: &[&str]) -> Result<Option<(Vec<usize>, Option<String>)>> {
        let (dir, classes) = (tempfile::tempdir().unwrap(), strings(classes));
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        let order = Order::beside(&dir.path().join("w.pth"), &classes)?;
        Ok(order.map(|order| (order.rows.clone(), order.sentence(&classes))))
    }

    #[test]
    fn classes_are_found_by_name_without_case_or_by_number() {
        let rows =
            |config: &str, classes: &[&str]| order(config, classes).unwrap().map(|(rows, said)| (rows, said.is_some()));
        let pair = r#"{"id2label": {"0": "POSITIVE", "1": "NEGATIVE"}}"#;
        assert_eq!(rows(pair, &["negative", "positive"]), Some((vec![1, 0], true)));
        assert_eq!(rows(pair, &["POSITIVE", "NEGATIVE"]), Some((vec![0, 1], false)));
        assert_eq!(rows(pair, &["0", "1"]), Some((vec![0, 1], true)));
        // What has a case keeps it.
        assert_eq!(rows(r#"{"label_names": ["b", "B", "a"]}"#, &["B", "a", "b"]), Some((vec![1, 2, 0], true)));
        // Classes of a data set stand in the order of their letters: 10 before 2.
        let list: Vec<String> = (0..11).map(|i| format!("\"{i}\": \"LABEL_{i}\"")).collect();
        let named = format!("{{\"id2label\": {{{}}}}}", list.join(","));
        let classes = ["0", "1", "10", "2", "3", "4", "5", "6", "7", "8", "9"];
        assert_eq!(rows(&named, &classes), Some((vec![0, 1, 10, 2, 3, 4, 5, 6, 7, 8, 9], true)));
        let parted = r#"{"id2label": {"0": "not_entailment", "1": "entailment"}}"#;
        assert_eq!(rows(parted, &["Entailment", "Not-Entailment"]), Some((vec![1, 0], true)));
        for nobodys in [
            r#"{"id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}}"#,
            r#"{"id2label": {"0": "a", "2": "b"}}"#,
            r#"{"id2label": {}}"#,
            r#"{"label_names": null}"#,
            "{}",
            "not json",
        ] {
            assert_eq!(rows(nobodys, &["x", "y"]), None, "{nobodys}");
        }
    }

    #[test]
    fn classes_of_which_no_output_has_the_name_are_paired_in_order_and_that_is_told() {
        let told = |config: &str, classes: &[&str]| {
            let (rows, said) = order(config, classes).unwrap().unwrap();
            (rows, said.unwrap())
        };
        for (config, first) in [
            (r#"{"id2label": {"0": "NEGATIVE", "1": "POSITIVE"}}"#, "output 0 `NEGATIVE` is judged as `neg`, output 1"),
            (r#"{"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}"#, "output 0 `LABEL_0` is judged as `neg`, output 1"),
        ] {
            let (rows, said) = told(config, &["neg", "pos"]);
            assert!(rows == [0, 1] && said.contains(first), "{said}");
        }
        // Numbers from 1, which as letters stand in another order; others that do not say another one.
        let stars: Vec<String> = (0..10).map(|i| format!("\"{} stars\"", i + 1)).collect();
        let stars = format!("{{\"label_names\": [{}]}}", stars.join(","));
        let (rows, said) = told(&stars, &["1", "10", "2", "3", "4", "5", "6", "7", "8", "9"]);
        assert_eq!(rows, [0, 9, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert!(said.contains("output 9 `10 stars` is judged as `10`") && said.contains(", and 4 more;"), "{said}");
        let pair = r#"{"id2label": {"0": "off", "1": "on"}}"#;
        for classes in [["-1", "1"], ["0", "4"]] {
            assert_eq!(told(pair, &classes).0, [0, 1], "{classes:?}");
        }
    }

    #[test]
    fn other_classes_are_refused_by_name() {
        let pair = r#"{"id2label": {"0": "pos", "1": "neg"}}"#;
        for (classes, said) in [
            (&["neg", "new"][..], "is for `pos`, `neg`, and not for the class `new` of the data"),
            (&["neg"][..], "the data have no class `pos`"),
            (&["neg", "neutral", "pos"][..], "not for the class `neutral` of the data"),
            (&["a", "b", "c"][..], "not for the class `a` of the data"),
            // Numbers of outputs in other places, and in the order of their letters.
            (&["1", "3"][..], "not for the class `1` of the data"),
            (&["10", "9"][..], "not for the class `10` of the data"),
        ] {
            let error = order(pair, classes).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        // Names that are numbers are names.
        let error = order(r#"{"id2label": {"0": "1", "1": "2"}}"#, &["0", "1"]).unwrap_err().to_string();
        assert!(error.contains("not for the class `0` of the data"), "{error}");
    }

    #[test]
    fn weight_and_bias_are_put_in_the_order_of_the_classes() {
        let order =
            Order { rows: vec![2, 0, 1], names: strings(&["b", "c", "a"]), shown: String::new(), guessed: false };
        let tensor = |values: &[f32], shape: &[usize]| crate::nn::tensor(values.to_vec(), shape).unwrap();
        let mut file = BTreeMap::from([
            ("fc.weight".to_owned(), tensor(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[3, 2])),
            ("fc.bias".to_owned(), tensor(&[1.0, 2.0, 3.0], &[3])),
            ("conv.weight".to_owned(), tensor(&[1.0, 2.0, 3.0], &[3])),
        ]);
        order.apply(&mut file, "fc").unwrap();
        let values = |name: &str| file[name].flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(values("fc.weight"), [5.0, 6.0, 1.0, 2.0, 3.0, 4.0]);
        assert_eq!(values("fc.bias"), [3.0, 1.0, 2.0]);
        assert_eq!(values("conv.weight"), [1.0, 2.0, 3.0]);
    }
}
