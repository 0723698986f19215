//! A reader of Python pickles that builds plain data and NumPy arrays, and runs nothing.
//!
//! A pickle is a program for a small stack machine, and Python's own reader lets that program call
//! any function. This one knows the operations of protocols 2 to 5 that build `None`, booleans,
//! integers, floats, strings, bytes, tuples, lists and dictionaries, and the handful of names that
//! NumPy and Paddle need for arrays. Everything else is an error that names it and its byte.
//!
//! Objects live in tables and refer to each other by [`Id`]. So an object that is used many times
//! is stored once, an object that contains itself is harmless, and nothing here recurses, freeing the
//! memory included. Strings and bytes borrow from the input: an array's data is not touched before it
//! is asked for.
//!
//! ```
//! use ernie_vil::weights::pickle::{self, Value};
//!
//! // {"epoch": 7}, as Python's pickle.dumps(..., protocol=2) writes it.
//! let pickle = pickle::parse(b"\x80\x02}q\x00X\x05\x00\x00\x00epochq\x01K\x07s.")?;
//! let [(Value::Text(key), Value::Int(7))] = pickle.entries(pickle.root()) else { panic!() };
//! assert_eq!(key.as_str(), Some("epoch"));
//!
//! // os.system, asked for by a hostile file, is refused rather than called.
//! let error = pickle::parse(b"\x80\x02cposix\nsystem\nX\x02\x00\x00\x00ls\x85R.").unwrap_err();
//! assert!(error.to_string().contains("byte 2: the global \"posix.system\" is refused"));
//! # Ok::<(), ernie_vil::Error>(())
//! ```

use std::collections::HashMap;

use super::{quoted, weights};
use crate::Result;
use crate::recognise::{mistaken, recognise};

/// No pickle may have more operations. A parameter file has about 25 a tensor, and as every
/// operation builds at most one object this bounds the memory taken, to some 100 MB at worst.
const MOST_OPERATIONS: usize = 1 << 20;

/// No array may have more dimensions: each takes memory, and weights have four at most.
pub(super) const MOST_DIMENSIONS: usize = 16;

/// A pickle's objects: one table for each kind.
#[derive(Debug, Default)]
pub struct Pickle<'a> {
    sequences: Vec<Vec<Value<'a>>>,
    dicts: Vec<Vec<(Value<'a>, Value<'a>)>>,
    dtypes: Vec<Dtype<'a>>,
    /// Without content until their BUILD.
    arrays: Vec<Option<Box<Array<'a>>>>,
    root: Value<'a>,
}

/// A value: plain where it is small, and else the [`Id`] of an object of the [`Pickle`].
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Value<'a> {
    /// `None`.
    #[default]
    None,
    /// A boolean.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A float.
    Float(f64),
    /// A string.
    Text(Text<'a>),
    /// A byte string.
    Bytes(Bytes<'a>),
    /// A tuple; [`Pickle::items`] gives its items.
    Tuple(Id),
    /// A list; [`Pickle::items`] gives its items.
    List(Id),
    /// A dictionary; [`Pickle::entries`] gives its entries.
    Dict(Id),
    /// A NumPy element type; [`Pickle::dtype`] gives it.
    Dtype(Id),
    /// A NumPy array or scalar; [`Pickle::array`] gives it.
    Array(Id),
    /// One of the names that may be called.
    Global(Global),
}

/// The place of an object among its [`Pickle`]'s objects of that kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Id(u32);

impl Id {
    /// The place that the next object of a table gets; [`MOST_OPERATIONS`] keeps it small.
    fn next<T>(table: &[T]) -> Self {
        Self(table.len() as u32)
    }
}

/// A string as it stands in the file; whether it is UTF-8 is checked only when it is looked at, as
/// at protocol 2 it may be the data of an array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Text<'a>(&'a [u8]);

impl<'a> Text<'a> {
    /// The string, where it is UTF-8 of at most 4096 bytes. What is longer is not a name, and would
    /// take long to compare where a hostile file uses it again and again.
    pub fn as_str(self) -> Option<&'a str> {
        const LONGEST: usize = 4096;
        let bytes = Some(self.0).filter(|bytes| bytes.len() <= LONGEST)?;
        std::str::from_utf8(bytes).ok()
    }

    /// Whether it is this string; of two of another length no byte is looked at.
    pub(super) fn is(self, text: &str) -> bool {
        self.0 == text.as_bytes()
    }

    /// Where it lies in memory: a string that a file uses again and again has one place.
    pub(super) fn place(self) -> (*const u8, usize) {
        (self.0.as_ptr(), self.0.len())
    }
}

/// A byte string as it stands in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bytes<'a> {
    /// The bytes themselves.
    Raw(&'a [u8]),
    /// Protocol 2 has no byte strings: every byte is the code point of the same number, in UTF-8.
    Latin1(&'a [u8]),
}

/// A name that may be called; the others are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Global {
    /// `numpy.core.multiarray._reconstruct`, which makes an empty array.
    Reconstruct,
    /// `numpy.core.multiarray.scalar`, which makes a scalar.
    Scalar,
    /// `numpy.core.numeric._frombuffer`, which makes an array at protocol 5.
    FromBuffer,
    /// `numpy.ndarray`.
    NdArray,
    /// `numpy.dtype`.
    Dtype,
    /// `_codecs.encode`, which makes bytes at protocol 2.
    Encode,
    /// `builtins.bytes`, which makes empty bytes at protocol 2.
    EmptyBytes,
    /// `builtins.tuple`, around Paddle's pairs of a name and an array.
    Tuple,
    /// `collections.OrderedDict`, which is read as a dictionary.
    OrderedDict,
}

impl Global {
    fn find(module: &str, name: &str) -> Option<Self> {
        Some(match (module, name) {
            ("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct") => Self::Reconstruct,
            ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar") => Self::Scalar,
            ("numpy.core.numeric" | "numpy._core.numeric", "_frombuffer") => Self::FromBuffer,
            ("numpy", "ndarray") => Self::NdArray,
            ("numpy", "dtype") => Self::Dtype,
            ("_codecs", "encode") => Self::Encode,
            ("builtins" | "__builtin__", "bytes") => Self::EmptyBytes,
            ("builtins" | "__builtin__", "tuple") => Self::Tuple,
            ("collections", "OrderedDict") => Self::OrderedDict,
            _ => return None,
        })
    }
}

/// A NumPy element type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dtype<'a> {
    /// The code without its byte order, such as `f4`.
    pub code: &'a str,
    /// Whether the most significant byte of an element comes first.
    pub big_endian: bool,
}

/// A NumPy array as it was stored. Whether the data has the length that the shape asks for is for
/// the caller to check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Array<'a> {
    /// Its sizes; none for a scalar.
    pub shape: Vec<usize>,
    /// Its element type.
    pub dtype: Dtype<'a>,
    /// Whether the first index runs fastest in the data, rather than the last.
    pub fortran_order: bool,
    /// Its elements.
    pub data: Bytes<'a>,
}

impl<'a> Pickle<'a> {
    /// The pickled value.
    pub fn root(&self) -> Value<'a> {
        self.root
    }

    /// The items of a tuple or a list; none for another value.
    pub fn items(&self, value: Value) -> &[Value<'a>] {
        match value {
            Value::Tuple(id) | Value::List(id) => {
                self.sequences.get(id.0 as usize).map_or(&[], Vec::as_slice)
            }
            _ => &[],
        }
    }

    /// The entries of a dictionary in the order in which they were set; of two with an equal key the
    /// later one counts. None for another value.
    pub fn entries(&self, value: Value) -> &[(Value<'a>, Value<'a>)] {
        match value {
            Value::Dict(id) => self.dicts.get(id.0 as usize).map_or(&[], Vec::as_slice),
            _ => &[],
        }
    }

    /// An element type.
    pub fn dtype(&self, value: Value) -> Option<Dtype<'a>> {
        match value {
            Value::Dtype(id) => self.dtypes.get(id.0 as usize).copied(),
            _ => None,
        }
    }

    /// An array, where it was given its content.
    pub fn array(&self, value: Value) -> Option<&Array<'a>> {
        match value {
            Value::Array(id) => self.arrays.get(id.0 as usize)?.as_deref(),
            _ => None,
        }
    }

    fn new_sequence(&mut self, items: Vec<Value<'a>>) -> Id {
        let id = Id::next(&self.sequences);
        self.sequences.push(items);
        id
    }

    fn new_dict(&mut self) -> Value<'a> {
        let id = Id::next(&self.dicts);
        self.dicts.push(Vec::new());
        Value::Dict(id)
    }

    fn new_dtype(&mut self, dtype: Dtype<'a>) -> Value<'a> {
        let id = Id::next(&self.dtypes);
        self.dtypes.push(dtype);
        Value::Dtype(id)
    }

    fn new_array(&mut self, array: Option<Array<'a>>) -> Value<'a> {
        let id = Id::next(&self.arrays);
        self.arrays.push(array.map(Box::new));
        Value::Array(id)
    }

    /// What a value is, in a few words for a message.
    pub fn describe(&self, value: Value) -> String {
        match value {
            Value::None => "None".into(),
            Value::Bool(_) => "a boolean".into(),
            Value::Int(_) => "an integer".into(),
            Value::Float(_) => "a float".into(),
            Value::Text(_) => "a string".into(),
            Value::Bytes(_) => "a byte string".into(),
            Value::Tuple(_) => format!("a tuple of {} items", self.items(value).len()),
            Value::List(_) => format!("a list of {} items", self.items(value).len()),
            Value::Dict(_) => format!("a dictionary of {} entries", self.entries(value).len()),
            Value::Dtype(_) => "an element type".into(),
            Value::Array(_) => match self.array(value) {
                Some(array) => format!("an array of shape {:?}", array.shape),
                None => "an array without content".into(),
            },
            Value::Global(global) => format!("the name of {global:?}"),
        }
    }
}

/// Reads a pickle of protocol 2, 3, 4 or 5. What follows the pickle's end is ignored, as it is by
/// Python.
///
/// # Errors
/// [`crate::Error::Weights`] with the byte at which reading stopped: the bytes are not a pickle of
/// these protocols, are cut short or damaged, ask for a name or an operation that a parameter file
/// has no need of, or have more than 2^20 operations.
pub fn parse(bytes: &[u8]) -> Result<Pickle<'_>> {
    match bytes {
        // PyTorch wrote pickles, too, with its tensors behind them.
        [0x80, 2..=5, ..] if recognise(bytes).is_none() => {}
        [0x80, 2..=5, ..] | [] => return weights(mistaken(bytes)),
        [0x80, protocol, ..] => {
            return weights(format!("the pickle is of protocol {protocol}, expected 2 to 5"));
        }
        _ => return weights(format!("not a pickle of protocol 2 to 5: {}", mistaken(bytes))),
    }
    let mut machine = Machine {
        bytes,
        at: 0,
        pickle: Pickle::default(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
    };
    for _ in 0..MOST_OPERATIONS {
        let start = machine.at;
        match machine.step() {
            Ok(None) => {}
            Ok(Some(root)) => {
                machine.pickle.root = root;
                return Ok(machine.pickle);
            }
            Err(message) => return weights(format!("pickle, byte {start}: {message}")),
        }
    }
    weights(format!(
        "pickle, byte {}: more than {MOST_OPERATIONS} operations, too many for a parameter file",
        machine.at
    ))
}

/// A message without its place, which [`parse`] adds.
type Step<T> = Result<T, String>;

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    pickle: Pickle<'a>,
    stack: Vec<Value<'a>>,
    /// Heights of the stack at the open marks.
    marks: Vec<usize>,
    memo: HashMap<u32, Value<'a>>,
}

impl<'a> Machine<'a> {
    /// Runs one operation; the last one gives the pickled value.
    fn step(&mut self) -> Step<Option<Value<'a>>> {
        let operation = self.byte()?;
        match operation {
            // PROTO
            0x80 => {
                let protocol = self.byte()?;
                if !(2..=5).contains(&protocol) {
                    return Err(format!("protocol {protocol}, expected 2 to 5"));
                }
            }
            // FRAME: only says how much to read at once, but a file that was cut short shows here.
            0x95 => {
                let length = u64::from_le_bytes(self.fixed()?);
                let left = self.bytes.len() - self.at;
                if length > left as u64 {
                    return Err(format!(
                        "a frame of {length} bytes, but only {left} follow: the file is cut short"
                    ));
                }
            }
            // STOP
            b'.' => return self.pop().map(Some),

            b'N' => self.push(Value::None),
            // NEWTRUE, NEWFALSE
            0x88 => self.push(Value::Bool(true)),
            0x89 => self.push(Value::Bool(false)),
            // BININT1, BININT2, BININT, LONG1, LONG4, BINFLOAT
            b'K' => {
                let n = self.byte()?;
                self.push(Value::Int(n.into()));
            }
            b'M' => {
                let n = u16::from_le_bytes(self.fixed()?);
                self.push(Value::Int(n.into()));
            }
            b'J' => {
                let n = i32::from_le_bytes(self.fixed()?);
                self.push(Value::Int(n.into()));
            }
            0x8a => {
                let length = self.byte()?;
                self.long(length.into())?;
            }
            0x8b => {
                let length = i32::from_le_bytes(self.fixed()?);
                let length = u64::try_from(length).map_err(|_| format!("a length of {length}"))?;
                self.long(length)?;
            }
            b'G' => {
                let x = f64::from_be_bytes(self.fixed()?);
                self.push(Value::Float(x));
            }

            // SHORT_BINUNICODE, BINUNICODE, BINUNICODE8
            0x8c | b'X' | 0x8d => {
                let text = self.sized(match operation {
                    0x8c => 1,
                    b'X' => 4,
                    _ => 8,
                })?;
                self.push(Value::Text(Text(text)));
            }
            // SHORT_BINBYTES, BINBYTES, BINBYTES8, BYTEARRAY8
            b'C' | b'B' | 0x8e | 0x96 => {
                let bytes = self.sized(match operation {
                    b'C' => 1,
                    b'B' => 4,
                    _ => 8,
                })?;
                self.push(Value::Bytes(Bytes::Raw(bytes)));
            }

            // EMPTY_TUPLE, TUPLE1, TUPLE2, TUPLE3, TUPLE
            b')' => self.tuple(Vec::new()),
            0x85..=0x87 => {
                let items = self.pop_many(usize::from(operation - 0x84))?.collect();
                self.tuple(items);
            }
            b't' => {
                let items = self.pop_mark()?;
                self.tuple(items);
            }
            // EMPTY_LIST, LIST
            b']' => self.list(Vec::new()),
            b'l' => {
                let items = self.pop_mark()?;
                self.list(items);
            }
            // APPEND, APPENDS
            b'a' => {
                let [item] = self.pop_array()?;
                self.append(&[item])?;
            }
            b'e' => {
                let items = self.pop_mark()?;
                self.append(&items)?;
            }
            // EMPTY_DICT, DICT
            b'}' => {
                let dict = self.pickle.new_dict();
                self.push(dict);
            }
            b'd' => {
                let items = self.pop_mark()?;
                let dict = self.pickle.new_dict();
                self.push(dict);
                self.set_items(&items)?;
            }
            // SETITEM, SETITEMS
            b's' => {
                let item: [_; 2] = self.pop_array()?;
                self.set_items(&item)?;
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.set_items(&items)?;
            }

            // MARK, POP, POP_MARK, DUP
            b'(' => self.marks.push(self.stack.len()),
            b'0' => {
                if self.marks.last() == Some(&self.stack.len()) {
                    self.marks.pop();
                } else {
                    self.pop()?;
                }
            }
            b'1' => {
                self.pop_mark()?;
            }
            b'2' => {
                let value = self.top()?;
                self.push(value);
            }
            // BINPUT, LONG_BINPUT, MEMOIZE
            b'q' => {
                let key = self.byte()?;
                self.remember(key.into())?;
            }
            b'r' => {
                let key = u32::from_le_bytes(self.fixed()?);
                self.remember(key)?;
            }
            0x94 => {
                let key = u32::try_from(self.memo.len()).map_err(|_| "too many remembered values")?;
                self.remember(key)?;
            }
            // BINGET, LONG_BINGET
            b'h' => {
                let key = self.byte()?;
                self.recall(key.into())?;
            }
            b'j' => {
                let key = u32::from_le_bytes(self.fixed()?);
                self.recall(key)?;
            }

            // GLOBAL, STACK_GLOBAL
            b'c' => {
                let module = self.line()?;
                let name = self.line()?;
                self.global(module, name)?;
            }
            0x93 => {
                let [module, name] = self.pop_array()?;
                match (module, name) {
                    (Value::Text(module), Value::Text(name)) => {
                        let text = |text: Text<'a>| text.as_str().ok_or("a global's name is not UTF-8");
                        self.global(text(module)?, text(name)?)?;
                    }
                    _ => return Err("a global's name is not a string".into()),
                }
            }
            b'R' => self.reduce()?,
            b'b' => self.build()?,

            other => {
                return Err(format!(
                    "the operation {other:#04x} is refused, a parameter file has no need of it"
                ));
            }
        }
        Ok(None)
    }

    fn byte(&mut self) -> Step<u8> {
        self.fixed().map(|[byte]| byte)
    }

    fn fixed<const N: usize>(&mut self) -> Step<[u8; N]> {
        let bytes = self.take(N as u64)?;
        Ok(bytes.try_into().expect("take gives as many as asked for"))
    }

    fn take(&mut self, length: u64) -> Step<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        match usize::try_from(length).ok().and_then(|length| rest.get(..length)) {
            Some(taken) => {
                self.at += taken.len();
                Ok(taken)
            }
            None => Err(format!(
                "{length} bytes expected, but only {} follow: the file is cut short or damaged",
                rest.len()
            )),
        }
    }

    /// Bytes with their length in front, a little-endian number of `width` bytes.
    fn sized(&mut self, width: u64) -> Step<&'a [u8]> {
        let digits = self.take(width)?;
        let length = digits.iter().rev().fold(0, |n, &digit| n << 8 | u64::from(digit));
        self.take(length)
    }

    /// A line of a GLOBAL, without its end.
    fn line(&mut self) -> Step<&'a str> {
        const LONGEST: usize = 256;
        let rest = &self.bytes[self.at..];
        let line = rest[..rest.len().min(LONGEST)]
            .split(|&byte| byte == b'\n')
            .next()
            .unwrap_or(&[]);
        if line.len() == rest.len().min(LONGEST) {
            return Err("a global's name does not end".into());
        }
        self.at += line.len() + 1;
        std::str::from_utf8(line).map_err(|_| "a global's name is not UTF-8".into())
    }

    /// An integer of `length` little-endian bytes in two's complement.
    fn long(&mut self, length: u64) -> Step<()> {
        let bytes = self.take(length)?;
        if bytes.len() > 8 {
            return Err(format!("an integer of {length} bytes, expected at most 8"));
        }
        let negative = bytes.last().is_some_and(|&last| last >= 0x80);
        let mut extended = [if negative { 0xff } else { 0 }; 8];
        extended[..bytes.len()].copy_from_slice(bytes);
        self.push(Value::Int(i64::from_le_bytes(extended)));
        Ok(())
    }

    fn push(&mut self, value: Value<'a>) {
        self.stack.push(value);
    }

    fn tuple(&mut self, items: Vec<Value<'a>>) {
        let id = self.pickle.new_sequence(items);
        self.push(Value::Tuple(id));
    }

    fn list(&mut self, items: Vec<Value<'a>>) {
        let id = self.pickle.new_sequence(items);
        self.push(Value::List(id));
    }

    /// How many values lie above the last open mark.
    fn reachable(&self) -> usize {
        self.stack.len() - self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Step<Value<'a>> {
        match self.stack.last() {
            Some(&value) if self.reachable() > 0 => Ok(value),
            _ => Err("the operation lacks an operand".into()),
        }
    }

    fn pop(&mut self) -> Step<Value<'a>> {
        let value = self.top()?;
        self.stack.pop();
        Ok(value)
    }

    fn pop_many(&mut self, count: usize) -> Step<std::vec::Drain<'_, Value<'a>>> {
        if count > self.reachable() {
            return Err("the operation lacks an operand".into());
        }
        Ok(self.stack.drain(self.stack.len() - count..))
    }

    fn pop_array<const N: usize>(&mut self) -> Step<[Value<'a>; N]> {
        let mut values = [Value::None; N];
        values
            .iter_mut()
            .zip(self.pop_many(N)?)
            .for_each(|(to, from)| *to = from);
        Ok(values)
    }

    /// Everything above the last open mark, which is closed.
    fn pop_mark(&mut self) -> Step<Vec<Value<'a>>> {
        let height = self.marks.pop().ok_or("the operation lacks its mark")?;
        Ok(self.stack.drain(height..).collect())
    }

    fn remember(&mut self, key: u32) -> Step<()> {
        let value = self.top()?;
        self.memo.insert(key, value);
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Step<()> {
        match self.memo.get(&key) {
            Some(&value) => {
                self.push(value);
                Ok(())
            }
            None => Err(format!("value {key} is asked for and was not remembered")),
        }
    }

    fn append(&mut self, items: &[Value<'a>]) -> Step<()> {
        match self.top()? {
            Value::List(Id(id)) => self.pickle.sequences[id as usize].extend_from_slice(items),
            _ => return Err("items are appended to what is not a list".into()),
        }
        Ok(())
    }

    /// Sets entries, given as keys and values by turns.
    fn set_items(&mut self, items: &[Value<'a>]) -> Step<()> {
        let (pairs, []) = items.as_chunks() else {
            return Err("a key lacks its value".into());
        };
        let pairs = pairs.iter().map(|&[key, value]| (key, value));
        match self.top()? {
            Value::Dict(Id(id)) => self.pickle.dicts[id as usize].extend(pairs),
            _ => return Err("an entry is set in what is not a dictionary".into()),
        }
        Ok(())
    }

    fn global(&mut self, module: &str, name: &str) -> Step<()> {
        let Some(global) = Global::find(module, name) else {
            return Err(format!(
                "the global {} is refused, a parameter file needs arrays only",
                quoted(&format!("{module}.{name}"))
            ));
        };
        self.push(Value::Global(global));
        Ok(())
    }

    fn shape(&self, value: Value) -> Step<Vec<usize>> {
        let sizes = self.pickle.items(value);
        if !matches!(value, Value::Tuple(_)) || sizes.len() > MOST_DIMENSIONS {
            return Err(format!(
                "an array's shape is {}, expected a tuple of at most {MOST_DIMENSIONS} sizes",
                self.pickle.describe(value)
            ));
        }
        sizes
            .iter()
            .map(|&size| match size {
                Value::Int(n) => usize::try_from(n).map_err(|_| format!("an array's size is {n}")),
                other => Err(format!("an array's size is {}", self.pickle.describe(other))),
            })
            .collect()
    }

    fn reduce(&mut self) -> Step<()> {
        let (callable, arguments) = match self.pop_array()? {
            [Value::Global(global), tuple @ Value::Tuple(_)] => (global, self.pickle.items(tuple)),
            _ => return Err("a call of what is not a function, or without a tuple of arguments".into()),
        };
        let result = match (callable, arguments) {
            (Global::Reconstruct, [Value::Global(Global::NdArray), ..]) => self.pickle.new_array(None),
            (Global::Scalar, &[dtype, Value::Bytes(data)]) => {
                let array = self.array(Vec::new(), dtype, false, data)?;
                self.pickle.new_array(Some(array))
            }
            (Global::FromBuffer, &[Value::Bytes(data), dtype, shape, Value::Text(order)]) => {
                let fortran_order = match order.as_str() {
                    Some("C") => false,
                    Some("F") => true,
                    _ => return Err("an array's order is neither C nor F".into()),
                };
                let array = self.array(self.shape(shape)?, dtype, fortran_order, data)?;
                self.pickle.new_array(Some(array))
            }
            (Global::Dtype, &[Value::Text(code), ..]) => {
                let code = code.as_str().ok_or("an element type's code is not UTF-8")?;
                let big_endian = false;
                self.pickle.new_dtype(Dtype { code, big_endian })
            }
            (Global::Encode, &[Value::Text(text), Value::Text(encoding)])
                if matches!(encoding.as_str(), Some("latin1" | "latin-1")) =>
            {
                Value::Bytes(Bytes::Latin1(text.0))
            }
            (Global::EmptyBytes, []) => Value::Bytes(Bytes::Raw(&[])),
            // A list would have to be copied, and Paddle hands over a tuple.
            (Global::Tuple, &[tuple @ Value::Tuple(_)]) => tuple,
            (Global::OrderedDict, []) => self.pickle.new_dict(),
            (other, _) => return Err(format!("a call of {other:?} with unknown arguments")),
        };
        self.push(result);
        Ok(())
    }

    fn array(
        &self,
        shape: Vec<usize>,
        dtype: Value,
        fortran_order: bool,
        data: Bytes<'a>,
    ) -> Step<Array<'a>> {
        let dtype = self
            .pickle
            .dtype(dtype)
            .ok_or("an array lacks its element type")?;
        Ok(Array {
            shape,
            dtype,
            fortran_order,
            data,
        })
    }

    fn build(&mut self) -> Step<()> {
        let state = self.pop()?;
        let object = self.top()?;
        match (object, self.pickle.items(state)) {
            (
                Value::Array(Id(id)),
                &[
                    Value::Int(_),
                    shape,
                    dtype,
                    Value::Bool(fortran_order),
                    Value::Bytes(data),
                ],
            ) => {
                let array = self.array(self.shape(shape)?, dtype, fortran_order, data)?;
                self.pickle.arrays[id as usize] = Some(Box::new(array));
            }
            // The version, the byte order, and what structured types have.
            (
                Value::Dtype(Id(id)),
                &[
                    Value::Int(_),
                    Value::Text(order),
                    Value::None,
                    Value::None,
                    Value::None,
                    ..,
                ],
            ) => {
                self.pickle.dtypes[id as usize].big_endian = match order.as_str() {
                    Some("<" | "|" | "=") => false,
                    Some(">") => true,
                    _ => return Err("a byte order that is none of <, >, | and =".into()),
                };
            }
            _ => {
                return Err(format!(
                    "{} is given an unknown state, {}",
                    self.pickle.describe(object),
                    self.pickle.describe(state)
                ));
            }
        }
        Ok(())
    }
}
