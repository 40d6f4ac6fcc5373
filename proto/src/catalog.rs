//! What the workers can do, as data: admission, `tlctl catalog` and `tlctl check` read it, so coordinator and client learn
//! new techniques with no change.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::spec::Params;

/// The kind of value that a parameter takes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ParamKind {
    /// A finite number within `[min, max]`.
    Number {
        /// Smallest value.
        min: f64,
        /// Largest value.
        max: f64,
    },
    /// A whole number within `[min, max]`.
    Integer {
        /// Smallest value.
        min: i64,
        /// Largest value.
        max: i64,
    },
    /// `true` or `false`.
    Flag,
    /// One of these words.
    Choice {
        /// The words.
        of: Vec<String>,
    },
    /// A list of finite numbers within `[min, max]`.
    Numbers {
        /// Smallest value.
        min: f64,
        /// Largest value.
        max: f64,
    },
    /// A list of names, each the end of a name from a dot on or `re:PATTERN`.
    Names,
    /// A list of sentences.
    Texts,
    /// A folder or a file, as `data.train` is one; nothing if it is empty.
    Place,
    /// A list of paths below a folder.
    Paths,
    /// A regular expression; nothing if it is empty.
    Pattern,
    /// A column of a table: its number from 1, or its name in the first line.
    Column {
        /// Whether a list of columns will do too.
        several: bool,
    },
}

/// One parameter of an entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Param {
    /// Key in the job file.
    pub name: String,
    /// What it takes.
    pub kind: ParamKind,
    /// Its default.
    pub default: serde_json::Value,
    /// One sentence.
    pub doc: String,
}

/// What ranks exchange for a loss, beside the gradients that they add up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exchange {
    /// Nothing: it is a sum over samples, or over episodes, each by itself.
    Local,
    /// Sums over the batch, by which it goes in the next step.
    Sum,
    /// What the network makes of every sample of the batch: every rank works out the same loss from all of them.
    Coupled,
}

impl fmt::Display for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Local => "local",
            Self::Sum => "sum",
            Self::Coupled => "coupled",
        })
    }
}

/// One thing that workers offer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Name in the job file.
    pub name: String,
    /// One sentence.
    pub doc: String,
    /// Its parameters.
    #[serde(default)]
    pub params: Vec<Param>,
    /// Roles of further networks that it needs (`[nets.ROLE]`).
    #[serde(default)]
    pub nets: Vec<String>,
    /// Those of which there may be several: `ROLE`, `ROLE_2`, `ROLE_3` and so on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub several: Vec<String>,
    /// Roles of further data that it learns from (`[data.ROLE]`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<String>,
    /// Ways of doing it, of which a job names one as `method`; the first if it names none. Each has parameters of its own;
    /// one that this entry has too is the entry's, with the method's default and bounds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<Entry>,
    /// What ranks exchange for its loss, where it has one and is the one way of doing it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exchange: Option<Exchange>,
    /// It learns several tasks at once (`[tasks.NAME]`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tasks: bool,
    /// It looks at labels, and is no method of a kind of job that has none.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub labels: bool,
    /// It trains nothing: a job of this kind has no stages.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub untrained: bool,
    /// It trains parts of its own in place of the weights of the network, which stay as they are unless a stage names
    /// them.
    #[serde(default)]
    pub freezes: bool,
    /// It is about the weights that the network begins with, so there must be some.
    #[serde(default)]
    pub begins_with_weights: bool,
    /// It mixes samples, so that nothing can be said of one alone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub mixes: bool,
    /// It adds to the loss of one head what it makes of each sample: there are no tasks, episodes or halves of pairs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub one_head: bool,
}

/// Everything that a build of the worker offers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Catalog {
    /// Networks.
    pub backbones: Vec<Entry>,
    /// Objectives: the values of `job.kind`.
    pub objectives: Vec<Entry>,
    /// Modifiers.
    pub modifiers: Vec<Entry>,
    /// Data formats.
    pub formats: Vec<Entry>,
    /// Optimizers.
    pub optimizers: Vec<Entry>,
    /// Learning-rate schedules.
    pub schedules: Vec<Entry>,
}

impl Catalog {
    /// The entry called `name` in `list`, or a sentence with the nearest name.
    ///
    /// # Errors
    /// Says what was looked for and what there is.
    pub fn find<'a>(list: &'a [Entry], what: &str, name: &str) -> Result<&'a Entry, (String, String)> {
        list.iter().find(|e| e.name == name).ok_or_else(|| {
            let names: Vec<&str> = list.iter().map(|e| e.name.as_str()).collect();
            (format!("there is no {what} `{name}`"), nearest_hint(name, &names))
        })
    }
}

impl Entry {
    /// The value of a parameter: what was given, else its default. One that neither this entry nor its method has is asked
    /// for by mistake: a build with debug assertions panics, another says 0.
    pub fn number(&self, given: &Params, name: &str) -> f64 {
        self.value(given, name).and_then(serde_json::Value::as_f64).unwrap_or_default()
    }

    /// The same for a flag; else `false`.
    pub fn flag(&self, given: &Params, name: &str) -> bool {
        self.value(given, name).and_then(serde_json::Value::as_bool).unwrap_or_default()
    }

    /// The same for one of some words; else nothing.
    pub fn word<'a>(&'a self, given: &'a Params, name: &str) -> &'a str {
        self.value(given, name).and_then(serde_json::Value::as_str).unwrap_or_default()
    }

    /// The same for a list of names; else none.
    pub fn names(&self, given: &Params, name: &str) -> Vec<String> {
        let list = self.value(given, name).and_then(serde_json::Value::as_array);
        list.into_iter().flatten().filter_map(|v| Some(v.as_str()?.to_owned())).collect()
    }

    /// The same for a list of numbers; else none.
    pub fn numbers(&self, given: &Params, name: &str) -> Vec<f64> {
        let list = self.value(given, name).and_then(serde_json::Value::as_array);
        list.into_iter().flatten().filter_map(serde_json::Value::as_f64).collect()
    }

    /// The way of doing it that was asked for; the entry itself where there is only one.
    pub fn method(&self, given: &Params) -> &Self {
        let named = given.get(METHOD).and_then(serde_json::Value::as_str);
        let named = named.and_then(|name| self.methods.iter().find(|m| m.name == name));
        named.or(self.methods.first()).unwrap_or(self)
    }

    /// The parameters of this entry and of the way of doing it that was asked for, each once.
    pub fn params_of<'a>(&'a self, given: &'a Params) -> impl Iterator<Item = &'a Param> {
        let method = self.method(given);
        let own = self.params.iter().filter(move |p| !method.params.iter().any(|m| m.name == p.name));
        own.chain(&method.params)
    }

    /// Every parameter that a job may give, with those of all ways of doing it, and the name of what has it.
    pub fn all_params(&self) -> Vec<(&str, Param)> {
        let words: Vec<&str> = self.methods.iter().map(|m| m.name.as_str()).collect();
        let method = (!words.is_empty()).then(|| choice(METHOD, &words, "how it is done"));
        let own = self.params.iter().cloned().chain(method).map(|p| (self.name.as_str(), p));
        let more = self.methods.iter().flat_map(|m| m.params.iter().cloned().map(move |p| (m.name.as_str(), p)));
        own.chain(more).collect()
    }

    fn value<'a>(&'a self, given: &'a Params, name: &str) -> Option<&'a serde_json::Value> {
        let known = self.params_of(given).find(|p| p.name == name);
        debug_assert!(known.is_some(), "`{}` has no parameter `{name}`: another entry may have it", self.name);
        given.get(name).or_else(|| known.map(|p| &p.default))
    }
}

/// The key that names one of an entry's methods.
pub const METHOD: &str = "method";

/// "did you mean `x`?", or the whole list where nothing is near.
pub fn nearest_hint(got: &str, known: &[&str]) -> String {
    let best = known.iter().map(|k| (strsim::damerau_levenshtein(got, k), *k)).min();
    match best {
        Some((distance, name)) if distance <= 1 + got.len() / 3 => format!("did you mean `{name}`?"),
        _ => format!("known: {}", known.join(", ")),
    }
}

/// A parameter within a range of numbers.
pub fn number(name: &str, default: f64, min: f64, max: f64, doc: &str) -> Param {
    Param { name: name.into(), kind: ParamKind::Number { min, max }, default: default.into(), doc: doc.into() }
}

/// A parameter within a range of whole numbers.
pub fn integer(name: &str, default: i64, min: i64, max: i64, doc: &str) -> Param {
    Param { name: name.into(), kind: ParamKind::Integer { min, max }, default: default.into(), doc: doc.into() }
}

/// A parameter that is true or false.
pub fn flag(name: &str, default: bool, doc: &str) -> Param {
    Param { name: name.into(), kind: ParamKind::Flag, default: default.into(), doc: doc.into() }
}

/// A parameter that is one of some words, the first of them if nothing is said.
pub fn choice(name: &str, of: &[&str], doc: &str) -> Param {
    let words: Vec<String> = of.iter().map(|w| (*w).into()).collect();
    let default = words.first().cloned().unwrap_or_default();
    Param { name: name.into(), kind: ParamKind::Choice { of: words }, default: default.into(), doc: doc.into() }
}

/// A parameter that is a list of numbers within a range; an empty one if nothing is said.
pub fn numbers(name: &str, min: f64, max: f64, doc: &str) -> Param {
    let default = serde_json::Value::Array(Vec::new());
    Param { name: name.into(), kind: ParamKind::Numbers { min, max }, default, doc: doc.into() }
}

/// A parameter that is a list of names.
pub fn names(name: &str, default: &[&str], doc: &str) -> Param {
    Param { name: name.into(), kind: ParamKind::Names, default: default.into(), doc: doc.into() }
}

/// A parameter that is a list of sentences.
pub fn texts(name: &str, default: &[&str], doc: &str) -> Param {
    Param { name: name.into(), kind: ParamKind::Texts, default: default.into(), doc: doc.into() }
}

/// A parameter that is a folder or a file, or nothing. Those that a job may give are named in `spec/paths.rs`, too.
pub fn place(name: &str, doc: &str) -> Param {
    Param { name: name.into(), kind: ParamKind::Place, default: "".into(), doc: doc.into() }
}

/// A parameter that is a list of paths below a folder; an empty one if nothing is said.
pub fn paths(name: &str, doc: &str) -> Param {
    let default = serde_json::Value::Array(Vec::new());
    Param { name: name.into(), kind: ParamKind::Paths, default, doc: doc.into() }
}

/// A parameter that is a regular expression, or nothing.
pub fn pattern(name: &str, doc: &str) -> Param {
    Param { name: name.into(), kind: ParamKind::Pattern, default: "".into(), doc: doc.into() }
}

/// A parameter that is a column of a table, or where there may be `several`, a list of columns.
pub fn column(name: &str, default: i64, several: bool, doc: &str) -> Param {
    Param { name: name.into(), kind: ParamKind::Column { several }, default: default.into(), doc: doc.into() }
}

/// An entry without parameters.
pub fn entry(name: &str, doc: &str) -> Entry {
    Entry { name: name.into(), doc: doc.into(), ..Entry::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_that_is_not_given_has_its_default() {
        let entry = Entry { params: vec![number("t", 4.0, 0.0, 9.0, ""), integer("n", 7, 1, 9, "")], ..entry("e", "") };
        let given = [("t".to_owned(), 2.into())].into();
        assert_eq!((entry.number(&given, "t"), entry.number(&given, "n")), (2.0, 7.0));
        let params = vec![flag("f", true, ""), choice("c", &["a", "b"], ""), names("l", &["x", "y"], "")];
        let entry = Entry { params, ..super::entry("e", "") };
        assert_eq!((entry.flag(&given, "f"), entry.word(&given, "c")), (true, "a"));
        assert_eq!(
            (entry.names(&given, "l"), entry.names(&given, "f")),
            (vec!["x".into(), "y".into()], Vec::<String>::new())
        );
    }

    #[test]
    fn a_method_may_have_a_parameter_of_its_kind_with_a_default_of_its_own() {
        let own = Entry { params: vec![number("t", 1.0, 0.0, 2.0, "")], ..entry("own", "") };
        let params = vec![number("t", 4.0, 0.0, 9.0, ""), number("u", 5.0, 0.0, 9.0, "")];
        let kind = Entry { params, methods: vec![entry("usual", ""), own], ..entry("kind", "") };
        for (given, t, most) in
            [("{}", 4.0, 9.0), (r#"{"method": "own"}"#, 1.0, 2.0), (r#"{"method": "own", "t": 1.5}"#, 1.5, 2.0)]
        {
            let given: Params = serde_json::from_str(given).unwrap();
            assert_eq!((kind.number(&given, "t"), kind.number(&given, "u")), (t, 5.0), "{given:?}");
            let known: Vec<&ParamKind> = kind.params_of(&given).filter(|p| p.name == "t").map(|p| &p.kind).collect();
            assert_eq!(known, [&ParamKind::Number { min: 0.0, max: most }], "{given:?}");
        }
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "`own` has no parameter `temperature`")]
    fn a_parameter_of_another_entry_is_not_zero() {
        entry("own", "").number(&Params::new(), "temperature");
    }

    #[test]
    fn what_ranks_exchange_is_the_same_word_for_programs_and_people() {
        let said = |exchange| serde_json::to_value(Entry { exchange, ..entry("e", "") }).unwrap();
        for exchange in [Exchange::Local, Exchange::Sum, Exchange::Coupled] {
            assert_eq!(said(Some(exchange))["exchange"], exchange.to_string());
        }
        // Catalogs of earlier releases say nothing of it.
        assert!(said(None).get("exchange").is_none());
        assert_eq!(serde_json::from_value::<Entry>(said(None)).unwrap(), entry("e", ""));
    }

    #[test]
    fn a_typo_is_answered_with_the_nearest_name() {
        let list = [entry("mobilenet_v2", ""), entry("resnet18", "")];
        let (message, hint) = Catalog::find(&list, "backbone", "mobilnet_v2").unwrap_err();
        assert_eq!(message, "there is no backbone `mobilnet_v2`");
        assert_eq!(hint, "did you mean `mobilenet_v2`?");
        let (_, hint) = Catalog::find(&list, "backbone", "vit").unwrap_err();
        assert_eq!(hint, "known: mobilenet_v2, resnet18");
    }
}
