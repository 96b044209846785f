"""The languages of the help: Turkish for a Turkish locale, else English. Messages and results are English."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def _is_turkish() -> bool:
    """Whether the locale is Turkish, by the first of these variables that is set, as in gettext."""
    for name in ("LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG"):
        if value := os.environ.get(name):
            return value.startswith("tr")
    return False


TURKISH = _is_turkish()

_CLICK_WORDS = {"Options": "Seçenekler", "Commands": "Komutlar"}


def say(english: str, turkish: str) -> str:
    """The text in the language of the locale."""
    return turkish if TURKISH else english


class _Formatter(click.HelpFormatter):
    def write_usage(self, prog: str, args: str = "", prefix: str | None = None) -> None:
        super().write_usage(prog, args, say("Usage: ", "Kullanım: ") if prefix is None else prefix)

    def write_heading(self, heading: str) -> None:
        super().write_heading(_CLICK_WORDS.get(heading, heading) if TURKISH else heading)


class HelpContext(click.Context):
    """A context with click's own words in the language of the help."""

    formatter_class = _Formatter


class Command(click.Command):
    """A command whose help is in one language."""

    context_class = HelpContext

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        """Click's help option with a translated text."""
        option = super().get_help_option(ctx)
        if option is not None:
            option.help = say("Show this and exit.", "Bunu göster ve çık.")
        return option


def option(*names: str, help: tuple[str, str], **settings: Any) -> Callable[[F], F]:  # noqa: A002  click's own name
    """`click.option` with the help in both languages."""
    return click.option(*names, help=say(*help), **settings)
