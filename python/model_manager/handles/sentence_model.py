"""A sentence model as an object with `encode`, for code written for sentence-transformers.

The object is a handle: it names a slot and holds no weights. An idle model leaves memory while the handle exists, and
the next `encode` loads it again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from .._arguments import a_flag, a_manager, a_text, an_int, an_iterable, argument_error, one_of, type_error
from .._extras import tqdm_class
from ..errors import ModelManagerError
from ._results import as_tensor, returned

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any, Literal, NoReturn

    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    from .._core import Manager
    from .._scoring import ScoringManager
    from .._types import Description

    Precision = Literal["float32", "int8", "uint8", "binary", "ubinary"]

logger = logging.getLogger(__name__)

QUERY_PROMPTS = ("query",)
"""Names of a model's prompt for questions. The first one that the model has is used."""
DOCUMENT_PROMPTS = ("document", "passage", "corpus")
"""The same for the documents that are searched."""

_CALIBRATION_TEXTS = 100
_ORDERS = {"euclidean": 2, "manhattan": 1}
"""Measures that are distances, and the order of their norm."""


class SentenceModel:
    """The model of one slot of a manager, with the calls of `sentence_transformers.SentenceTransformer`."""

    __slots__ = ("_manager", "name")

    name: str
    """The slot."""

    def __init__(self, manager: Manager, name: str) -> None:
        self._manager: Manager = a_manager(manager)
        self.name = a_text("name", name)

    def encode(
        self,
        sentences: str | Iterable[str] | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        output_value: Literal["sentence_embedding", "token_embeddings"] = "sentence_embedding",
        precision: Precision | None = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: str | None = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        pool: None = None,
        chunk_size: int | None = None,
        *,
        inputs: str | Iterable[str] | None = None,
    ) -> Any:
        """Embed one text (shape (dim,)) or several (shape (n, dim)). All names are those of sentence-transformers.

        Args:
            sentences: A str, or several.
            inputs: The same, by the name that it has from sentence-transformers 6 on.
            prompt_name: The name of one of the model's prompts. Without this and `prompt`: the model's default prompt.
            prompt: Text that is put in front of every sentence. With it, `prompt_name` is ignored.
            batch_size: Accepted and ignored: batches are formed by tokens and do not change results.
            show_progress_bar: Show a progress bar if tqdm is installed.
            output_value: ``"token_embeddings"`` returns the states of all tokens: a float32 array (tokens, dim) per
                text.
            precision: ``"float32"``, or quantized: ``"int8"``/``"uint8"`` (scaled to the range of these texts, which
                are at least two, one byte per dimension), ``"binary"``/``"ubinary"`` (the sign, one bit per dimension).
                None is ``"float32"``.
            convert_to_numpy: False returns a list of arrays, one per text.
            convert_to_tensor: Return a PyTorch tensor; needs PyTorch.
            device: Accepted and ignored: `Config(device=...)` decides.
            normalize_embeddings: Scale to length 1.
            truncate_dim: Keep the first dimensions.
            pool: None: there are no pools of processes, because one process uses all cores.
            chunk_size: Accepted and ignored.

        Returns:
            float32, or the dtype of `precision`. The array is writable and belongs to the caller.

        Raises:
            TypeError: `sentences` is a mapping or bytes, an item is not text, or there is a `pool`.
            ArgumentError: An unknown `precision` or `output_value`, bytes of a single text, quantized states of tokens,
                and the errors of `Manager.embed`.
        """
        one_of("output_value", output_value, ("sentence_embedding", "token_embeddings"))
        precision = "float32" if precision is None else precision
        one_of("precision", precision, ("float32", "int8", "uint8", "binary", "ubinary"))
        a_flag("normalize_embeddings", normalize_embeddings)
        a_flag("convert_to_numpy", convert_to_numpy)
        a_flag("convert_to_tensor", convert_to_tensor)
        check_progress(batch_size, show_progress_bar)
        if chunk_size is not None:
            an_int("chunk_size", chunk_size, 1)
        if pool is not None:
            raise type_error("pool", "None", pool, ": one process uses all cores")
        if inputs is not None:
            sentences = either("sentences", sentences, "inputs", inputs)
        if prompt is not None:
            prompt_name = None
        options: Any = {
            "prompt": prompt,
            "prompt_name": prompt_name,
            "normalize": normalize_embeddings,
            "truncate_dim": truncate_dim,
        }
        plain = precision == "float32" and output_value == "sentence_embedding" and not show_progress_bar
        if plain and isinstance(sentences, str):
            # One text as such: where the cache has it, a list would take several times as long.
            vector: Any = self._manager.embed(sentences, self.name, copy=True, **options)
            return as_tensor(vector) if convert_to_tensor else vector
        if isinstance(sentences, Mapping | bytes | bytearray):
            remedy = "list(sentences.values())" if isinstance(sentences, Mapping) else "sentences.decode()"
            takes = "a str or an iterable of str"
            raise type_error("sentences", takes, sentences, f"; to embed its texts give {remedy}")
        single = isinstance(sentences, str)
        given = [sentences] if isinstance(sentences, str) else sentences
        texts = list(an_iterable("sentences", given, "a str or an iterable of str"))
        if texts and not isinstance(texts[0], str):  # the core would read numbers and lists of them as token ids
            raise type_error("sentences[0]", "a str", texts[0])
        if output_value == "token_embeddings":
            if precision != "float32":
                raise argument_error("precision", f"precision={precision!r}: states of tokens are float32")
            return self._token_states(texts, single, prompt, prompt_name, convert_to_tensor)
        with _Progress(bool(show_progress_bar), len(texts)) as progress:
            vectors: Any = self._manager.embed(texts, self.name, progress=progress, **options)
        if precision != "float32":
            vectors = quantize(vectors, precision)
        return returned(vectors, single, convert_to_numpy, convert_to_tensor)

    def _token_states(
        self, texts: list[str], single: bool, prompt: str | None, prompt_name: str | None, tensors: bool
    ) -> Any:
        states: Any
        states, _ = self._manager._infer("states", texts, None, self.name, prompt=prompt, prompt_name=prompt_name)
        if tensors:
            states = [as_tensor(rows) for rows in states]
        return states[0] if single else states

    def encode_query(
        self, sentences: str | Iterable[str] | None = None, *, task: str | None = None, **options: Any
    ) -> Any:
        r"""`encode` with the model's prompt named ``query``, if it has one and the call gives none. A model without it
        uses its default prompt; sentence-transformers uses no prompt then (``prompt=""``).

        Args:
            sentences: A str, or several.
            task: The search task in one English sentence, for models that take instructions, such as Qwen3-Embedding.
                The prompt becomes ``Instruct: {task}\nQuery:``. Documents get no instruction.
            options: As `encode`.

        Raises:
            ArgumentError: A `task` together with a `prompt` or `prompt_name`, a blank `task`, and the errors of
                `encode`.
        """
        if task is not None:
            if options.get("prompt") is not None or options.get("prompt_name") is not None:
                raise argument_error("task", "task makes the prompt; give it alone, without prompt and prompt_name")
            options["prompt"] = instruction(task)
        return self.encode(sentences, **self._with_prompt(options, QUERY_PROMPTS))

    def encode_document(self, sentences: str | Iterable[str] | None = None, **options: Any) -> Any:
        """`encode` with the model's prompt named ``document``, ``passage`` or ``corpus``, if it has one and the call
        gives none. A model without them uses its default prompt; sentence-transformers uses no prompt then
        (``prompt=""``), and none either for a model whose only prompt for documents is called ``passage`` or
        ``corpus``.
        """
        return self.encode(sentences, **self._with_prompt(options, DOCUMENT_PROMPTS))

    def _with_prompt(self, options: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
        if options.get("prompt") is None and options.get("prompt_name") is None:
            options["prompt_name"] = find_prompt(self.describe()["prompts"], names)
        return options

    def similarity(
        self,
        first: ArrayLike | None = None,
        second: ArrayLike | None = None,
        *,
        embeddings1: ArrayLike | None = None,
        embeddings2: ArrayLike | None = None,
    ) -> NDArray[np.float32]:
        """The similarity of each row of `first` to each row of `second`, shape (n, m), by the model's own measure.
        sentence-transformers calls them `embeddings1` and `embeddings2`.

        ``euclidean`` and ``manhattan`` are negative distances, so that for every measure a larger value means more
        similar.

        Raises:
            ArgumentError: No rows of numbers, rows of different lengths, or rows of ``precision="int8"`` and the like,
                of which the model's measure says nothing.
        """
        first = either("first", first, "embeddings1", embeddings1)
        second = either("second", second, "embeddings2", embeddings2)
        return similarity(first, second, self.describe()["similarity"])

    def similarity_pairwise(
        self,
        first: ArrayLike | None = None,
        second: ArrayLike | None = None,
        *,
        embeddings1: ArrayLike | None = None,
        embeddings2: ArrayLike | None = None,
    ) -> NDArray[np.float32]:
        """The similarity of row i of `first` to row i of `second`, shape (n,), by the measure of `similarity`.

        Raises:
            ArgumentError: No rows of numbers, arrays of different shapes, or quantized rows, as for `similarity`.
        """
        first = either("first", first, "embeddings1", embeddings1)
        second = either("second", second, "embeddings2", embeddings2)
        return similarity_pairwise(first, second, self.describe()["similarity"])

    def count_tokens(self, texts: str | Iterable[str]) -> int | list[int]:
        """Tokens of one text (int) or of each (list), special tokens included, not cut to `max_seq_length`."""
        return self._manager.count_tokens(texts, self.name)

    def describe(self) -> Description:
        """The model's description; loads the model."""
        return self._manager.describe(self.name)

    def get_sentence_embedding_dimension(self) -> int:
        """Length of a vector; loads the model."""
        return self.describe()["dimension"]

    get_embedding_dimension = get_sentence_embedding_dimension

    @property
    def max_seq_length(self) -> int | None:
        """Tokens per text, special ones included; longer texts are cut. None: only its server knows. Loads it."""
        return self.describe()["max_length"]

    def get_max_seq_length(self) -> int | None:
        """`max_seq_length`."""
        return self.max_seq_length

    @property
    def prompts(self) -> dict[str, str]:
        """The model's prompts by name; loads the model. A change raises `TypeError`: `register` takes other prompts."""
        return _Prompts(self.describe()["prompts"])

    @property
    def default_prompt_name(self) -> str | None:
        """The prompt that is used when a call names none; loads the model."""
        return self.describe()["default_prompt_name"]

    @property
    def similarity_fn_name(self) -> str:
        """``cosine``, ``dot``, ``euclidean`` or ``manhattan``; loads the model."""
        return self.describe()["similarity"]

    @property
    def device(self) -> str:
        """Where the model computes: ``cpu``, or a card, ``cuda:0`` or ``mps:0``. Before its load: the manager's."""
        known = self._manager.describe(self.name, load=False)
        return self._manager.device if known is None else known["device"]

    def __repr__(self) -> str:
        return f"<SentenceModel {self.name!r}, {state_of(self._manager, self.name)}>"

    def _repr_html_(self) -> str:
        from ..integrations.jupyter import model_html

        return model_html(self._manager, self.name, "SentenceModel")


class _Prompts(dict[str, str]):
    """A model's prompts. The slot has them, so a change here would have no effect."""

    def _refuse(self, *_arguments: object, **_options: object) -> NoReturn:
        raise TypeError("prompts cannot be changed here; give encode a prompt, or the slot: register(..., prompts=...)")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[type[dict[str, str]], tuple[dict[str, str]]]:
        return dict, (dict(self),)


def state_of(manager: Manager | ScoringManager, name: str) -> str:
    """The state of a slot for `repr`, which must not raise: debuggers and loggers call it."""
    try:
        return "loaded" if manager.is_loaded(name) else "not loaded"
    except ModelManagerError:  # the manager is closed, or the slot is gone
        return "not loaded"


def either(name: str, given: Any, other_name: str, other: Any) -> Any:
    """An argument that has two names. Raises `TypeError` when both are given."""
    if other is None:
        return given
    if given is not None:
        error = TypeError(f"{other_name} is another name of {name}; give one of both")
        error.param = other_name  # type: ignore[attr-defined]
        raise error
    return other


def check_progress(batch_size: int | None, show_progress_bar: bool | None) -> None:
    """Arguments of sentence-transformers that change no result."""
    if batch_size is not None:
        an_int("batch_size", batch_size, 1)
    if show_progress_bar is not None:
        a_flag("show_progress_bar", show_progress_bar)


def instruction(task: str) -> str:
    """The prompt for a query's task, in the format of Qwen3-Embedding and models trained like it.

    Raises:
        ArgumentError: A blank `task`.
    """
    if not a_text("task", task).strip():
        raise argument_error("task", "task is empty; describe the search in one sentence, or leave it out")
    return f"Instruct: {task}\nQuery:"


def find_prompt(known: Mapping[str, str], names: Sequence[str]) -> str | None:
    """The first of `names` that the model has a prompt for."""
    return next((name for name in names if name in known), None)


def similarity(first: ArrayLike, second: ArrayLike, measure: str = "cosine") -> NDArray[np.float32]:
    """The similarity of each row of `first` (n, dim) to each row of `second` (m, dim), shape (n, m). A single vector
    counts as one row.

    Raises:
        ArgumentError: No rows of numbers, quantized ones, or rows of different lengths.
    """
    import numpy as np

    a, b = _rows(first, "first"), _rows(second, "second")
    if len(a) and len(b) and a.shape[1] != b.shape[1]:
        raise argument_error(
            "second",
            f"second has vectors of {b.shape[1]} dimensions and first of {a.shape[1]}; both need those of one model",
        )
    if not len(a) or not len(b):
        return np.empty((len(a), len(b)), np.float32)
    if measure == "cosine":
        a, b = _unit(a), _unit(b)
    if measure in ("cosine", "dot"):
        return np.asarray(a @ b.T, dtype=np.float32)
    # One row at a time: all (n, m, dim) differences together would take gigabytes.
    return np.stack([-np.linalg.norm(row - b, ord=_ORDERS[measure], axis=1) for row in a]).astype(np.float32)


def similarity_pairwise(first: ArrayLike, second: ArrayLike, measure: str = "cosine") -> NDArray[np.float32]:
    """The similarity of row i of `first` (n, dim) to row i of `second` (n, dim), shape (n,). A single vector counts as
    one row.

    Raises:
        ArgumentError: No rows of numbers, quantized ones, or arrays of different shapes.
    """
    import numpy as np

    a, b = _rows(first, "first"), _rows(second, "second")
    if a.shape != b.shape:
        raise argument_error(
            "first", f"first has shape {a.shape} and second {b.shape}; both need one row for each pair"
        )
    if measure == "cosine":
        a, b = _unit(a), _unit(b)
    if measure in ("cosine", "dot"):
        return np.asarray(np.einsum("ij,ij->i", a, b), np.float32)
    return np.asarray(-np.linalg.norm(a - b, ord=_ORDERS[measure], axis=1), np.float32)


def _rows(vectors: ArrayLike, name: str) -> NDArray[np.float32]:
    """float32 rows of shape (n, dim), also of PyTorch's tensors in every format. Quantized ones are refused."""
    import numpy as np

    from ..semantic.rows import as_rows

    given: Any = [_array(one) for one in vectors] if isinstance(vectors, list | tuple) else _array(vectors)
    return np.asarray(as_rows(given, name), np.float32)


def _array(vectors: Any) -> Any:
    """A tensor as an array; numpy has no bfloat16, and reads no tensor that keeps gradients or is on a card."""
    return vectors.detach().float().cpu().numpy() if hasattr(vectors, "detach") else vectors


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """The rows with length 1; zeros stay zeros."""
    import numpy as np

    # float64 sums: a row of large values has a finite length.
    lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))[:, None]
    found: NDArray[np.float32] = (rows / np.maximum(lengths, 1e-12)).astype(np.float32)
    return found


def quantize(vectors: NDArray[np.float32], precision: Precision) -> NDArray[Any]:
    """Quantize rows to one byte per dimension (int8, uint8) or to one bit (binary as int8, ubinary as uint8).

    The bytes cover each dimension's range over these rows, as in sentence-transformers without calibration vectors.

    Raises:
        ArgumentError: Bytes of a single row, which has no range: every row would become the same bytes.
    """
    import numpy as np

    if precision in ("binary", "ubinary"):
        bits = np.packbits(vectors > 0, axis=1)
        return bits if precision == "ubinary" else (bits.astype(np.int16) - 128).astype(np.int8)
    if len(vectors) == 0:
        return vectors.astype(precision)
    if len(vectors) == 1:
        raise argument_error(
            "precision",
            f"precision={precision!r} is scaled to the range of all texts and needs at least two; for one text use"
            " 'binary', 'ubinary' or 'float32'",
        )
    if len(vectors) < _CALIBRATION_TEXTS:
        logger.warning(
            "%s is scaled to the range of only %d texts; use at least %d for a reliable range",
            precision,
            len(vectors),
            _CALIBRATION_TEXTS,
        )
    low = vectors.min(axis=0)
    step = (vectors.max(axis=0) - low) / 255
    # Rounded down before the shift: a cast alone would round negative numbers up.
    steps: NDArray[np.float32] = np.clip(np.floor((vectors - low) / np.where(step > 0, step, 1)), 0, 255)
    return steps.astype(np.uint8) if precision == "uint8" else (steps - 128).astype(np.int8)


class _Progress:
    """A context manager that returns the callback that `embed` takes, or None without a bar or without tqdm."""

    def __init__(self, wanted: bool, total: int) -> None:
        self._bar: Any = None
        if wanted:
            try:
                tqdm = tqdm_class()
            except ImportError:
                logger.info("no progress bar: tqdm is not installed")
            else:
                self._bar = tqdm(total=total, desc="Texts", unit="text")

    def __enter__(self) -> Callable[[int, int], object] | None:
        return None if self._bar is None else lambda done, _total: self._bar.update(done - self._bar.n)

    def __exit__(self, *_error: object) -> None:
        if self._bar is not None:
            self._bar.close()
