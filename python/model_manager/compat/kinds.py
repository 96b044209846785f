"""Properties whose values live in slots of a manager, and the rule for classes that have several."""

from __future__ import annotations

from .._arguments import argument_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Any


class KindProperty:
    """A property of a kind. In a class of managers the kind is the name of its slot."""

    kind: str


def check_kinds(owner: type, taken: Collection[str]) -> None:
    """Refuse properties of a class of managers that cannot have slots of their own.

    Args:
        owner: The class.
        taken: The slots of sentence models, which embed texts for the manager.
    """
    attributes: dict[str, Any] = {}
    for base in reversed(owner.__mro__):
        attributes.update(vars(base))
    known: dict[str, tuple[str, KindProperty]] = {}
    title = owner.__name__
    for name, model in attributes.items():
        if not isinstance(model, KindProperty):
            continue
        where = f"{title}.{name}: lazy_load_model({model.kind!r})"
        if model.kind in taken:
            raise argument_error(
                "kind",
                f"{where} would replace the sentence model, and an object cannot embed for the manager; choose another "
                f"kind, or give the manager another model with register({model.kind!r}, source)",
            )
        first, same = known.setdefault(model.kind, (name, model))
        if same is not model:
            raise argument_error(
                "kind",
                f"{where} is the kind of {title}.{first} too, and a kind is one slot; give one of them another kind",
            )
