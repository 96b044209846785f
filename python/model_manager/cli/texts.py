"""The language of the command line: Turkish for a Turkish locale, else English.

Help and the results of a few commands are translated. Errors and warnings are English, because those of the core are,
and so is the report of the machine, which quotes them; the Turkish `doctor MODEL` quotes the reason of the core
after a sentence of its own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def _is_turkish() -> bool:
    """Whether texts are Turkish, by the rule of gettext: LANGUAGE goes first, unless the locale is C. Scripts set that
    to get texts that are not translated.
    """
    named = (os.environ.get(name) for name in ("LC_ALL", "LC_MESSAGES", "LANG"))
    locale = next(filter(None, named), "C" if os.name == "posix" else "")
    if _language(locale) in ("C", "POSIX"):
        return False
    return _language(os.environ.get("LANGUAGE") or locale) == "tr"


def _language(locale: str) -> str:
    """The language of ``tr_TR.UTF-8``, or of the first one in a list such as ``tr:en``."""
    return re.split("[_.@:]", locale, maxsplit=1)[0]


TURKISH = _is_turkish()

_USAGE = ("Usage: ", "Kullanım: ")
_CLICK_WORDS = {"Options": "Seçenekler", "Commands": "Komutlar"}


def say(english: str, turkish: str) -> str:
    """The text in the language of the locale."""
    return turkish if TURKISH else english


class _Formatter(click.HelpFormatter):
    def write_usage(self, prog: str, args: str = "", prefix: str | None = None) -> None:
        super().write_usage(prog, args, say(*_USAGE) if prefix is None else prefix)

    def write_heading(self, heading: str) -> None:
        super().write_heading(_CLICK_WORDS.get(heading, heading) if TURKISH else heading)

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        if TURKISH:
            rows = [(term, _EXTRA.sub(_translated, text)) for term, text in rows]
        super().write_dl(rows, col_max, col_spacing)


_EXTRA = re.compile(r"\[[^\[]*\]$")
"""What click adds to the help of an option."""


def _translated(extra: re.Match[str]) -> str:
    return extra[0].replace("default: ", "varsayılan: ").replace("required", "gerekli")


class HelpContext(click.Context):
    """A context with click's own words in the language of the help."""

    formatter_class = _Formatter


class Command(click.Command):
    """A command whose help is in one language."""

    context_class = HelpContext

    def get_usage(self, ctx: click.Context) -> str:
        """The line above an error, which is English."""
        return super().get_usage(ctx).replace(_USAGE[1], _USAGE[0], 1)

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        """Click's help option with a translated text."""
        option = super().get_help_option(ctx)
        if option is not None:
            option.help = say("Show this and exit.", "Bunu göster ve çık.")
        return option


def option(*names: str, help: tuple[str, str], **settings: Any) -> Callable[[F], F]:  # noqa: A002  click's own name
    """`click.option` with the help in both languages."""
    return click.option(*names, help=say(*help), **settings)
