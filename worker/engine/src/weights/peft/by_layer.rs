//! Ranks and alphas of single layers: `rank_pattern` and `alpha_pattern` of peft's `LoraConfig`, tables from patterns to
//! numbers. A layer has the number of the first pattern that matches its name, or the end of that from a dot on; where
//! none does it has the number of all. So peft reads them (`get_pattern_key` in `utils/other.py`, which
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

/// The table that gives these layers their numbers and no other layer any; nothing for no layers.
pub(super) fn table<'a>(layers: impl Iterator<Item = (&'a str, Value)>) -> Option<Map<String, Value>> {
    let mut alike: BTreeMap<String, (Value, Vec<&str>)> = BTreeMap::new();
    for (layer, number) in layers {
        alike.entry(number.to_string()).or_insert_with(|| (number, Vec::new())).1.push(layer);
    }
    // From the beginning of the name on: else it would also be for layers whose names end so.
    let all = alike.into_values().map(|(number, names)| (format!("^{}", pattern::exactly(names)), number));
    Some(all.collect::<Map<_, _>>()).filter(|table| !table.is_empty())
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

    #[test]
    fn what_is_written_is_read_back_for_exactly_these_layers() {
        let all = ["a.conv", "b.a.conv", "b.conv", "conv"];
        let numbers = [Some(2), Some(3), None, Some(2)];
        let named = || all.iter().zip(numbers).filter_map(|(layer, n)| Some((*layer, Value::from(n?))));
        let written = table(named()).unwrap();
        assert_eq!(written.len(), 2, "one pattern for each number");
        let table_of = read(&Value::from(written).to_string());
        for (layer, want) in all.iter().zip(numbers) {
            assert_eq!(table_of.of(layer).unwrap(), want, "{layer}");
        }
        assert_eq!(table(named().take(0)), None);
    }
}
