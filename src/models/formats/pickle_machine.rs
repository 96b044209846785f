//! The stack machine of Python's pickles, as far as `torch.save` uses it.
//!
//! Only plain values are made: what a program names is never looked up, what it calls is never run. Values are numbered
//! and refer to each other by number, so that neither depth nor sharing costs more memory than the program has bytes.

use std::collections::HashMap;
use std::sync::Arc;

use crate::compute::Stored;

/// Values of a program.
const MOST_VALUES: usize = 1 << 20;

/// The instructions that `torch.save` writes, by their names in Python's `pickletools`.
mod opcode {
    pub(super) const MARK: u8 = b'(';
    pub(super) const STOP: u8 = b'.';
    pub(super) const POP: u8 = b'0';
    pub(super) const POP_MARK: u8 = b'1';
    pub(super) const BININT: u8 = b'J';
    pub(super) const BININT1: u8 = b'K';
    pub(super) const BININT2: u8 = b'M';
    pub(super) const NONE: u8 = b'N';
    pub(super) const BINPERSID: u8 = b'Q';
    pub(super) const REDUCE: u8 = b'R';
    pub(super) const BINSTRING: u8 = b'T';
    pub(super) const SHORT_BINSTRING: u8 = b'U';
    pub(super) const BINUNICODE: u8 = b'X';
    pub(super) const BINBYTES: u8 = b'B';
    pub(super) const SHORT_BINBYTES: u8 = b'C';
    pub(super) const BINFLOAT: u8 = b'G';
    pub(super) const APPEND: u8 = b'a';
    pub(super) const BUILD: u8 = b'b';
    pub(super) const GLOBAL: u8 = b'c';
    pub(super) const APPENDS: u8 = b'e';
    pub(super) const BINGET: u8 = b'h';
    pub(super) const LONG_BINGET: u8 = b'j';
    pub(super) const BINPUT: u8 = b'q';
    pub(super) const LONG_BINPUT: u8 = b'r';
    pub(super) const SETITEM: u8 = b's';
    pub(super) const TUPLE: u8 = b't';
    pub(super) const SETITEMS: u8 = b'u';
    pub(super) const EMPTY_TUPLE: u8 = b')';
    pub(super) const EMPTY_LIST: u8 = b']';
    pub(super) const EMPTY_DICT: u8 = b'}';
    pub(super) const PROTO: u8 = 0x80;
    pub(super) const NEWOBJ: u8 = 0x81;
    pub(super) const TUPLE1: u8 = 0x85;
    pub(super) const TUPLE2: u8 = 0x86;
    pub(super) const TUPLE3: u8 = 0x87;
    pub(super) const NEWTRUE: u8 = 0x88;
    pub(super) const NEWFALSE: u8 = 0x89;
    pub(super) const LONG1: u8 = 0x8a;
    pub(super) const SHORT_BINUNICODE: u8 = 0x8c;
    pub(super) const STACK_GLOBAL: u8 = 0x93;
    pub(super) const MEMOIZE: u8 = 0x94;
    pub(super) const FRAME: u8 = 0x95;
}

/// The number format of a storage: the name of its class in torch.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct StorageType(Arc<str>);

impl StorageType {
    fn name(&self) -> &str {
        let class = self.0.rsplit('.').next().unwrap_or_default();
        class.strip_suffix("Storage").unwrap_or(class)
    }

    pub(super) fn stored(&self) -> Result<Stored, String> {
        match self.name() {
            "Float" => Ok(Stored::F32),
            "Half" => Ok(Stored::F16),
            "BFloat16" => Ok(Stored::Bf16),
            other => Err(other.to_owned()),
        }
    }

    pub(super) fn size(&self) -> usize {
        match self.name() {
            "Float" | "Int" => 4,
            "Half" | "BFloat16" | "Short" => 2,
            "Double" | "Long" | "ComplexFloat" => 8,
            "ComplexDouble" => 16,
            _ => 1,
        }
    }
}

/// A tensor, by the key of its storage.
#[derive(Debug)]
pub(super) struct Tensor {
    pub(super) storage: Arc<str>,
    pub(super) kind: StorageType,
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
}

/// A value; others are meant by their numbers.
#[derive(Debug)]
enum PickleValue {
    Mark,
    Integer(i64),
    Text(Arc<str>),
    Tuple(Vec<u32>),
    List(Vec<u32>),
    Dict(Vec<(u32, u32)>),
    /// A class or function: its module and name.
    Global(Arc<str>),
    Storage {
        kind: StorageType,
        key: Arc<str>,
    },
    Tensor(Tensor),
    /// What a call of this name would have made, or anything else that no tensor is made of.
    Opaque(Arc<str>),
}

pub(super) struct Machine<'a> {
    rest: &'a [u8],
    values: Vec<PickleValue>,
    stack: Vec<u32>,
    memo: HashMap<u32, u32>,
}

/// Why a pickle is refused.
pub(super) type Refused<T> = std::result::Result<T, String>;

impl<'a> Machine<'a> {
    /// Runs `program` to its end; the value that it makes is the last.
    pub(super) fn run(program: &'a [u8]) -> Refused<Self> {
        let mut machine = Self { rest: program, values: Vec::new(), stack: Vec::new(), memo: HashMap::new() };
        while machine.step()? {
            if machine.values.len() > MOST_VALUES {
                return Err(format!("its pickle has more than {MOST_VALUES} values"));
            }
        }
        Ok(machine)
    }

    /// The tensors of the dict that the program made.
    pub(super) fn state_dict(&self) -> Refused<Vec<(String, &Tensor)>> {
        const NONE: &str = "it holds no tensors: save the model's state_dict";
        let root = self.stack.last().map(|&root| self.value(root));
        let entries = match root {
            Some(PickleValue::Dict(entries)) => entries,
            Some(PickleValue::Opaque(name) | PickleValue::Global(name)) => {
                return Err(format!("it is a {name}; {NONE}"));
            }
            _ => return Err(NONE.into()),
        };
        let mut found = HashMap::new();
        for &(key, value) in entries {
            if let (PickleValue::Text(name), PickleValue::Tensor(tensor)) =
                (self.value(key), self.value(value))
            {
                found.insert(name.to_string(), tensor);
            }
        }
        if found.is_empty() {
            return Err(NONE.into());
        }
        let mut found: Vec<_> = found.into_iter().collect();
        found.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(found)
    }

    fn value(&self, number: u32) -> &PickleValue {
        &self.values[number as usize]
    }

    /// Runs one instruction; returns whether there is a next one.
    fn step(&mut self) -> Refused<bool> {
        match self.take(1)?[0] {
            opcode::STOP => return Ok(false),
            opcode::PROTO => drop(self.take(1)?),
            opcode::FRAME => drop(self.take(8)?),
            opcode::MARK => self.push(PickleValue::Mark),
            opcode::NONE => self.push(PickleValue::Opaque("None".into())),
            opcode::NEWTRUE | opcode::NEWFALSE => self.push(PickleValue::Opaque("bool".into())),
            opcode::BINFLOAT => {
                self.take(8)?;
                self.push(PickleValue::Opaque("float".into()));
            }
            opcode::BININT1 => self.integer(u8::from_le_bytes)?,
            opcode::BININT2 => self.integer(u16::from_le_bytes)?,
            opcode::BININT => self.integer(i32::from_le_bytes)?,
            opcode::LONG1 => self.long()?,
            opcode::SHORT_BINUNICODE => {
                let n = self.u8()?;
                self.text(n as usize)?;
            }
            opcode::BINUNICODE => {
                let n = self.u32_le()?;
                self.text(n as usize)?;
            }
            opcode::SHORT_BINSTRING | opcode::SHORT_BINBYTES => {
                let n = self.u8()?;
                self.bytes(n as usize)?;
            }
            opcode::BINSTRING | opcode::BINBYTES => {
                let n = self.u32_le()?;
                self.bytes(n as usize)?;
            }
            opcode::BINPUT => {
                let number = self.u8()?;
                self.remember(number)?;
            }
            opcode::LONG_BINPUT => {
                let number = self.u32_le()?;
                self.remember(number)?;
            }
            opcode::MEMOIZE => self.remember(self.memo.len() as u32)?,
            opcode::BINGET => {
                let number = self.u8()?;
                self.recall(number)?;
            }
            opcode::LONG_BINGET => {
                let number = self.u32_le()?;
                self.recall(number)?;
            }
            opcode::GLOBAL => {
                let (module, name) = (self.line()?, self.line()?);
                self.push(PickleValue::Global(format!("{module}.{name}").into()));
            }
            opcode::STACK_GLOBAL => self.global()?,
            opcode::EMPTY_TUPLE => self.push(PickleValue::Tuple(Vec::new())),
            opcode::TUPLE1 => self.tuple(1)?,
            opcode::TUPLE2 => self.tuple(2)?,
            opcode::TUPLE3 => self.tuple(3)?,
            opcode::TUPLE => {
                let items = self.items()?;
                self.push(PickleValue::Tuple(items));
            }
            opcode::EMPTY_LIST => self.push(PickleValue::List(Vec::new())),
            opcode::APPEND => {
                let item = self.pop()?;
                self.extend(vec![item])?;
            }
            opcode::APPENDS => {
                let items = self.items()?;
                self.extend(items)?;
            }
            opcode::EMPTY_DICT => self.push(PickleValue::Dict(Vec::new())),
            opcode::SETITEM => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set(&[key, value])?;
            }
            opcode::SETITEMS => {
                let items = self.items()?;
                self.set(&items)?;
            }
            opcode::BINPERSID => self.persistent()?,
            opcode::REDUCE | opcode::NEWOBJ => self.call()?,
            // No tensor is made of the attributes that BUILD sets.
            opcode::BUILD | opcode::POP => drop(self.pop()?),
            opcode::POP_MARK => drop(self.items()?),
            code => {
                return Err(format!(
                    "its pickle has the instruction {code:#04x}, which torch.save does not use"
                ));
            }
        }
        Ok(true)
    }

    fn take(&mut self, n: usize) -> Refused<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(n).ok_or("its pickle is cut short")?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Refused<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u8(&mut self) -> Refused<u32> {
        Ok(self.take(1)?[0].into())
    }

    fn u32_le(&mut self) -> Refused<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn integer<const N: usize, T: Into<i64>>(&mut self, read: fn([u8; N]) -> T) -> Refused<()> {
        let number = read(self.array()?).into();
        self.push(PickleValue::Integer(number));
        Ok(())
    }

    fn line(&mut self) -> Refused<&'a str> {
        let end = self.rest.iter().position(|&byte| byte == b'\n').ok_or("its pickle is cut short")?;
        let line = &self.take(end + 1)?[..end];
        std::str::from_utf8(line).map_err(|_| "its pickle names a class by no text".into())
    }

    fn long(&mut self) -> Refused<()> {
        let n = self.u8()? as usize;
        let bytes = self.take(n)?;
        if n > 8 {
            self.push(PickleValue::Opaque("int".into()));
            return Ok(());
        }
        let sign = if bytes.last().is_some_and(|&byte| byte >= 0x80) { 0xff } else { 0 };
        let mut all = [sign; 8];
        all[..n].copy_from_slice(bytes);
        self.push(PickleValue::Integer(i64::from_le_bytes(all)));
        Ok(())
    }

    fn text(&mut self, n: usize) -> Refused<()> {
        let text =
            std::str::from_utf8(self.take(n)?).map_err(|_| "its pickle has a text that is no UTF-8")?;
        self.push(PickleValue::Text(text.into()));
        Ok(())
    }

    /// Texts of Python 2 are bytes.
    fn bytes(&mut self, n: usize) -> Refused<()> {
        let value = match std::str::from_utf8(self.take(n)?) {
            Ok(text) => PickleValue::Text(text.into()),
            Err(_) => PickleValue::Opaque("bytes".into()),
        };
        self.push(value);
        Ok(())
    }

    fn push(&mut self, value: PickleValue) {
        self.stack.push(self.values.len() as u32);
        self.values.push(value);
    }

    fn pop(&mut self) -> Refused<u32> {
        Ok(self.stack.pop().ok_or(SHORT)?)
    }

    fn remember(&mut self, number: u32) -> Refused<()> {
        let top = *self.stack.last().ok_or(SHORT)?;
        self.memo.insert(number, top);
        Ok(())
    }

    fn recall(&mut self, number: u32) -> Refused<()> {
        let value = self.memo.get(&number).ok_or("its pickle asks for a value that it did not keep")?;
        self.stack.push(*value);
        Ok(())
    }

    /// The class or function of a module that the two topmost texts name.
    fn global(&mut self) -> Refused<()> {
        let (name, module) = (self.pop()?, self.pop()?);
        let (PickleValue::Text(module), PickleValue::Text(name)) = (self.value(module), self.value(name))
        else {
            return Err("its pickle names a class by something else than text".into());
        };
        let global = format!("{module}.{name}").into();
        self.push(PickleValue::Global(global));
        Ok(())
    }

    /// Makes a tuple of the topmost values.
    fn tuple(&mut self, count: usize) -> Refused<()> {
        let first = self.stack.len().checked_sub(count).ok_or(SHORT)?;
        let items = self.stack.split_off(first);
        self.push(PickleValue::Tuple(items));
        Ok(())
    }

    /// Pops the stack down to and including the latest mark, and returns the values above it.
    fn items(&mut self) -> Refused<Vec<u32>> {
        let mark =
            self.stack.iter().rposition(|&n| matches!(self.value(n), PickleValue::Mark)).ok_or(SHORT)?;
        let items = self.stack.split_off(mark + 1);
        self.stack.pop();
        Ok(items)
    }

    fn extend(&mut self, items: Vec<u32>) -> Refused<()> {
        let top = *self.stack.last().ok_or(SHORT)?;
        match &mut self.values[top as usize] {
            PickleValue::List(list) => list.extend(items),
            PickleValue::Opaque(_) => {}
            _ => return Err("its pickle appends to what is no list".into()),
        }
        Ok(())
    }

    fn set(&mut self, items: &[u32]) -> Refused<()> {
        let top = *self.stack.last().ok_or(SHORT)?;
        match &mut self.values[top as usize] {
            PickleValue::Dict(dict) => {
                dict.extend(items.as_chunks::<2>().0.iter().map(|&[key, value]| (key, value)));
            }
            PickleValue::Opaque(_) => {}
            _ => return Err("its pickle sets an item of what is no dict".into()),
        }
        Ok(())
    }

    /// `("storage", class, key, device, elements)`.
    fn persistent(&mut self) -> Refused<()> {
        let id = self.pop()?;
        let PickleValue::Tuple(parts) = self.value(id) else {
            return Err("its pickle refers to something else than a storage".into());
        };
        let parts: Vec<&PickleValue> = parts.iter().map(|&part| self.value(part)).collect();
        let value = match parts[..] {
            [PickleValue::Text(tag), PickleValue::Global(class), PickleValue::Text(key), ..]
                if &**tag == "storage" =>
            {
                PickleValue::Storage { kind: StorageType(class.clone()), key: key.clone() }
            }
            _ => return Err("its pickle refers to something else than a storage".into()),
        };
        self.push(value);
        Ok(())
    }

    /// What a call makes is known for the few functions that tensors are made with; no other is run either.
    fn call(&mut self) -> Refused<()> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let (PickleValue::Tuple(arguments), PickleValue::Global(name)) =
            (self.value(arguments), self.value(function))
        else {
            self.push(PickleValue::Opaque("object".into()));
            return Ok(());
        };
        match &**name {
            "collections.OrderedDict" => self.push(PickleValue::Dict(Vec::new())),
            "torch._utils._rebuild_tensor_v2" => {
                let tensor = self.tensor(arguments)?;
                self.push(PickleValue::Tensor(tensor));
            }
            "torch._utils._rebuild_parameter" => {
                let inner = *arguments.first().ok_or(SHORT)?;
                self.stack.push(inner);
            }
            _ => {
                let name = name.clone();
                self.push(PickleValue::Opaque(name));
            }
        }
        Ok(())
    }

    /// `(storage, offset, shape, strides, …)`.
    fn tensor(&self, arguments: &[u32]) -> Refused<Tensor> {
        const WRONG: &str = "its pickle describes a tensor in an unknown way";
        let [storage, offset, shape, strides, ..] = arguments else { return Err(WRONG.into()) };
        let size = |number: &u32| match self.value(*number) {
            PickleValue::Integer(n) => usize::try_from(*n).map_err(|_| WRONG.to_owned()),
            _ => Err(WRONG.into()),
        };
        let sizes = |number: &u32| match self.value(*number) {
            PickleValue::Tuple(items) if items.len() <= 8 => {
                items.iter().map(size).collect::<Refused<Vec<_>>>()
            }
            _ => Err(WRONG.into()),
        };
        let PickleValue::Storage { kind, key } = self.value(*storage) else { return Err(WRONG.into()) };
        let (shape, strides) = (sizes(shape)?, sizes(strides)?);
        if shape.len() != strides.len() {
            return Err(WRONG.into());
        }
        Ok(Tensor { storage: key.clone(), kind: kind.clone(), offset: size(offset)?, shape, strides })
    }
}

const SHORT: &str = "its pickle takes more from its stack than lies there";
