"""A live picture of memory for notebooks, without widgets: an SVG that a thread draws anew.

`model_manager.integrations.jupyter` has its public names. Colors derive from the notebook's text color, as those of
the tables do.
"""

from __future__ import annotations

import itertools
import logging
import math
import threading
import time
import weakref
from collections import deque
from html import escape
from typing import NamedTuple

from .._arguments import a_number, argument_error, type_error
from .._core import Manager
from .._html import FRAME, QUIET
from .._sizes import size_text
from ..errors import ClosedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from typing_extensions import Self

_LOG = logging.getLogger("model_manager")

_FASTEST = 0.1
"""Seconds between two pictures: below, a browser does little else."""
_COLORS = ("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#e45756", "#72b7b2", "#eeca3b", "#9d755d")
_SIZE = (640.0, 200.0)
_AREA = (76.0, 8.0, 556.0, 168.0)
"""x, y, width and height of the area between the axes, in the SVG's units."""
_POINTS = 300
"""Points of a line: about one for two units."""
_ENTRY = "white-space:nowrap;margin-right:1em"
_KEYS_AND_VALUES = "keys and values"
_CACHE = "cache of results"


class MemorySample(NamedTuple):
    """The memory of one moment, in bytes."""

    seconds: float
    """By the monotonic clock."""
    resident: int
    """Of the whole process."""
    layers: dict[str, int]
    """Of each slot in memory, of the generators' keys and values, and of the cache of results."""
    budget: int | None
    """Of all models; None: no limit."""
    cards: dict[str, int]
    """Of each slot, on a card: not part of the process's memory."""


def memory_plot(
    manager: Manager, *, interval: float = 1.0, window: float = 300.0, duration: float | None = 3600.0
) -> MemoryPlot:
    """Show the memory of a manager's models below a notebook's cell, drawn anew while other cells run.

    Layers are the slots in memory, the generators' keys and values, and the cache of results; the line is the whole
    process, and a dashed line the memory budget. It needs no widgets, and loads nothing. A manager has one live plot:
    a new one ends the former. The last picture stays in the notebook.

    Args:
        manager: The manager to watch. The plot does not keep it alive.
        interval: Seconds between two pictures, at least 0.1.
        window: Seconds that are shown.
        duration: Seconds after which it ends by itself, so that a forgotten plot does; None: never. It also ends by
            `MemoryPlot.stop`, at the end of a ``with`` block, and when the manager is closed.

    Raises:
        ArgumentError: A number is out of range.
        TypeError: `manager` is no manager, or a number is none.
        ClosedError: The manager is closed.
        RuntimeError: No notebook runs this code.
    """
    if not isinstance(manager, Manager):
        raise type_error("manager", "a ModelManager", manager)
    interval = _seconds("interval", interval, _FASTEST)
    window = _seconds("window", window, interval)
    if duration is not None:
        duration = _seconds("duration", duration, 0.0)
    if manager.closed:
        raise ClosedError("memory_plot(): the manager is closed")
    plot = MemoryPlot(manager, interval, window, duration)
    with _starting:
        former = _live.pop(manager, None)
        if former is not None:
            former.stop()
        plot._start(manager)
        _live[manager] = plot
    return plot


class MemoryPlot:
    """A live picture; `memory_plot` makes it. ``stop()`` ends it, as does leaving a ``with`` block."""

    def __init__(self, manager: Manager, interval: float, window: float, duration: float | None) -> None:
        self._manager = weakref.ref(manager)
        self._interval, self._window, self._duration = interval, window, duration
        # A few more than fit into the window, because threads wake late, never early.
        self._samples: deque[MemorySample] = deque(maxlen=math.ceil(window / interval) + 2)
        self._state: str | None = None
        self._picture = _Picture(self)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="model_manager-memory-plot", daemon=True)

    @property
    def running(self) -> bool:
        """Whether it still updates. Once it does not, the last picture has been drawn."""
        return self._thread.is_alive()

    @property
    def samples(self) -> list[MemorySample]:
        """What was measured within the window, the latest last."""
        return list(self._samples)

    def stop(self) -> None:
        """End it, and wait until the last picture is drawn. Without effect on one that has ended."""
        self._ending.set()
        if self._thread is not threading.current_thread() and self._thread.is_alive():
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        latest = self._samples[-1] if self._samples else None
        figures = "nothing measured" if latest is None else f"process {size_text(latest.resident)}"
        return f"<MemoryPlot {self._state or 'running'}, {figures}>"

    def _start(self, manager: Manager) -> None:
        self._take(manager)
        self._shown = _display(self._picture)
        self._end = math.inf if self._duration is None else time.monotonic() + self._duration
        self._thread.start()

    def _run(self) -> None:
        try:
            while (state := self._pause()) is None:
                self._shown.update(self._picture)
            self._state = state
            self._shown.update(self._picture)
        except Exception as error:  # noqa: BLE001 - the kernel ends or its client left: no notebook shows the picture
            self._state = "ended"
            _LOG.warning("the live plot of memory ended: %s", error)

    def _pause(self) -> str | None:
        """Wait for the next sample and take it. Says why the plot ends, if it does."""
        asked = self._ending.wait(max(0.0, min(self._interval, self._end - time.monotonic())))
        manager = self._manager()
        try:
            if manager is None or manager.closed:
                return "manager closed"
            self._take(manager)
        except ClosedError:
            return "manager closed"
        if asked:
            return "stopped"
        return f"ended after {self._duration:g} s" if time.monotonic() >= self._end else None

    def _take(self, manager: Manager) -> None:
        stats = manager.stats()
        slots = {name: slot for name, slot in stats["slots"].items() if slot["state"] == "ready"}
        layers = {name: slot["bytes"] - slot["device_bytes"] for name, slot in slots.items()}
        layers[_KEYS_AND_VALUES], layers[_CACHE] = stats["memory"]["kv"], stats["cache"]["bytes"]
        cards = {name: slot["device_bytes"] for name, slot in slots.items() if slot["device_bytes"]}
        memory = stats["memory"]
        self._samples.append(
            MemorySample(
                time.monotonic(),
                memory["resident"],
                {name: size for name, size in layers.items() if size},
                memory["budget"],
                cards,
            )
        )
        while self._samples[0].seconds < self._samples[-1].seconds - self._window - self._interval:
            self._samples.popleft()


class _Picture:
    """What a notebook shows of a plot. The plot itself has no picture: a cell that ends with it would show a second
    one, which is not updated.
    """

    def __init__(self, plot: MemoryPlot) -> None:
        self._plot = weakref.ref(plot)

    def __repr__(self) -> str:
        return repr(self._plot())

    def _repr_html_(self) -> str:
        plot = self._plot()
        assert plot is not None  # it shows this
        return plot_html(plot.samples, plot._window, plot._state)


_starting = threading.Lock()
_live: weakref.WeakKeyDictionary[Manager, MemoryPlot] = weakref.WeakKeyDictionary()
"""The plot of each manager. `_starting` is held while it changes."""


def _display(picture: _Picture) -> Any:
    """Show the picture below the running cell; the handle updates it. Raises `RuntimeError` outside of notebooks."""
    import sys

    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    # Only the shell of a kernel has one. A terminal would print the plot again and again.
    if shell is None or not hasattr(shell, "kernel"):
        raise RuntimeError("memory_plot() draws in a notebook, and none runs this code; stats() has the figures")
    from IPython.display import display

    return display(picture, display_id=True)  # type: ignore[no-untyped-call]


def _seconds(name: str, given: object, least: float) -> float:
    seconds = a_number(name, given)
    if not (math.isfinite(seconds) and seconds > 0 and seconds >= least):
        bound = f"at least {least:g}" if least else "more than 0"
        raise argument_error(name, f"{name}={given!r}: give seconds, {bound}")
    return seconds


# --- The picture ------------------------------------------------------------------------------------------------------


def plot_html(samples: Sequence[MemorySample], window: float, state: str | None) -> str:
    """The picture of the samples of the last `window` seconds, with a legend; `state` says why it has ended."""
    shown = _thinned([one for one in samples if one.seconds >= samples[-1].seconds - window])
    if len(shown) == 1:  # a line needs two points
        shown = [shown[0]._replace(seconds=shown[0].seconds - window / 100), shown[0]]
    latest = shown[-1]
    names = list(dict.fromkeys(name for one in shown for name in one.layers))
    names.sort(key=(_KEYS_AND_VALUES, _CACHE).count)  # slots below, as they came
    colors = dict(zip(names, itertools.cycle(_COLORS)))
    largest = max(max(one.resident, sum(one.layers.values())) for one in shown)
    near = latest.budget is not None and latest.budget <= 2 * largest
    step = _step(max(largest, latest.budget or 0) if near else largest)
    top = step * math.ceil(max(largest, latest.budget or 0 if near else 0) / step)

    left, above, width, height = _AREA

    def place(seconds: float, size: float) -> str:
        x = left + width * (1 - (latest.seconds - seconds) / window)
        return f"{x:.1f},{above + height * (1 - size / top):.1f}"

    parts = [_axes(step, top, window)]
    floor = [0] * len(shown)
    for name in names:
        ceiling = [size + one.layers.get(name, 0) for size, one in zip(floor, shown, strict=True)]
        corners = [place(one.seconds, size) for one, size in zip(shown, ceiling, strict=True)]
        corners += [place(one.seconds, size) for one, size in zip(reversed(shown), reversed(floor), strict=True)]
        parts.append(
            f'<polygon data-layer="{escape(name)}" points="{" ".join(corners)}" fill="{colors[name]}" '
            f'fill-opacity=".6"/>'
        )
        floor = ceiling
    line = " ".join(place(one.seconds, one.resident) for one in shown)
    parts.append(f'<polyline points="{line}" fill="none" stroke="currentColor" stroke-width="1.5"/>')
    if near and latest.budget is not None:
        y = above + height * (1 - latest.budget / top)
        parts.append(_line(left, y, left + width, y, 'stroke-dasharray="6 4"'))
    area = " ".join(
        f'data-{name}="{value:g}"' for name, value in zip(("x", "y", "width", "height"), _AREA, strict=True)
    )
    return (
        f'<div style="{FRAME}"><svg viewBox="0 0 {_SIZE[0]:g} {_SIZE[1]:g}" role="img" '
        f'aria-label="memory over time, process {size_text(latest.resident)}" {area} data-top="{top}" '
        f'style="width:100%;max-width:{_SIZE[0]:g}px;display:block" font-size="11" fill="currentColor">'
        f"{''.join(parts)}</svg>{_legend(latest, colors, state)}</div>"
    )


def _thinned(samples: list[MemorySample]) -> list[MemorySample]:
    """At most `_POINTS` and one samples: of each group that with the largest process, so that peaks stay, and the
    latest.
    """
    if len(samples) <= _POINTS:
        return samples
    size = math.ceil((len(samples) - 1) / _POINTS)
    groups = [samples[first : first + size] for first in range(0, len(samples) - 1, size)]
    groups[-1] = groups[-1][: len(samples) - 1 - size * (len(groups) - 1)]
    return [max(group, key=lambda one: one.resident) for group in groups] + samples[-1:]


def _step(largest: int) -> int:
    """Distance of the lines of the grid in bytes: 1, 2 or 5 times a power of ten of MiB or GiB; about four lines."""
    unit = 1 << 30 if largest >= 2 << 30 else 1 << 20
    rough = max(largest, 1) / unit / 4
    power = 10.0 ** math.floor(math.log10(rough))
    return max(1, round(unit * power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough)))


def _axes(step: int, top: int, window: float) -> str:
    left, above, width, height = _AREA
    parts = []
    unit, name = (1 << 30, "GiB") if top >= 2 << 30 else (1 << 20, "MiB")
    for size in range(0, top + 1, step):
        y = above + height * (1 - size / top)
        label = f"{size / unit:,.4g} {name}" if size else "0"
        parts.append(_line(left, y, left + width, y, 'stroke-opacity=".18"'))
        parts.append(f'<text x="{left - 6:g}" y="{y + 4:.1f}" text-anchor="end" opacity=".75">{label}</text>')
    anchors = ((0.0, "start"), (0.5, "middle"), (1.0, "end"))
    for share, anchor in anchors:
        x, y = left + width * share, above + height + 16
        parts.append(
            f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" opacity=".75">{_ago(window * (1 - share))}</text>'
        )
    return "".join(parts)


def _line(x1: float, y1: float, x2: float, y2: float, more: str) -> str:
    return f'<line x1="{x1:g}" y1="{y1:.1f}" x2="{x2:g}" y2="{y2:.1f}" stroke="currentColor" {more}/>'


def _ago(seconds: float) -> str:
    if seconds == 0:
        return "now"
    return f"{seconds / 60:g} min ago" if seconds >= 60 else f"{seconds:g} s ago"


def _legend(latest: MemorySample, colors: dict[str, str], state: str | None) -> str:
    entries = []
    for name, color in colors.items():
        size = size_text(latest.layers[name]) if name in latest.layers else "–"
        entries.append(f'<span style="color:{color}">■</span> {escape(name)} {size}{_on_card(latest, name)}')
    entries += [escape(name) + _on_card(latest, name) for name in latest.cards if name not in colors]
    entries.append(f"— process {size_text(latest.resident)}")
    if latest.budget is not None:
        entries.append(f"┄ budget {size_text(latest.budget)}")
    if state is not None:
        entries.append(f'<span style="{QUIET}">{escape(state)}</span>')
    return "<div>" + " ".join(f'<span style="{_ENTRY}">{entry}</span>' for entry in entries) + "</div>"


def _on_card(latest: MemorySample, name: str) -> str:
    return f", {size_text(latest.cards[name])} on the card" if name in latest.cards else ""
