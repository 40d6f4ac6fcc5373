//! Ranks and alphas of single layers: `rank_pattern` and `alpha_pattern` of peft's `LoraConfig`, tables from patterns to
//! numbers. A layer has the number of the first pattern that matches its name, or the end of that from a dot on; where
//! none does it has the number of all. So peft reads them from 0.15 on (`get_pattern_key` in `utils/other.py`, which
//! `tuners/lora/model.py` asks): `re.match(r"(.*\.)?(PATTERN)$", name)`, in the order of the file.

use std::{collections::BTreeMap, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, Visitor},
};
use serde_json::{Map, Value};

use super::pattern;

/// Such a table, in its order.
pub(super) struct ByLayer<T>(Vec<(String, T)>);

impl<T> Default for ByLayer<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Copy> ByLayer<T> {
    /// The number of a layer, by its name in the model that peft wraps, if the table has one.
    ///
    /// # Errors
    /// A pattern that only Python understands.
    pub(super) fn of(&self, layer: &str) -> Result<Option<T>, String> {
        for (key, number) in &self.0 {
            let matches = pattern::is_match(&format!(r"(?:.*\.)?(?:{key})"), layer);
            if matches.map_err(|_| format!("the pattern `{key}` cannot be read here"))? {
                return Ok(Some(*number));
            }
        }
        // A name need not match itself as a pattern; it is looked up then.
        Ok(self.0.iter().find(|(key, _)| key == layer).map(|(_, number)| *number))
    }
}

/// Reads the pairs one by one: a map of ours would put them into another order.
struct Pairs<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Pairs<T> {
    type Value = ByLayer<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table of patterns and numbers")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(ByLayer::default())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut all = Vec::new();
        while let Some(pair) = map.next_entry()? {
            all.push(pair);
        }
        Ok(ByLayer(all))
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for ByLayer<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Pairs(PhantomData))
    }
}

/// `rank_pattern` and `alpha_pattern` for layers that have a rank or an alpha of their own, and for no other layer.
///
/// A wrong alpha would be silent, so the tables are right for every release of peft. Before 0.15 a layer is matched by
/// `re.match(r".*\.KEY$", name)`, which no key of plain letters does for a name without dots, and the first key of both
/// tables that matches is looked up in both. So layers have one key in both tables, of the form `^|^NAME`: behind
/// `.*\.` its first way matches nothing and its second is this name alone, and so it is inside brackets.
pub(super) fn tables<'a>(layers: impl Iterator<Item = (&'a str, [Option<Value>; 2])>) -> [Map<String, Value>; 2] {
    let mut alike: BTreeMap<String, ([Option<Value>; 2], Vec<&str>)> = BTreeMap::new();
    for (layer, own) in layers {
        alike.entry(format!("{own:?}")).or_insert_with(|| (own, Vec::new())).1.push(layer);
    }
    let mut tables = [Map::new(), Map::new()];
    for (own, names) in alike.into_values() {
        let key = format!("^|^{}", pattern::exactly(names));
        for (table, number) in tables.iter_mut().zip(own) {
            table.extend(number.map(|number| (key.clone(), number)));
        }
    }
    tables
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> ByLayer<usize> {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_layer_has_the_number_of_the_first_pattern_that_matches_it_or_its_end() {
        let table = read(r#"{"b.conv": 1, "conv|q": 2, "(a|b).conv": 3, "^up": 4, "layer.[02]\\.k": 5, "a+": 6}"#);
        for (layer, want) in [
            ("x.b.conv", Some(1)),
            ("b.conv", Some(1)),
            ("a.conv", Some(2)),
            ("conv", Some(2)),
            ("x.q", Some(2)),
            ("xconv", None),
            ("conv.x", None),
            ("up", Some(4)),
            ("x.up", None),
            ("layer.2.k", Some(5)),
            ("layer.1.k", None),
            ("aa", Some(6)),
            ("a+", Some(6)),
        ] {
            assert_eq!(table.of(layer).unwrap(), want, "{layer}");
        }
        assert_eq!(read("null").of("conv").unwrap(), None);
        assert!(serde_json::from_str::<ByLayer<usize>>(r#"{"a": 1.5}"#).is_err());
        assert!(serde_json::from_str::<ByLayer<usize>>("[1]").is_err());
        assert_eq!(read(r#"{"a(": 1}"#).of("b").unwrap_err(), "the pattern `a(` cannot be read here");
    }

    /// What peft before 0.15 takes for a layer, as `_create_and_replace` in its `tuners/lora/model.py` asks.
    fn before(tables: &[Map<String, Value>; 2], layer: &str) -> [Option<Value>; 2] {
        let matches = |key: &&String| {
            let pattern = regex::bytes::RegexBuilder::new(&format!(r"^(?:.*\.{key}$)")).unicode(false).build();
            pattern.unwrap().is_match(layer.as_bytes())
        };
        let key = tables.iter().flat_map(Map::keys).find(matches).map_or(layer, String::as_str);
        [0, 1].map(|i| tables[i].get(key).cloned())
    }

    #[test]
    fn what_is_written_is_read_for_exactly_these_layers_by_us_and_by_every_peft() {
        let rank = |n: usize| Some(Value::from(n));
        // Names that are ends of others, with other numbers, with one of two, and with none.
        let all = [
            ("a.conv", [rank(2), rank(9)]),
            ("b.a.conv", [rank(3), rank(9)]),
            ("b.conv", [None, None]),
            ("conv", [rank(2), None]),
            ("c.conv", [None, rank(9)]),
            ("conv.conv", [rank(2), rank(9)]),
            ("c.c.conv", [None, None]),
        ];
        let written = tables(all.iter().filter(|(_, own)| own.iter().any(Option::is_some)).cloned());
        assert_eq!(written.each_ref().map(Map::len), [3, 3], "one pattern for those that are alike");
        let ours = written.each_ref().map(|table| read(&Value::from(table.clone()).to_string()));
        for (layer, want) in &all {
            let now = ours.each_ref().map(|table| table.of(layer).unwrap().map(Value::from));
            assert_eq!((&now, &before(&written, layer)), (want, want), "{layer}");
        }
        assert!(tables(std::iter::empty()).iter().all(Map::is_empty));
    }
}
