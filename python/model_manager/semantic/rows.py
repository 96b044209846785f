"""Rows of vectors: checked once, normalized once."""

from __future__ import annotations

import numpy as np

from .._arguments import argument_error, one_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal, TypeAlias

    from numpy.typing import ArrayLike, NDArray

    Vectors: TypeAlias = NDArray[np.float32]
    Measure: TypeAlias = Literal["cosine", "dot"]

MEASURES = ("cosine", "dot")
ROUNDING = 1e-6
"""The cosine of two copies is 1 up to this."""


def as_rows(vectors: ArrayLike, name: str) -> NDArray[np.floating]:
    """`vectors` as an array of shape (n, dim) in its own floating format; one vector counts as one row. Nothing is
    copied, so that a memory-mapped file stays on disk. Quantized rows are refused: the bytes of each dimension have a
    range of their own, and those of bits hold eight dimensions.

    Raises:
        ArgumentError: `vectors` is not a matrix of numbers, has no columns, or is quantized.
    """
    try:
        rows = np.asanyarray(vectors)
    except (ValueError, UserWarning) as error:  # numpy before 1.24 warns, which may be made an error
        raise argument_error(name, f"{name} must be rows of the same length: {error}") from error
    if rows.size == 0 and rows.ndim < 2:
        rows = rows.reshape(0, 1)
    if rows.dtype.kind in "US" or (rows.dtype.kind == "O" and any(isinstance(one, str) for one in rows.flat[:1])):
        raise argument_error(name, f"{name} must be vectors, not texts: embed them first, manager.embed(...)")
    if rows.ndim == 1:
        rows = rows[None, :]
    if rows.dtype.kind == "O":
        raise argument_error(name, f"{name} must be rows of the same length that hold numbers")
    if rows.ndim != 2 or rows.dtype.kind not in "fiub":
        raise argument_error(
            name, f"{name} must have shape (n, dim) and hold numbers, not {rows.dtype} of shape {rows.shape}"
        )
    if rows.dtype in (np.int8, np.uint8):
        raise argument_error(
            name,
            f"{name} holds {rows.dtype}, as encode gives it with precision=: compare vectors of float32, or quantized"
            " ones with a library for them",
        )
    if rows.shape[1] == 0:
        raise argument_error(name, f"{name} has vectors of no dimensions")
    return rows


def check_measure(measure: str) -> None:
    """Raises `ArgumentError` for an unknown measure."""
    one_of("measure", measure, MEASURES)


def prepare(rows: NDArray[np.floating], name: str, measure: Measure, first: int = 0) -> Vectors:
    """float32 rows whose dot products are the measure: of length 1 for cosine. A zero vector stays zero, and its
    cosine to every vector is 0.

    Args:
        rows: The vectors.
        name: The argument, for the error.
        measure: ``cosine`` or ``dot``.
        first: The index of the first row in the whole argument, for the error.

    Raises:
        ArgumentError: A row holds NaN or infinity.
    """
    return prepare_with_lengths(rows, name, measure, first)[0]


def prepare_with_lengths(
    rows: NDArray[np.floating], name: str, measure: Measure, first: int = 0
) -> tuple[Vectors, NDArray[np.float64]]:
    """`prepare`, and the lengths that the rows had. Equal rows have equal lengths, bit by bit."""
    values = np.ascontiguousarray(rows, dtype=np.float32)
    # float64 sums: a row of large float32 values has a finite length.
    lengths = np.sqrt(np.einsum("ij,ij->i", values, values, dtype=np.float64))
    if not np.isfinite(lengths).all():
        bad = first + int(np.flatnonzero(~np.isfinite(lengths))[0])
        raise argument_error(name, f"{name}[{bad}] holds NaN or infinity; leave it out or embed its text again")
    if measure == "dot":
        return values, lengths
    unit = values / np.maximum(lengths, np.finfo(np.float64).tiny)[:, None]
    return np.asarray(unit, dtype=np.float32), lengths
