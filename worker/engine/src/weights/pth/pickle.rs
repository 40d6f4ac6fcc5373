//! Pickles read as data: a small machine for the instructions that PyTorch's files have (Python's `pickletools` documents
//! them). Nothing is imported, called or executed: see [`super::call`] for what a call becomes.

use std::collections::BTreeMap;

/// Most instructions of a pickle: 40 or so make a tensor. It bounds the stack and what lists and dictionaries hold.
const MOST_STEPS: usize = 1 << 23;
/// Most objects of a pickle, and most of them that have a number to be named by.
const MOST_OBJECTS: usize = 1 << 21;

/// Why a pickle is none, as the end of a sentence.
pub type Result<T> = std::result::Result<T, String>;

/// What is on the stack. No value holds another one, only its number: however deep a pickle nests, nothing here does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// A whole number.
    Int(i64),
    /// True or false.
    Flag(bool),
    /// A text.
    Text(&'a str),
    /// An object, by its number.
    Object(usize),
    /// `None`, bytes, and numbers that are not whole or have more than 64 bits.
    Other,
}

/// What a value can stand for.
#[derive(Debug)]
pub enum Object<'a> {
    /// A class or a function, by name.
    Global {
        /// Where Python would import it from.
        module: &'a str,
        /// What it is called there.
        name: &'a str,
    },
    /// A list, a tuple or a set.
    List(Vec<Value<'a>>),
    /// A dictionary; and of an object of any other class, what was set by key.
    Dict(Vec<(Value<'a>, Value<'a>)>),
    /// Numbers that lie outside of the pickle.
    Storage(Storage<'a>),
    /// A tensor.
    Tensor(View<'a>),
}

/// Numbers that lie outside of the pickle.
#[derive(Clone, Copy, Debug)]
pub struct Storage<'a> {
    /// The name of its class, which says what numbers they are.
    pub kind: &'a str,
    /// What it is called in the file.
    pub key: &'a str,
    /// How many numbers there are.
    pub count: usize,
    /// How many of them come before the first that is meant.
    pub first: usize,
}

/// How a tensor lies in a storage.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Where.
    pub storage: Storage<'a>,
    /// How many numbers come before its first one.
    pub first: usize,
    /// Its shape: a list.
    pub sizes: Value<'a>,
    /// Numbers from one element to the next, along each dimension: a list.
    pub strides: Value<'a>,
}

/// What a pickle holds.
pub struct Pickle<'a> {
    objects: Vec<Object<'a>>,
    /// What it is of.
    pub top: Value<'a>,
    /// Bytes that it takes.
    pub len: usize,
}

impl<'a> Pickle<'a> {
    /// Reads the pickle that `bytes` begin with.
    ///
    /// # Errors
    /// Bytes that are no pickle, not the whole of one, with an instruction that PyTorch does not write, or too many.
    pub fn read(bytes: &'a [u8]) -> Result<Self> {
        let mut machine = Machine::new(bytes);
        loop {
            machine.spend(1)?;
            if let Some(top) = machine.step()? {
                return Ok(Self { objects: machine.objects, top, len: machine.at });
            }
        }
    }

    /// All objects, by their numbers.
    pub fn objects(&self) -> &[Object<'a>] {
        &self.objects
    }

    fn object(&self, value: Value<'a>) -> Option<&Object<'a>> {
        let Value::Object(number) = value else { return None };
        self.objects.get(number)
    }

    /// What a list holds; of anything else, nothing.
    pub fn list(&self, value: Value<'a>) -> &[Value<'a>] {
        if let Some(Object::List(items)) = self.object(value) { items } else { &[] }
    }

    /// What a dictionary holds.
    pub fn dict(&self, value: Value<'a>) -> Option<&[(Value<'a>, Value<'a>)]> {
        if let Some(Object::Dict(entries)) = self.object(value) { Some(entries) } else { None }
    }

    /// A tensor.
    pub fn tensor(&self, value: Value<'a>) -> Option<&View<'a>> {
        if let Some(Object::Tensor(view)) = self.object(value) { Some(view) } else { None }
    }
}

fn broken() -> String {
    "its pickle contradicts itself".into()
}

/// What runs a pickle.
pub(super) struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    steps: usize,
    objects: Vec<Object<'a>>,
    stack: Vec<Value<'a>>,
    /// Heights of the stack that a later instruction goes back to.
    marks: Vec<usize>,
    memo: BTreeMap<u64, Value<'a>>,
}

impl<'a> Machine<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        let (objects, stack, marks) = (Vec::new(), Vec::new(), Vec::new());
        Self { bytes, at: 0, steps: 0, objects, stack, marks, memo: BTreeMap::new() }
    }

    /// Counts what takes time or memory.
    pub(super) fn spend(&mut self, steps: usize) -> Result<()> {
        self.steps += steps;
        if self.steps > MOST_STEPS {
            return Err(format!("its pickle has more than {MOST_STEPS} instructions"));
        }
        Ok(())
    }

    /// One instruction; what the pickle is of, where it was the last.
    fn step(&mut self) -> Result<Option<Value<'a>>> {
        let code = self.byte()?;
        match code {
            b'.' => return self.pop().map(Some),
            // What is said of the pickle itself: its protocol, and how long a part of it is.
            0x80 | 0x95 => {
                self.take(if code == 0x80 { 1 } else { 8 })?;
            }
            b'(' => self.marks.push(self.stack.len()),
            b'0' => {
                if self.marks.pop_if(|mark| *mark == self.stack.len()).is_none() {
                    self.pop()?;
                }
            }
            b'1' => {
                self.above_mark()?;
            }
            b'2' => {
                let value = self.peek()?;
                self.stack.push(value);
            }
            b'h' => self.get(1)?,
            b'j' => self.get(4)?,
            b'q' => self.put(1)?,
            b'r' => self.put(4)?,
            0x94 => self.remember(self.memo.len() as u64)?,
            b')' | b']' | 0x8f => self.push(Object::List(Vec::new()))?,
            b't' | b'l' | 0x91 => {
                let items = self.above_mark()?;
                self.push(Object::List(items))?;
            }
            0x85..=0x87 => {
                let items = self.last(usize::from(code - 0x84))?;
                self.push(Object::List(items))?;
            }
            b'a' => {
                let items = self.last(1)?;
                self.append(&items)?;
            }
            b'e' | 0x90 => {
                let items = self.above_mark()?;
                self.append(&items)?;
            }
            b'}' => self.push(Object::Dict(Vec::new()))?,
            b'd' => {
                let items = self.above_mark()?;
                self.push(Object::Dict(Vec::new()))?;
                self.set(&items)?;
            }
            b's' => {
                let items = self.last(2)?;
                self.set(&items)?;
            }
            b'u' => {
                let items = self.above_mark()?;
                self.set(&items)?;
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push(Object::Global { module, name })?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Value::Text(module), Value::Text(name)) = (module, name) else { return Err(broken()) };
                self.push(Object::Global { module, name })?;
            }
            b'R' => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                self.call(function, arguments)?;
            }
            // New objects of a class: from arguments, and from those with names too.
            0x81 => self.unknown(2)?,
            0x92 => self.unknown(3)?,
            // What is in an object beside what is set by key.
            b'b' => {
                self.pop()?;
            }
            b'Q' => {
                let id = self.pop()?;
                self.outside(id)?;
            }
            _ => {
                let value = self.scalar(code)?;
                self.stack.push(value);
            }
        }
        Ok(None)
    }

    /// What an instruction that makes one value makes.
    fn scalar(&mut self, code: u8) -> Result<Value<'a>> {
        Ok(match code {
            b'N' => Value::Other,
            0x88 => Value::Flag(true),
            0x89 => Value::Flag(false),
            b'K' | b'M' => Value::Int(self.number(if code == b'K' { 1 } else { 2 })? as i64),
            b'J' => long(self.take(4)?),
            0x8a => long(self.sized(1)?),
            0x8b => long(self.sized(4)?),
            b'G' => {
                self.take(8)?;
                Value::Other
            }
            // Python 2 had texts that Python 3 reads as bytes.
            b'U' | 0x8c => text(self.sized(1)?),
            b'T' | b'X' => text(self.sized(4)?),
            0x8d => text(self.sized(8)?),
            b'C' | b'B' | 0x8e | 0x96 => {
                let width = [(b'C', 1), (b'B', 4)].into_iter().find(|(c, _)| *c == code).map_or(8, |(_, width)| width);
                self.sized(width)?;
                Value::Other
            }
            _ => return Err(format!("its pickle has the instruction {code:#04x}, which PyTorch does not write")),
        })
    }

    /// The next `n` bytes.
    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let part = self.bytes[self.at..].get(..n).ok_or_else(|| "its pickle is cut off".to_owned())?;
        self.at += n;
        Ok(part)
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }

    /// A number of `width` bytes, at most 8, the least first.
    fn number(&mut self, width: usize) -> Result<u64> {
        let mut all = [0; 8];
        all[..width].copy_from_slice(self.take(width)?);
        Ok(u64::from_le_bytes(all))
    }

    /// Bytes behind their number.
    fn sized(&mut self, width: usize) -> Result<&'a [u8]> {
        let n = self.number(width)?;
        self.take(usize::try_from(n).unwrap_or(usize::MAX))
    }

    fn line(&mut self) -> Result<&'a str> {
        let rest = &self.bytes[self.at..];
        let len = rest.iter().position(|b| *b == b'\n').ok_or_else(broken)?;
        self.at += len + 1;
        std::str::from_utf8(&rest[..len]).map_err(|_| broken())
    }

    /// What the stack may not fall below.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Result<Value<'a>> {
        let value = self.peek()?;
        self.stack.pop();
        Ok(value)
    }

    fn peek(&self) -> Result<Value<'a>> {
        self.stack[self.floor()..].last().copied().ok_or_else(broken)
    }

    /// The last `n` values.
    fn last(&mut self, n: usize) -> Result<Vec<Value<'a>>> {
        let from = self.stack.len().checked_sub(n).filter(|from| *from >= self.floor()).ok_or_else(broken)?;
        Ok(self.stack.split_off(from))
    }

    fn above_mark(&mut self) -> Result<Vec<Value<'a>>> {
        let mark = self.marks.pop().ok_or_else(broken)?;
        Ok(self.stack.split_off(mark))
    }

    pub(super) fn push_value(&mut self, value: Value<'a>) {
        self.stack.push(value);
    }

    pub(super) fn push(&mut self, object: Object<'a>) -> Result<()> {
        if self.objects.len() >= MOST_OBJECTS {
            return Err(format!("its pickle has more than {MOST_OBJECTS} objects"));
        }
        self.stack.push(Value::Object(self.objects.len()));
        self.objects.push(object);
        Ok(())
    }

    /// An object of a class that is not known, in place of the last `n` values.
    fn unknown(&mut self, n: usize) -> Result<()> {
        self.last(n)?;
        self.push(Object::Dict(Vec::new()))
    }

    fn get(&mut self, width: usize) -> Result<()> {
        let index = self.number(width)?;
        let value = self.memo.get(&index).copied().ok_or_else(broken)?;
        self.stack.push(value);
        Ok(())
    }

    fn put(&mut self, width: usize) -> Result<()> {
        let index = self.number(width)?;
        self.remember(index)
    }

    fn remember(&mut self, index: u64) -> Result<()> {
        let value = self.peek()?;
        self.memo.insert(index, value);
        if self.memo.len() > MOST_OBJECTS {
            return Err(format!("its pickle names more than {MOST_OBJECTS} objects"));
        }
        Ok(())
    }

    pub(super) fn object(&self, value: Value<'a>) -> Option<&Object<'a>> {
        let Value::Object(number) = value else { return None };
        self.objects.get(number)
    }

    /// What a list holds; of anything else, nothing.
    pub(super) fn list(&self, value: Value<'a>) -> &[Value<'a>] {
        if let Some(Object::List(items)) = self.object(value) { items } else { &[] }
    }

    /// Into the list that is last on the stack; objects of other classes have no items that are of use here.
    fn append(&mut self, items: &[Value<'a>]) -> Result<()> {
        if let Value::Object(number) = self.peek()?
            && let Some(Object::List(list)) = self.objects.get_mut(number)
        {
            list.extend(items);
        }
        Ok(())
    }

    /// Keys and values, one after the other, into the dictionary that is last on the stack.
    fn set(&mut self, items: &[Value<'a>]) -> Result<()> {
        let (pairs, rest) = items.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(broken());
        }
        if let Value::Object(number) = self.peek()?
            && let Some(Object::Dict(entries)) = self.objects.get_mut(number)
        {
            entries.extend(pairs.iter().map(|[key, value]| (*key, *value)));
        }
        Ok(())
    }
}

/// A number with a sign, the least byte first.
fn long(bytes: &[u8]) -> Value<'static> {
    if bytes.len() > 8 {
        return Value::Other;
    }
    let negative = bytes.last().is_some_and(|last| *last >= 0x80);
    let mut all = [if negative { 0xff } else { 0 }; 8];
    all[..bytes.len()].copy_from_slice(bytes);
    Value::Int(i64::from_le_bytes(all))
}

fn text(bytes: &[u8]) -> Value<'_> {
    std::str::from_utf8(bytes).map_or(Value::Other, Value::Text)
}
