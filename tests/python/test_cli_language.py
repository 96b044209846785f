"""Which variables decide the language of the command line."""

from __future__ import annotations

import os

import pytest
from conftest import run_python


@pytest.mark.parametrize(
    ("turkish", "settings"),
    [
        (False, {"LC_ALL": "C", "LANGUAGE": "tr"}),
        (False, {"LC_ALL": "POSIX", "LANGUAGE": "tr_TR:tr", "LANG": "tr_TR.UTF-8"}),
        (False, {"LC_MESSAGES": "C.UTF-8", "LANGUAGE": "tr", "LANG": "tr_TR.UTF-8"}),
        (False, {"LANG": "tr_TR.UTF-8", "LANGUAGE": "en"}),
        (True, {"LANG": "en_US.UTF-8", "LANGUAGE": "tr"}),
        (True, {"LANG": "C", "LC_ALL": "tr_TR.UTF-8"}),
        (True, {"LANG": "C", "LC_MESSAGES": "tr_TR.UTF-8", "LANGUAGE": "tr:en"}),
        (True, {"LANG": "tr_TR"}),
        (False, {"LANG": "trv_TW.UTF-8"}),
        (False, {}),
    ],
)
def test_the_language_is_that_of_gettext(turkish, settings):
    """The C locale asks for texts that are not translated, whatever LANGUAGE says."""
    cleared = dict.fromkeys(("LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG"), "")
    code = "from model_manager.cli.texts import say; print(say('en', 'tr'))"
    assert run_python(code, **{**cleared, **settings}).stdout == ("tr\n" if turkish else "en\n")


@pytest.mark.skipif(os.name != "posix", reason="elsewhere the locale is no variable")
def test_without_a_locale_texts_are_english():
    code = "from model_manager.cli.texts import say; print(say('en', 'tr'))"
    cleared = dict.fromkeys(("LC_ALL", "LC_MESSAGES", "LANG"), "")
    assert run_python(code, **cleared, LANGUAGE="tr").stdout == "en\n"
