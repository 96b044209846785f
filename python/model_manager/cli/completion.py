"""``completion``: the shell's completion of commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from .texts import Command, say


@click.command(
    cls=Command,
    help=say(
        'Print the completion script of a shell: eval "$(model-manager completion bash)".',
        'Bir kabuğun tamamlama betiğini yaz: eval "$(model-manager completion bash)".',
    ),
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    kind = get_completion_class(shell)
    assert kind is not None
    root = context.find_root()
    click.echo(kind(root.command, {}, "model-manager", "_MODEL_MANAGER_COMPLETE").source())
