//! The values of templates: Python's.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::limits::{MAX_DEPTH, RenderBudget};
use super::problem::{Problem, TemplateResult};
use crate::sync::Mutex;

/// A value.
#[derive(Debug, Clone)]
pub enum Value {
    /// No value, and why.
    Undefined(Arc<str>),
    /// `None`.
    None,
    /// A bool.
    Bool(bool),
    /// An int.
    Int(i128),
    /// A float.
    Float(f64),
    /// A str.
    Text(Arc<str>),
    /// A list.
    List(Arc<Items>),
    /// A tuple.
    Tuple(Arc<Items>),
    /// A dict.
    Dict(Arc<Dict>),
    /// `markupsafe.Markup`: what `escape` gives.
    Markup(Arc<str>),
    /// The keys, values or items of a dict.
    View(&'static str, Arc<Items>),
    /// `range(start, stop, step)`.
    Range(i128, i128, i128),
    /// A generator.
    Iter(Arc<Iter>),
    /// A method of a value: its place in the table of the value's type.
    Method(Arc<(Value, usize)>),
    /// A global function.
    Function(&'static str),
    /// A namespace, macro, loop, cycler or joiner, which the rendering owns.
    Object(usize),
}

/// The elements of a list or tuple.
#[derive(Debug)]
pub struct Items {
    pub(super) items: Vec<Value>,
    depth: usize,
    /// A group of `groupby`, with the attributes `grouper` and `list`.
    pub(super) group: bool,
}

/// A generator: what it has not given yet.
#[derive(Debug)]
pub struct Iter {
    pub(super) items: Mutex<VecDeque<Value>>,
    depth: usize,
}

/// A dict, in the order of its keys.
#[derive(Debug, Default)]
pub struct Dict {
    entries: Vec<(Value, Value)>,
    places: HashMap<DictKey, usize>,
    depth: usize,
}

/// What keys that are equal in Python have in common.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum DictKey {
    None,
    Int(i128),
    Float(u64),
    Text(Arc<str>),
    Tuple(Vec<DictKey>),
    Undefined,
}

impl DictKey {
    pub(super) fn of(value: &Value, budget: &mut RenderBudget) -> TemplateResult<Self> {
        budget.steps(1)?;
        Ok(match value {
            Value::None => Self::None,
            Value::Bool(value) => Self::Int(i128::from(*value)),
            Value::Int(value) => Self::Int(*value),
            Value::Float(value) if value.fract() == 0.0 && value.abs() < 1e30 => Self::Int(*value as i128),
            Value::Float(value) => Self::Float(value.to_bits()),
            Value::Text(text) | Value::Markup(text) => {
                budget.text(text.len())?;
                Self::Text(text.clone())
            }
            Value::Tuple(items) => Self::Tuple(
                items.items.iter().map(|item| Self::of(item, budget)).collect::<TemplateResult<_>>()?,
            ),
            Value::Undefined(_) => Self::Undefined,
            Value::List(_) | Value::Dict(_) | Value::View(..) => {
                return Err(Problem::failed(format!("unhashable type: '{}'", value.type_name())));
            }
            _ => return Err(Problem::unsupported(format!("a {} as a key", value.type_name()))),
        })
    }
}

fn deeper<'v>(values: impl Iterator<Item = &'v Value>) -> TemplateResult<usize> {
    let depth = 1 + values.map(Value::depth).max().unwrap_or(0);
    if depth > MAX_DEPTH {
        return Err(Problem::limit(format!("it nests values more than {MAX_DEPTH} levels deep")));
    }
    Ok(depth)
}

impl Dict {
    /// Sets the value of `key`; a key that is there keeps its place.
    pub(super) fn insert(
        &mut self,
        key: Value,
        value: Value,
        budget: &mut RenderBudget,
    ) -> TemplateResult<()> {
        self.depth = self.depth.max(deeper([&key, &value].into_iter())?);
        let hash = DictKey::of(&key, budget)?;
        match self.places.get(&hash) {
            Some(place) => self.entries[*place].1 = value,
            None => {
                self.places.insert(hash, self.entries.len());
                self.entries.push((key, value));
            }
        }
        Ok(())
    }

    pub(super) fn get(&self, key: &Value, budget: &mut RenderBudget) -> TemplateResult<Option<&Value>> {
        let place = self.places.get(&DictKey::of(key, budget)?);
        Ok(place.map(|place| &self.entries[*place].1))
    }

    pub(super) fn get_text(&self, key: &str) -> Option<&Value> {
        let place = self.places.get(&DictKey::Text(key.into()));
        place.map(|place| &self.entries[*place].1)
    }

    pub(super) fn entries(&self) -> &[(Value, Value)] {
        &self.entries
    }
}

impl Value {
    /// A str.
    pub fn text(text: impl Into<Arc<str>>) -> Self {
        Self::Text(text.into())
    }

    /// A list.
    ///
    /// # Errors
    /// [`Problem`] when it nests too deep.
    pub fn list(items: Vec<Value>) -> TemplateResult<Self> {
        Ok(Self::List(Arc::new(Items { depth: deeper(items.iter())?, items, group: false })))
    }

    /// A tuple.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub fn tuple(items: Vec<Value>) -> TemplateResult<Self> {
        Ok(Self::Tuple(Arc::new(Items { depth: deeper(items.iter())?, items, group: false })))
    }

    /// A dict.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub fn dict(entries: impl IntoIterator<Item = (Value, Value)>) -> TemplateResult<Self> {
        Self::dict_within(entries, &mut RenderBudget::new())
    }

    pub(super) fn dict_within(
        entries: impl IntoIterator<Item = (Value, Value)>,
        budget: &mut RenderBudget,
    ) -> TemplateResult<Self> {
        let mut dict = Dict::default();
        for (key, value) in entries {
            dict.insert(key, value, budget)?;
        }
        Ok(Self::Dict(Arc::new(dict)))
    }

    pub(super) fn group(items: Vec<Value>) -> TemplateResult<Self> {
        Ok(Self::Tuple(Arc::new(Items { depth: deeper(items.iter())?, items, group: true })))
    }

    pub(super) fn view(kind: &'static str, items: Vec<Value>) -> TemplateResult<Self> {
        Ok(Self::View(kind, Arc::new(Items { depth: deeper(items.iter())?, items, group: false })))
    }

    pub(super) fn iter(items: Vec<Value>) -> TemplateResult<Self> {
        let depth = deeper(items.iter())?;
        Ok(Self::Iter(Arc::new(Iter { items: Mutex::new(items.into()), depth })))
    }

    pub(super) fn undefined(why: impl Into<Arc<str>>) -> Self {
        Self::Undefined(why.into())
    }

    fn depth(&self) -> usize {
        match self {
            Self::List(items) | Self::Tuple(items) | Self::View(_, items) => items.depth,
            Self::Dict(dict) => dict.depth.max(1),
            Self::Iter(iter) => iter.depth,
            Self::Method(method) => method.0.depth() + 1,
            _ => 0,
        }
    }

    pub(super) fn is_undefined(&self) -> bool {
        matches!(self, Self::Undefined(_))
    }

    /// The text of a str.
    pub(super) fn as_text(&self) -> Option<&Arc<str>> {
        match self {
            Self::Text(text) | Self::Markup(text) => Some(text),
            _ => None,
        }
    }

    /// An int, as which a bool counts too.
    pub(super) fn as_int(&self) -> Option<i128> {
        match self {
            Self::Int(value) => Some(*value),
            Self::Bool(value) => Some(i128::from(*value)),
            _ => None,
        }
    }

    pub(super) fn as_float(&self) -> Option<f64> {
        match self {
            Self::Float(value) => Some(*value),
            other => other.as_int().map(|value| value as f64),
        }
    }

    /// The name of its Python type.
    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Self::Undefined(_) => "Undefined",
            Self::None => "NoneType",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Float(_) => "float",
            Self::Text(_) => "str",
            Self::Markup(_) => "Markup",
            Self::List(_) => "list",
            Self::Tuple(_) => "tuple",
            Self::Dict(_) => "dict",
            Self::View(kind, _) => kind,
            Self::Range(..) => "range",
            Self::Iter(_) => "generator",
            Self::Method(_) => "method",
            Self::Function(_) => "function",
            Self::Object(_) => "object",
        }
    }

    /// Python's truth of a value. Objects are true.
    pub(super) fn truth(&self) -> bool {
        match self {
            Self::Undefined(_) | Self::None => false,
            Self::Bool(value) => *value,
            Self::Int(value) => *value != 0,
            Self::Float(value) => *value != 0.0,
            Self::Text(text) | Self::Markup(text) => !text.is_empty(),
            Self::List(items) | Self::Tuple(items) | Self::View(_, items) => !items.items.is_empty(),
            Self::Dict(dict) => !dict.entries.is_empty(),
            Self::Range(start, stop, step) => range_length(*start, *stop, *step) > 0,
            _ => true,
        }
    }

    /// `len(value)`.
    pub(super) fn length(&self, budget: &mut RenderBudget) -> TemplateResult<usize> {
        Ok(match self {
            Self::Undefined(_) => 0,
            Self::Text(text) | Self::Markup(text) => {
                budget.text(text.len())?;
                text.chars().count()
            }
            Self::List(items) | Self::Tuple(items) | Self::View(_, items) => items.items.len(),
            Self::Dict(dict) => dict.entries.len(),
            Self::Range(start, stop, step) => range_length(*start, *stop, *step),
            other => {
                return Err(Problem::failed(format!("object of type '{}' has no len()", other.type_name())));
            }
        })
    }

    /// What a loop over the value gives. A generator is then used up.
    pub(super) fn elements(&self, budget: &mut RenderBudget) -> TemplateResult<Vec<Value>> {
        let items = match self {
            Self::Undefined(_) => Vec::new(),
            Self::List(items) | Self::Tuple(items) | Self::View(_, items) => {
                budget.memory(items.items.len() * 32)?;
                items.items.clone()
            }
            Self::Dict(dict) => {
                budget.memory(dict.entries.len() * 32)?;
                dict.entries.iter().map(|(key, _)| key.clone()).collect()
            }
            Self::Text(text) | Self::Markup(text) => {
                budget.memory(text.len() * 64)?;
                let mut buffer = [0; 4];
                text.chars().map(|c| Value::text(&*c.encode_utf8(&mut buffer))).collect()
            }
            Self::Range(start, stop, step) => {
                let length = range_length(*start, *stop, *step);
                budget.memory(length * 32)?;
                (0..length).map(|at| Value::Int(start + step * at as i128)).collect()
            }
            Self::Iter(iter) => std::mem::take(&mut *iter.items.lock()).into(),
            other => return Err(Problem::failed(format!("'{}' object is not iterable", other.type_name()))),
        };
        budget.steps(items.len())?;
        Ok(items)
    }

    /// The error of any operation on an undefined value.
    pub(super) fn defined(&self) -> TemplateResult<()> {
        match self {
            Self::Undefined(why) => Err(Problem::failed(&**why)),
            _ => Ok(()),
        }
    }
}

pub(super) fn range_length(start: i128, stop: i128, step: i128) -> usize {
    let span = if step > 0 { stop.saturating_sub(start) } else { start.saturating_sub(stop) };
    if span <= 0 { 0 } else { usize::try_from((span - 1) / step.abs().max(1) + 1).unwrap_or(usize::MAX) }
}
