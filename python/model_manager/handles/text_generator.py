"""A text generator that is called like a transformers pipeline, for code written for `pipeline("text-generation")`.

The object is a handle: it names a slot and holds no weights. An idle generator leaves memory while the handle exists,
and the next call loads it again.
"""

from __future__ import annotations

import itertools
import logging
import operator
from collections import deque
from collections.abc import Mapping

from .._arguments import a_flag, a_manager, a_text, an_int, argument_error, type_error, unexpected
from .._async import acomplete
from .._bridge import in_thread
from ..errors import InputError, OverloadedError
from .sentence_model import state_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any, TypeAlias

    from .._core import Manager, TextStream
    from .._types import GeneratorDescription

    Messages: TypeAlias = Sequence[Mapping[str, Any]]
    """A conversation: mappings with the keys ``role`` and ``content``."""
    Generated: TypeAlias = list[dict[str, Any]]
    """One dictionary per answer, with the key ``generated_text``."""

logger = logging.getLogger(__name__)

NEW_TOKENS = 256
"""Tokens that a pipeline writes when a call sets no length."""
_MAX_CONCURRENT = 16
"""Answers of one call that are decoded at the same time."""
_IGNORED = frozenset({"batch_size", "clean_up_tokenization_spaces", "pad_token_id", "use_cache"})
"""Keywords of a pipeline that change no answer here: there is no padding, and text is never cleaned up."""
_OPTIONS = _IGNORED | frozenset(
    {
        *(
            "chat_template_kwargs",
            "continue_final_message",
            "do_sample",
            "eos_token_id",
            "keep_alive",
            "max_length",
            "max_new_tokens",
            "min_new_tokens",
            "min_p",
        ),
        *("no_repeat_ngram_size", "num_return_sequences", "prefix_scope", "repetition_penalty", "return_full_text"),
        *("seed", "stop", "stop_strings", "temperature", "timeout", "top_k", "top_p", "truncation", "user"),
    }
)
"""All keywords of a call."""


class Tokenizer:
    """What callers use of a pipeline's tokenizer. All of it loads the model."""

    __slots__ = ("_generator",)

    def __init__(self, generator: TextGenerator) -> None:
        self._generator = generator

    @property
    def eos_token_id(self) -> int | None:
        """The token that ends a text; None when the model has none."""
        return self._generator.describe()["eos_token_id"]

    @property
    def eos_token(self) -> str | None:
        """The text of that token."""
        return self._generator.describe()["eos_token"]

    @property
    def model_max_length(self) -> int:
        """Tokens of prompt and answer together that the model holds."""
        return self._generator.context_length

    def apply_chat_template(
        self,
        conversation: Messages,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = True,
        **variables: Any,
    ) -> str:
        """The prompt of a conversation as text, for ``tokenize=False`` only: `ModelManager.apply_chat_template` with
        the defaults of transformers.
        """
        if tokenize is not False:
            raise argument_error("tokenize", "tokenize: the result is a text; pass tokenize=False")
        given = {"tools": tools, "documents": documents}
        variables.update((name, value) for name, value in given.items() if value is not None)
        manager, slot = self._generator._manager, self._generator.name
        return manager.apply_chat_template(
            list(conversation),
            slot,
            chat_template=chat_template,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            **variables,
        )


class TextGenerator:
    """The generator of one slot of a manager, called like a transformers text-generation pipeline."""

    __slots__ = ("_manager", "name")

    name: str
    """The slot."""
    task = "text-generation"

    def __init__(self, manager: Manager, name: str = "text_generator") -> None:
        self._manager: Manager = a_manager(manager)
        self.name = a_text("name", name)

    def __call__(self, text_inputs: str | Sequence[str] | Messages | Sequence[Messages], **options: Any) -> Any:
        """Continue one or several texts, or answer one or several conversations (messages with role and content).
        Names and meanings of the options are those of transformers, with two exceptions: nothing is drawn without
        `do_sample`, and the stop text that ended an answer is not part of it.

        Args:
            text_inputs: The texts to continue, or the conversations to answer.
            options: max_new_tokens (256 without it and `max_length`), max_length (tokens, the prompt's included),
                min_new_tokens, do_sample (False: the likeliest token at every step), temperature, top_k (50), top_p,
                min_p, repetition_penalty, no_repeat_ngram_size, stop or stop_strings, seed, timeout, keep_alive,
                prefix_scope, chat_template_kwargs (variables of the chat template, for conversations only);
                continue_final_message (the answer continues the last message; None: if that is the assistant's);
                num_return_sequences (more than 1 needs do_sample); return_full_text (True: the prompt in front);
                truncation (a prompt that reaches `max_length` alone gets an empty answer instead of an error);
                eos_token_id (the model's own). pad_token_id, clean_up_tokenization_spaces, batch_size and use_cache
                are accepted and change nothing.

        Returns:
            ``[{"generated_text": str}]``, one dictionary per sequence; for several texts a list of such lists. For a
            conversation the value is the messages with the answer appended, to the last message if it is continued,
            or the answer alone when `return_full_text` is False.

        Raises:
            InputError: Wrong values, an empty prompt, one longer than the context or than `max_length` allows.
            TypeError: An unknown option, or a value of the wrong type.
            ModelManagerError: The errors of loading the model.
        """
        call = _Call(self, options)
        inputs, single = _inputs(text_inputs)
        if call.end is not None:
            call.check_end(self.describe())
        wanted = [(index, params) for index in range(len(inputs)) for params in call.sequences()]
        found: list[Generated] = [[] for _ in inputs]
        for (index, _), text in zip(wanted, self._answers(inputs, wanted, call), strict=True):
            found[index].append(call.generated(inputs[index], text))
        return found[0] if single else found

    def _answers(
        self, inputs: Sequence[str | Messages], wanted: Sequence[tuple[int, dict[str, Any]]], call: _Call
    ) -> Iterator[str]:
        """The answers in order; up to 16 are decoded together. Closing the iterator ends the answers under way."""
        under_way: deque[TextStream | None] = deque()
        ahead = iter(wanted)
        for _ in wanted:
            while len(under_way) < _MAX_CONCURRENT and (one := next(ahead, None)) is not None:
                index, params = one
                try:
                    under_way.append(self._start(inputs[index], params, call))
                except OverloadedError:
                    # The queue is shorter than this call: the rest starts as these end.
                    if not under_way:
                        raise
                    ahead = itertools.chain([one], ahead)
                    break
            stream = under_way.popleft()
            # The pieces together are the answer, to the last character.
            yield "" if stream is None else "".join(stream)

    def _start(self, prompt: str | Messages, params: dict[str, Any], call: _Call) -> TextStream | None:
        try:
            return self._manager.stream(prompt, self.name, **params, **call.ending(prompt))
        except InputError:
            if call.truncates and self._prompt_tokens(prompt, call) >= params["max_length"]:
                call.log_full_prompt()
                return None
            raise

    async def acall(self, text_inputs: str | Messages, **options: Any) -> Generated:
        """A call for asyncio, with one text or conversation. Cancelling the task ends the answer within one token."""
        call = _Call(self, options)
        inputs, _ = _inputs(text_inputs)
        if len(inputs) != 1:
            raise TypeError(f"acall takes one text or conversation, not {len(inputs)}; gather several calls")
        [prompt] = inputs
        if call.end is not None:
            # Not on the event loop: it may load the model.
            call.check_end(await in_thread(self.describe))
        found = []
        ending = call.ending(prompt)
        for params in call.sequences():
            try:
                completion = await acomplete(self._manager, prompt, self.name, **params, **ending)
            except InputError:
                if not call.truncates:
                    raise
                probe = await acomplete(self._manager, prompt, self.name, **call.probe(), **ending)
                if probe["prompt_tokens"] < params["max_length"]:
                    raise
                call.log_full_prompt()
                completion = {**probe, "text": ""}
            found.append(call.generated(prompt, completion["text"]))
        return found

    def _prompt_tokens(self, prompt: str | Messages, call: _Call) -> int:
        return self._manager.complete(prompt, self.name, **call.probe(), **call.ending(prompt))["prompt_tokens"]

    def describe(self) -> GeneratorDescription:
        """The model's description; loads the model."""
        return self._manager.describe_generator(self.name)

    @property
    def tokenizer(self) -> Tokenizer:
        """`eos_token_id`, `eos_token`, `model_max_length` and `apply_chat_template`."""
        return Tokenizer(self)

    @property
    def context_length(self) -> int:
        """Tokens of prompt and answer together that the model holds; loads the model."""
        return self.describe()["context"]

    @property
    def device(self) -> str:
        """``cpu``, or a card: ``cuda:0``, ``mps:0``."""
        return self._manager.device

    def __repr__(self) -> str:
        return f"<TextGenerator {self.name!r}, {state_of(self._manager, self.name)}>"

    def _repr_html_(self) -> str:
        from ..integrations.jupyter import generator_html

        return generator_html(self._manager, self.name)


class _Call:
    """One call's options, split into parameters of the core and options of the pipeline."""

    def __init__(self, generator: TextGenerator, options: dict[str, Any]) -> None:
        for name in options.keys() - _OPTIONS:
            raise unexpected("a text generator", name, sorted(_OPTIONS))
        params = {key: value for key, value in options.items() if key not in _IGNORED}
        self.generator = generator
        for name in ("return_full_text", "do_sample", "continue_final_message"):
            if params.get(name) is not None:
                a_flag(name, params[name])
        self.full_text = params.pop("return_full_text", True) is not False
        self.continues_last: bool | None = params.pop("continue_final_message", None)
        self.count = _count(params.pop("num_return_sequences", None))
        truncation = params.pop("truncation", None)
        self.end = params.pop("eos_token_id", None)
        if (stops := params.pop("stop_strings", None)) is not None:
            if params.get("stop") is not None:
                raise argument_error("stop_strings", "stop and stop_strings are the same option; give one of them")
            for one in [stops] if isinstance(stops, str) else _items("stop_strings", stops, "a str or a list of str"):
                a_text("stop_strings", one)
            params["stop"] = stops
        params["do_sample"] = bool(params.get("do_sample"))
        if params.get("temperature") is None:
            params["temperature"] = 1.0
        if params.get("max_length") is None and params.get("max_new_tokens") is None:
            params["max_new_tokens"] = NEW_TOKENS
        self.truncates = bool(truncation) and params.get("max_new_tokens") is None
        self.params = params
        if self.count != 1 and not params["do_sample"]:
            raise InputError(
                f"num_return_sequences={self.count}: without do_sample all sequences are equal; set do_sample"
            )

    def check_end(self, known: GeneratorDescription) -> None:
        """Refuse an `eos_token_id` that is neither the model's own nor those of all tokens that end its text."""
        own, every = known["eos_token_id"], known["eos_token_ids"]
        ends = self.end if isinstance(self.end, list | tuple) else [self.end]
        given = {an_int("eos_token_id", one) for one in ends}
        if given and given in ({own}, set(every)):
            return
        only = {0: "no token of the model ends", 1: f"only the model's own token, {own}, ends"}
        reason = only.get(len(every), f"only the model's own tokens, {', '.join(map(str, every))}, end")
        raise InputError(f"eos_token_id={self.end!r}: {reason} its text; use stop strings instead")

    def sequences(self) -> Iterator[dict[str, Any]]:
        """The core's parameters of every sequence. A given seed increases by one from sequence to sequence."""
        seed = self.params.get("seed")
        for number in range(self.count):
            yield self.params if seed is None else {**self.params, "seed": _later(seed, number)}

    def probe(self) -> dict[str, Any]:
        """The core's parameters of the cheapest generation, whose result counts the prompt's tokens. All but its length
        are those of the call: its scope, its limits, and the variables that make the prompt.
        """
        length = {"max_length": None, "min_new_tokens": None, "max_new_tokens": 1}
        return {**self.params, **length}

    def ending(self, prompt: str | Messages) -> dict[str, Any]:
        """The core's parameter for where the prompt ends: a last message of the assistant is continued, because few
        models know two in succession.
        """
        if isinstance(prompt, str):
            return {}
        last = prompt[-1] if prompt else None
        is_assistants = isinstance(last, Mapping) and last.get("role") == "assistant"
        continues = is_assistants if self.continues_last is None else self.continues_last
        return {"continue_final_message": True} if continues else {}

    def generated(self, prompt: str | Messages, answer: str) -> dict[str, Any]:
        """The pipeline's result for one answer."""
        if not self.full_text:
            return {"generated_text": answer}
        if isinstance(prompt, str):
            return {"generated_text": prompt + answer}
        if self.ending(prompt):
            return {"generated_text": [*prompt[:-1], _continued(prompt[-1], answer)]}
        return {"generated_text": [*prompt, {"role": "assistant", "content": answer}]}

    def log_full_prompt(self) -> None:
        logger.info(
            "%s: the prompt alone reaches max_length=%s tokens; nothing was generated",
            self.generator.name,
            self.params["max_length"],
        )


def _continued(message: Mapping[str, Any], answer: str) -> dict[str, Any]:
    """The message with the answer at the end of its text, or of that of its last part."""
    content = message["content"]
    if not isinstance(content, list):
        return {**message, "content": (content or "") + answer}
    *parts, last = content or [{"type": "text", "text": ""}]
    return {**message, "content": [*parts, {**last, "text": last["text"] + answer}]}


def _count(given: Any) -> int:
    """The number of answers to one prompt."""
    return 1 if given is None else an_int("num_return_sequences", given, 1)


def _later(seed: Any, number: int) -> Any:
    """The seed of a further answer. The core names what is no seed."""
    if number == 0 or isinstance(seed, bool) or not hasattr(seed, "__index__"):
        return seed
    return (operator.index(seed) + number) % 2**64


def _items(name: str, given: Any, takes: str = "a str or messages") -> list[Any] | tuple[Any, ...]:
    if not isinstance(given, list | tuple):
        raise type_error(name, takes, given)
    return given


def _inputs(given: Any) -> tuple[list[str | Messages], bool]:
    """The texts or conversations as a list, and whether a single one was given."""
    if isinstance(given, str):
        return [given], True
    if not isinstance(given, list | tuple):
        raise type_error("text_inputs", "a str, messages, or a list of either", given)
    if given and isinstance(given[0], Mapping):
        return [list(given)], True
    return [
        one if isinstance(one, str) else list(_items(f"text_inputs[{at}]", one)) for at, one in enumerate(given)
    ], False
