//! `Config`: the settings as an immutable Python object, made from the one table of settings.

use std::path::PathBuf;
use std::sync::Arc;

use pyo3::exceptions::{PyException, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple, PyType};

use super::errors::OrRaise;
use super::gil::interrupted;
use super::host::PythonHost;
use super::utf8::{Utf8, shortened};
use crate::Error;
use crate::config::{SettingValue, Settings, for_each_setting};
use crate::models::ResolveOptions;

/// Settings of a manager, validated once and immutable.
#[pyclass(frozen, eq, name = "Config", module = "model_manager._core")]
#[derive(PartialEq)]
pub(super) struct PyConfig(pub(super) Settings);

macro_rules! define_config {
    ($($(#[doc = $doc:literal])+ $name:ident: $type:ty = $default:expr, $environment:literal;)+) => {
        #[pymethods]
        impl PyConfig {
            #[new]
            #[pyo3(signature = (**settings))]
            fn new(py: Python<'_>, settings: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
                let keywords = keywords(settings)?;
                let settings = Settings::resolve(&PythonHost, pairs(&keywords));
                interrupted()?;
                settings.or_raise(py).map(Self)
            }

            $(
                $(#[doc = $doc])+
                #[getter]
                fn $name<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
                    to_py(py, &self.0.get(stringify!($name)).unwrap_or(SettingValue::None))
                }
            )+

            /// Every setting: name, environment variable, default, type, meaning.
            #[staticmethod]
            fn fields(py: Python<'_>) -> PyResult<Bound<'_, PyList>> {
                let fields = PyList::empty(py);
                for field in Settings::fields() {
                    let row = PyDict::new(py);
                    row.set_item("name", field.name)?;
                    row.set_item("environment", field.environment)?;
                    row.set_item("default", to_py(py, &field.default)?)?;
                    row.set_item("type", field.annotation)?;
                    row.set_item("doc", field.doc)?;
                    fields.append(row)?;
                }
                Ok(fields)
            }

            /// Every setting as {name: value}.
            fn to_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
                let all = PyDict::new(py);
                $(all.set_item(stringify!($name), self.$name(py)?)?;)+
                Ok(all)
            }

            fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
                // Without secrets: a representation ends up in logs.
                let settings: Vec<String> = [$((stringify!($name), self.$name(py)?)),+]
                    .iter()
                    .map(|(name, value)| Ok(format!("{name}={}", shown(name, value.repr()?.to_str()?))))
                    .collect::<PyResult<_>>()?;
                Ok(format!("Config({})", settings.join(", ")))
            }

            fn __hash__(&self, py: Python<'_>) -> PyResult<isize> {
                PyTuple::new(py, [$(self.$name(py)?),+])?.hash()
            }

            /// By keywords: the same settings wherever it is unpickled, whatever the environment there.
            fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyAny>, (Bound<'py, PyType>, Bound<'py, PyDict>))> {
                let rebuild = py.import("model_manager._core")?.getattr("_config_from")?;
                Ok((rebuild, (PyType::new::<Self>(py), self.to_dict(py)?)))
            }
        }
    };
}
for_each_setting!(define_config);

/// The representation of a setting without what is secret: a password, or the key in an address.
fn shown(name: &str, value: &str) -> String {
    if name.ends_with("_secret") && value != "None" {
        return "'***'".to_owned();
    }
    let hide = |address: &str| {
        let address = crate::remote::shown(address);
        match address.split_once('?') {
            // That of a socket has its user and password there.
            Some((path, _)) if name == "cache_url" => format!("{path}?***"),
            _ => address.into_owned(),
        }
    };
    let parts: Vec<_> = value.split(',').collect();
    if name == "cache_url" && value != "None" && parts.iter().any(|part| !part.contains("://")) {
        // A comma of a password, it seems: where that begins and ends is not known.
        return "'***'".to_owned();
    }
    parts.into_iter().map(hide).collect::<Vec<_>>().join(",")
}

/// The folder of the hub's models with these settings.
#[pyfunction]
pub(super) fn _hub_cache(config: &PyConfig) -> PyResult<PathBuf> {
    let mut options = ResolveOptions::new(Arc::new(PythonHost));
    options.cache_dir = config.0.cache_dir.as_ref().map(|folder| folder.0.clone());
    let cache = options.cache();
    interrupted().map(|()| cache)
}

/// `Config(**settings)`, for pickle.
#[pyfunction]
pub(super) fn _config_from<'py>(
    class: &Bound<'py, PyAny>,
    settings: &Bound<'py, PyDict>,
) -> PyResult<Bound<'py, PyAny>> {
    class.call((), Some(settings))
}

/// Keyword arguments as settings. An unknown name is a `TypeError`, as for any Python function.
pub(super) fn keywords(keywords: Option<&Bound<'_, PyDict>>) -> PyResult<Vec<(String, SettingValue)>> {
    let Some(keywords) = keywords else { return Ok(Vec::new()) };
    let known: Vec<_> = Settings::fields().iter().map(|field| field.name).collect();
    keywords
        .iter()
        .map(|(name, value)| {
            let name: Utf8 = name.extract()?;
            if !known.contains(&&*name) {
                let shown: String = name.chars().take(80).collect();
                let message = format!("there is no setting {shown:?}; {}", Settings::meant_by(&name));
                return Err(PyTypeError::new_err(message));
            }
            let value = from_py(&name, &value)?;
            Ok((name.into(), value))
        })
        .collect()
}

pub(super) fn pairs(keywords: &[(String, SettingValue)]) -> impl Iterator<Item = (&str, SettingValue)> {
    keywords.iter().map(|(name, value)| (name.as_str(), value.clone()))
}

fn from_py(name: &str, value: &Bound<'_, PyAny>) -> PyResult<SettingValue> {
    Ok(if value.is_none() {
        SettingValue::None
    } else if value.is_instance_of::<PyBool>() {
        SettingValue::Bool(value.extract()?)
    } else if value.is_instance_of::<PyInt>() {
        whole_number(name, value)?
    } else if value.is_instance_of::<PyFloat>() {
        SettingValue::Float(value.extract()?)
    } else if let Ok(text) = value.cast::<PyString>() {
        SettingValue::Text(text.extract::<Utf8>()?.into())
    } else if let Some(path) = found(value, "__fspath__")?.and_then(|path| path.extract::<Utf8>().ok()) {
        SettingValue::Text(path.into())
    } else if let Some(number) = found(value, "__index__")? {
        // numpy's integers.
        whole_number(name, &number)?
    } else {
        SettingValue::Other(value.get_type().name()?.to_string())
    })
}

/// An int, as one of 64 bits or by its digits.
///
/// # Errors
/// `ConfigError` for one that no float holds, which is beyond every setting.
fn whole_number(name: &str, value: &Bound<'_, PyAny>) -> PyResult<SettingValue> {
    if let Ok(number) = value.extract() {
        return Ok(SettingValue::Int(number));
    }
    // Not by the value's own class, which may write it as it likes. Python writes only some thousands of digits.
    let digits = value.py().get_type::<PyInt>().call_method1("__repr__", (value,));
    let digits = digits.and_then(|digits| digits.extract::<String>());
    if let (Ok(_), Ok(digits)) = (value.extract::<f64>(), &digits) {
        return Ok(SettingValue::Large(digits.clone()));
    }
    let shown = digits.map_or_else(|_| "…".into(), |digits| shortened(&digits));
    Err(Error::Config { setting: name.into(), value: shown, reason: "is too large".into() })
        .or_raise(value.py())
}

/// What the method of `value` returns; `None` without one. What a signal handler raises there (Ctrl-C) is raised.
fn found<'py>(value: &Bound<'py, PyAny>, method: &str) -> PyResult<Option<Bound<'py, PyAny>>> {
    match value.call_method0(method) {
        Err(raised) if !raised.is_instance_of::<PyException>(value.py()) => Err(raised),
        found => Ok(found.ok()),
    }
}

fn to_py<'py>(py: Python<'py>, value: &SettingValue) -> PyResult<Bound<'py, PyAny>> {
    Ok(match value {
        SettingValue::None | SettingValue::Other(_) => py.None().into_bound(py),
        SettingValue::Bool(value) => PyBool::new(py, *value).to_owned().into_any(),
        SettingValue::Int(value) => value.into_pyobject(py)?.into_any(),
        SettingValue::Large(digits) => py.get_type::<PyInt>().call1((digits,))?,
        SettingValue::Float(value) => value.into_pyobject(py)?.into_any(),
        SettingValue::Text(value) => value.into_pyobject(py)?.into_any(),
    })
}
