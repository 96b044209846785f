"""What the worker asks of a contender, and the tokenizing and pooling that bare engines need."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]
else:
    Vectors = Any  # numpy is not imported before the package that is timed

MAX_TOKENS = 256


class Contender(ABC):
    """A package that turns texts into vectors. `batches`: the sizes to try; none if it batches by itself."""

    batches: tuple[int, ...] = (8, 16, 32, 64)

    @abstractmethod
    def import_package(self) -> None:
        """Imports what embedding needs: timed."""

    @abstractmethod
    def load(self, model: Path, onnx: Path) -> None:
        """Loads the model directory, or its ONNX export."""

    @abstractmethod
    def embed(self, texts: list[str], batch: int) -> Vectors:
        """float32 (texts, dimensions), L2-normalized. Called from many threads at once."""

    def embed_one(self, text: str) -> Vectors:
        """The quickest way from one text to its vector."""
        return self.embed([text], 1)


class Tokenized(Contender):
    """For engines that run a graph: sorts by length, pads each batch to its longest, pools, normalizes."""

    def load_tokenizer(self, model: Path) -> None:
        from tokenizers import Tokenizer

        self.tokenizer: Any = Tokenizer.from_file(str(model / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(MAX_TOKENS)

    def padded(self, texts: list[str], batch: int) -> Iterator[tuple[Any, Any, Any]]:
        """(places of the texts, ids, mask) of each batch, longest texts first."""
        import numpy as np

        rows = [encoding.ids for encoding in self.tokenizer.encode_batch(texts)]
        order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
        for start in range(0, len(order), batch):
            places = order[start : start + batch]
            ids = np.zeros((len(places), len(rows[places[0]])), np.int64)
            mask = np.zeros_like(ids)
            for row, place in enumerate(places):
                ids[row, : len(rows[place])] = rows[place]
                mask[row, : len(rows[place])] = 1
            yield places, ids, mask

    def run_batches(self, texts: list[str], batch: int, run: Callable[[Any, Any], Any]) -> Vectors:
        """Embeds with `run(ids, mask) -> token states (batch, tokens, dimensions)`."""
        import numpy as np

        result: Vectors | None = None
        for places, ids, mask in self.padded(texts, batch):
            vectors = pool(run(ids, mask), mask)
            if result is None:
                result = np.empty((len(texts), vectors.shape[1]), np.float32)
            result[places] = vectors
        if result is None:
            raise ValueError("no texts to embed")
        return result


def pool(states: Any, mask: Any) -> Vectors:
    """Mean of each row's own tokens, L2-normalized."""
    import numpy as np

    sums = np.einsum("btd,bt->bd", states, mask.astype(np.float32))
    return sums / np.linalg.norm(sums, axis=1, keepdims=True)  # type: ignore[no-any-return]
