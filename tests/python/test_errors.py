"""The exceptions: one for each error of the core, catchable as built-ins, with readable messages."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest
from conftest import ROOT
from model_manager import ModelManagerError, _core, errors

CLASSES = [getattr(errors, name) for name in errors.__all__]


def test_each_error_of_the_core_has_a_class_and_each_class_an_error():
    """Python code alone raises `InputTypeError`."""
    source = (ROOT / "src" / "error.rs").read_text(encoding="utf-8")
    enum = source[source.index("pub enum Error {") :].split("\n}\n", 1)[0]
    variants = re.findall(r"^    ([A-Z]\w+)(?:,| \{|\()", enum, re.MULTILINE)
    assert len(variants) > 10
    mapped = _core._error_classes()
    assert set(mapped) == set(variants)
    assert set(mapped.values()) == set(CLASSES) - {ModelManagerError, errors.InputTypeError}
    assert len(set(mapped.values())) == len(mapped)


def test_all_names_every_class():
    defined = {name for name, value in vars(errors).items() if inspect.isclass(value) and not name.startswith("_")}
    assert defined == set(errors.__all__)


@pytest.mark.parametrize("error", CLASSES)
def test_each_is_documented_and_a_built_in(error):
    assert issubclass(error, ModelManagerError)
    assert inspect.getdoc(error).endswith(".")
    if error is not ModelManagerError:
        assert any(
            base.__module__ == "builtins" and base not in {Exception, BaseException, object} for base in error.__mro__
        )


def test_errors_name_the_argument_to_blame(make_manager):
    manager = make_manager()
    for call, param, code in (
        (lambda: manager.embed("a", truncate_dim=99_999), "truncate_dim", None),
        (lambda: manager.embed("a", truncate_dim=-1), "truncate_dim", None),
        (lambda: manager.embed("a", truncate_dim="8"), "truncate_dim", None),
        (lambda: manager.embed("a", keep_alive="soon"), "keep_alive", None),
        (lambda: manager.embed("a", "english_sentence", prompt_name="no such"), "prompt_name", None),
        (lambda: manager.generate("a", temperature=-1), "temperature", None),
        (lambda: manager.generate("a", top_k="many"), "top_k", None),
        (lambda: manager.generate("a", seed=2**64), "seed", None),
        (lambda: manager.generate("a", stop=5), "stop", None),
    ):
        with pytest.raises((ModelManagerError, TypeError)) as caught:
            call()
        assert (caught.value.param, getattr(caught.value, "code", None)) == (param, code)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert copy.param == "stop"
    with pytest.raises(errors.InputError) as caught:
        manager.embed("\ud800")
    assert (caught.value.param, caught.value.code) == (None, None)


def test_which_errors_a_retry_may_get_past():
    transient = {error for error in CLASSES if error.transient}
    assert transient == {
        errors.DownloadError,
        errors.OverloadedError,
        errors.RemoteError,
        errors.WaitTimeoutError,
    }


@pytest.mark.parametrize("error", CLASSES)
def test_messages_and_pickles(error):
    made = error("what went wrong, and what to do")
    assert str(made) == "what went wrong, and what to do"
    copy = pickle.loads(pickle.dumps(made))
    assert type(copy) is error
    assert str(copy) == str(made)
