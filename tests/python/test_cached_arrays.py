"""Arrays of cached results: no caller changes what others get, by whichever attribute."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import ENGLISH_TEXT

ENGLISH = "english_sentence"


def bases(array):
    """The arrays that an array is a view of."""
    found = array.base
    while isinstance(found, np.ndarray):
        yield found
        found = found.base


@pytest.mark.filterwarnings("ignore:Setting the:DeprecationWarning")  # numpy 2.5 asks for views instead
@pytest.mark.parametrize(("attribute", "value"), [("shape", (2, -1)), ("dtype", np.dtype("i4")), ("strides", (0,))])
def test_what_a_cached_array_is_a_view_of_can_be_changed_without_harm(manager, attribute, value):
    computed = manager.embed(ENGLISH_TEXT, ENGLISH, copy=True)
    cached = manager.embed(ENGLISH_TEXT, ENGLISH)
    for base in bases(cached):
        setattr(base, attribute, value)
    for found in (cached, manager.embed(ENGLISH_TEXT, ENGLISH), manager.embed([ENGLISH_TEXT], ENGLISH)[0]):
        assert (found.shape, found.dtype) == (computed.shape, np.float32)
        np.testing.assert_array_equal(found, computed)
