//! The arguments of a call, after they are evaluated.

use std::sync::Arc;

use super::problem::{Problem, TemplateResult};
use super::value::Value;

/// Positional and named values.
#[derive(Debug, Default, Clone)]
pub(super) struct ArgumentValues {
    pub(super) positional: Vec<Value>,
    pub(super) named: Vec<(Arc<str>, Value)>,
}

impl ArgumentValues {
    pub(super) fn of(positional: Vec<Value>) -> Self {
        Self { positional, named: Vec::new() }
    }

    /// The values of `N` parameters, the first `required` of which must be given.
    pub(super) fn bind<const N: usize>(
        self,
        what: &str,
        names: [&str; N],
        required: usize,
    ) -> TemplateResult<[Option<Value>; N]> {
        let mut bound = [const { None }; N];
        if self.positional.len() > N {
            return Err(Problem::failed(format!(
                "{what} takes at most {N} arguments, {} were given",
                self.positional.len()
            )));
        }
        for (place, value) in bound.iter_mut().zip(self.positional) {
            *place = Some(value);
        }
        for (name, value) in self.named {
            let place = names.iter().position(|known| *known == &*name);
            let Some(place) = place else {
                return Err(Problem::failed(format!("{what} got an unexpected keyword argument '{name}'")));
            };
            if bound[place].replace(value).is_some() {
                return Err(Problem::failed(format!("{what} got multiple values for argument '{name}'")));
            }
        }
        match bound.iter().take(required).position(Option::is_none) {
            Some(missing) => Err(Problem::failed(format!("{what} misses the argument '{}'", names[missing]))),
            None => Ok(bound),
        }
    }

    pub(super) fn none(self, what: &str) -> TemplateResult<()> {
        self.bind::<0>(what, [], 0).map(|_| ())
    }
}

/// A call of a method, filter or test: its name, what it is called on and its arguments.
pub(super) struct NamedCall<'n, S> {
    pub(super) name: &'n str,
    pub(super) subject: S,
    pub(super) given: ArgumentValues,
}

impl<S> NamedCall<'_, S> {
    /// The subject, and the values of `N` parameters: see [`ArgumentValues::bind`].
    pub(super) fn bind<const N: usize>(
        self,
        names: [&str; N],
        required: usize,
    ) -> TemplateResult<(S, [Option<Value>; N])> {
        let values = self.given.bind(self.name, names, required)?;
        Ok((self.subject, values))
    }

    /// The subject of a call without arguments.
    pub(super) fn alone(self) -> TemplateResult<S> {
        self.given.none(self.name)?;
        Ok(self.subject)
    }
}

/// An argument that must be an int.
pub(super) fn int(value: Option<Value>, default: i128, what: &str) -> TemplateResult<i128> {
    match value {
        None => Ok(default),
        Some(value) => value
            .as_int()
            .ok_or_else(|| Problem::failed(format!("{what} must be an integer, not {}", value.type_name()))),
    }
}

/// An argument that must be a str.
pub(super) fn text(value: Option<Value>, default: &str, what: &str) -> TemplateResult<Arc<str>> {
    match value {
        None => Ok(default.into()),
        Some(Value::Text(text)) => Ok(text),
        Some(value) => Err(Problem::failed(format!("{what} must be str, not {}", value.type_name()))),
    }
}

impl ArgumentValues {
    /// [`Self::bind`] of parameters that cannot be named.
    pub(super) fn bind_positional<const N: usize>(
        self,
        what: &str,
        required: usize,
    ) -> TemplateResult<[Option<Value>; N]> {
        if let Some((name, _)) = self.named.first() {
            return Err(Problem::failed(format!("{what}() takes no keyword argument '{name}'")));
        }
        self.bind(what, [""; N], required)
    }
}
