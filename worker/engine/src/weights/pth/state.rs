//! Which of the dictionaries of a file is the model's.

use std::collections::BTreeMap;

use super::{
    Bad,
    pickle::{Object, Pickle, Value, View},
};

/// Where training scripts keep the tensors of the model, beside epochs, optimizers and figures: what is trained, before
/// what is averaged.
const NESTED: [&str; 4] = ["state_dict", "model_state_dict", "model", "net"];
/// How far below the top they are looked for.
const DEEPEST: usize = 4;
/// Most tensors of a model.
const MOST_TENSORS: usize = 1 << 17;

/// The tensors of a model by name: those under one of the usual keys, else those at the top, else those of the only
/// dictionary that has any.
///
/// # Errors
/// Several dictionaries that could be meant; more tensors than any model has.
pub fn tensors<'p, 'a>(pickle: &'p Pickle<'a>) -> Result<BTreeMap<&'a str, &'p View<'a>>, Bad> {
    let mut found = BTreeMap::new();
    let Some(state) = state(pickle)? else { return Ok(found) };
    for (key, value) in state {
        if let (Value::Text(name), Some(view)) = (*key, pickle.tensor(*value)) {
            found.insert(name, view);
        }
        if found.len() > MOST_TENSORS {
            return Err(Bad::NotWhole(format!("it has more than {MOST_TENSORS} tensors")));
        }
    }
    Ok(found)
}

type Entries<'p, 'a> = &'p [(Value<'a>, Value<'a>)];

fn state<'p, 'a>(pickle: &'p Pickle<'a>) -> Result<Option<Entries<'p, 'a>>, Bad> {
    // Each dictionary is gone through once, however often it is named.
    let counts = pickle.objects().iter().map(|object| match object {
        Object::Dict(entries) => entries.iter().filter(|(_, value)| pickle.tensor(*value).is_some()).count(),
        _ => 0,
    });
    let counts: Vec<usize> = counts.collect();
    let tensors_in = |value: Value<'a>| if let Value::Object(number) = value { counts[number] } else { 0 };
    let mut at = pickle.top;
    for _ in 0..DEEPEST {
        let Some(entries) = pickle.dict(at) else { return Ok(None) };
        let usual = NESTED.iter().filter_map(|wanted| {
            let found = entries.iter().rev().find(|(key, _)| *key == Value::Text(wanted));
            found.map(|(_, value)| *value)
        });
        let usual: Vec<Value<'a>> = usual.collect();
        // Such a key wins over tensors at the top: those are figures that the script has kept.
        if let Some(found) = usual.iter().find(|value| tensors_in(**value) > 0) {
            return Ok(pickle.dict(*found));
        }
        let below = entries.iter().filter_map(|(key, value)| match key {
            Value::Text(name) if tensors_in(*value) > 0 => Some((*name, *value)),
            _ => None,
        });
        let below: Vec<(&str, Value<'a>)> = below.collect();
        let most = below.iter().map(|(_, value)| tensors_in(*value)).max().unwrap_or(0);
        if most <= tensors_in(at) && tensors_in(at) > 0 {
            return Ok(Some(entries));
        }
        match below[..] {
            [] => {}
            [(_, one)] => return Ok(pickle.dict(one)),
            [(first, _), (second, _), ..] => {
                let what = format!("keep tensors under `{first}` and `{second}`, and nothing says which are meant");
                let hint =
                    format!("save those that are meant alone: `torch.save(torch.load(path)[\"{first}\"], other)`");
                return Err(Bad::Other { what, hint });
            }
        }
        match usual.first() {
            Some(inner) => at = *inner,
            None => return Ok(None),
        }
    }
    Ok(None)
}
