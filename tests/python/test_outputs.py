"""Results that hold several arrays."""

from __future__ import annotations

import numpy as np
import pytest
from model_manager.results import EmbedOutputs, SparseVector


def sparse(*entries):
    indices, values = zip(*entries, strict=True)
    return SparseVector(np.array(indices, np.uint32), np.array(values, np.float32))


def test_results_are_compared_by_their_elements():
    one, same, other, longer = sparse((3, 1.0)), sparse((3, 1.0)), sparse((3, 2.0)), sparse((3, 1.0), (4, 1.0))
    assert one == same
    assert not one != same  # noqa: SIM202  the operator of its own
    assert one != other
    assert one != longer
    assert one != (one.indices, one.values)
    assert same in [other, one]
    dense = np.ones((2, 3), np.float32)
    assert EmbedOutputs(dense, [one, other]) == EmbedOutputs(dense.copy(), [same, other])
    assert EmbedOutputs(dense, [one, other]) != EmbedOutputs(dense, [one, longer])
    assert EmbedOutputs(dense) != EmbedOutputs(dense, one)
    assert EmbedOutputs(dense) != EmbedOutputs(dense, multi=[dense])
    with pytest.raises(TypeError, match="unhashable"):
        hash(one)
