//! What a pickle would have Python call: the few functions of PyTorch that make tensors (`torch/_utils.py`) are known by
//! name, anything else makes an object with nothing in it.

use super::pickle::{Machine, Object, Result, Storage, Value, View};

/// Makes a tensor of a class of its own: the function that makes the plain one, its class, the arguments.
const OF_TYPE: (&str, &str) = ("torch._tensor", "_rebuild_from_type_v2");
/// Make a tensor from a storage, where in it the tensor begins, a shape and strides.
const TENSOR: [&str; 3] = ["_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"];

impl<'a> Machine<'a> {
    /// Module and name of a function or a class; nothing for anything else.
    fn named(&self, value: Value<'a>) -> (&'a str, &'a str) {
        match self.object(value) {
            Some(Object::Global { module, name }) => (*module, *name),
            _ => ("", ""),
        }
    }

    /// Puts on the stack what a function or a class makes of a list of arguments.
    pub(super) fn call(&mut self, function: Value<'a>, arguments: Value<'a>) -> Result<()> {
        let (mut function, mut arguments) = (self.named(function), arguments);
        if function == OF_TYPE
            && let [inner, _, its, ..] = *self.list(arguments)
        {
            (function, arguments) = (self.named(inner), its);
        }
        // None that is known has more.
        let arguments: Vec<Value<'a>> = self.list(arguments).iter().take(8).copied().collect();
        match (function, &arguments[..]) {
            (("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state"), [data, ..]) => {
                self.push_value(*data);
                Ok(())
            }
            (("torch._utils", made), [storage, Value::Int(first), sizes, strides, rest @ ..])
                if TENSOR.contains(&made) =>
            {
                let Some(Object::Storage(storage)) = self.object(*storage) else { return Err(odd()) };
                let mut storage = *storage;
                // Numbers that PyTorch has had for a short time have no class of storages: an argument says what they are.
                if made == TENSOR[2]
                    && let Some(kind) = rest.get(2)
                {
                    storage.kind = self.named(*kind).1;
                }
                let first = usize::try_from(*first).map_err(|_| odd())?;
                self.push(Object::Tensor(View { storage, first, sizes: *sizes, strides: *strides }))
            }
            // As Python 2 wrote it: with a list of pairs.
            (("collections", "OrderedDict"), [pairs, ..]) => {
                let count = self.list(*pairs).len();
                self.spend(count)?;
                let pairs = self.list(*pairs).iter().filter_map(|pair| match self.list(*pair) {
                    [key, value] => Some((*key, *value)),
                    _ => None,
                });
                let pairs: Vec<_> = pairs.collect();
                self.push(Object::Dict(pairs))
            }
            _ => self.push(Object::Dict(Vec::new())),
        }
    }

    /// Puts on the stack what lies outside of the pickle under that id.
    pub(super) fn outside(&mut self, id: Value<'a>) -> Result<()> {
        let storage = match self.list(id) {
            [Value::Text("storage"), kind, Value::Text(key), _, Value::Int(count), rest @ ..] => {
                // Before 1.6, a part of a storage: what it is called, where it begins, how long it is.
                let first = match rest.first().map(|view| self.list(*view)) {
                    Some([_, Value::Int(first), ..]) => *first,
                    _ => 0,
                };
                let number = |n: i64| usize::try_from(n).map_err(|_| odd());
                let (count, first) = (number(*count)?, number(first)?);
                Object::Storage(Storage { kind: self.named(*kind).1, key, count, first })
            }
            // A class, with its source: what it makes is not known.
            [Value::Text("module"), ..] => Object::Dict(Vec::new()),
            _ => return Err(odd()),
        };
        self.push(storage)
    }
}

fn odd() -> String {
    "a tensor in it is made as PyTorch does not make one".into()
}
