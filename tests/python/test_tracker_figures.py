"""`LazyLoadTracker` alone: its statistics can always be written as JSON."""

from __future__ import annotations

import json
import math

import pytest
from model_manager import LazyLoadTracker
from model_manager.errors import ArgumentError


@pytest.mark.parametrize("wrong", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("name", ["load_time", "memory_mb"])
def test_figures_that_json_does_not_have_are_refused(name, wrong):
    tracker = LazyLoadTracker()
    tracker.record_load("a", 1.5, -20.0)
    with pytest.raises(ArgumentError, match=rf"(?i)^{name}={wrong}: must be a finite number$"):
        tracker.record_load("a", **{"load_time": 1.0, "memory_mb": 1.0, name: wrong})
    statistics = tracker.get_statistics()
    json.dumps(statistics, allow_nan=False)
    assert statistics["load_counts"] == {"a": 1}
    assert statistics["memory_usage"] == {"a": -20.0}, "a process may have less memory after a load"
