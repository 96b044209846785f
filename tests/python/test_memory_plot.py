"""The live picture of memory in notebooks: what it draws, when it is drawn anew, and when it ends."""

from __future__ import annotations

import gc
import json
import threading
import time
import xml.etree.ElementTree as ET

import pytest
from conftest import ENGLISH_MODEL, ENGLISH_TEXT
from model_manager.errors import ClosedError, InputError
from model_manager.integrations import _memory_plot as drawing
from model_manager.integrations.jupyter import MemoryPlot, MemorySample, memory_plot
from notebooks import run_cells

plot_html = drawing.plot_html
MIB = 1 << 20


def sample(seconds, resident, budget=None, cards=None, **layers):
    return MemorySample(
        seconds, resident * MIB, {name: size * MIB for name, size in layers.items()}, budget, cards or {}
    )


def svg(html):
    return ET.fromstring(html[html.index("<svg") : html.index("</svg>") + 6])


def texts(html):
    return ["".join(part.itertext()) for part in svg(html).iter("text")]


def points(element):
    return [tuple(map(float, pair.split(","))) for pair in element.get("points").split()]


def until(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class Notebook:
    """Stands for the display of a notebook: keeps what was shown."""

    def __init__(self, broken_after=None):
        self.shown = []
        self.broken_after = broken_after

    def __call__(self, plot):
        self.shown.append(plot._repr_html_())
        return self

    def update(self, plot):
        if self.broken_after is not None and len(self.shown) >= self.broken_after:
            raise RuntimeError("the kernel is gone")
        self.shown.append(plot._repr_html_())


@pytest.fixture
def notebook(monkeypatch):
    notebook = Notebook()
    monkeypatch.setattr(drawing, "_display", notebook)
    return notebook


# --- The picture ------------------------------------------------------------------------------------------------------


def test_areas_are_stacked_to_scale():
    samples = [sample(0, 60, tr=10, en=20), sample(5, 90, tr=10, en=40), sample(10, 80, tr=0, en=40)]
    picture = svg(plot_html(samples, window=20.0, state=None))
    x, y, width, height = (float(picture.get(f"data-{name}")) for name in ("x", "y", "width", "height"))
    top = float(picture.get("data-top"))
    assert top >= 90 * MIB, "the largest value fits"

    def place(seconds, mib):
        return pytest.approx((x + width * (20 - (10 - seconds)) / 20, y + height * (1 - mib * MIB / top)), abs=0.06)

    areas = {area.get("data-layer"): points(area) for area in picture.iter("polygon")}
    assert list(areas) == ["tr", "en"]
    sums = {"tr": ((0, 10), (5, 10), (10, 0)), "en": ((0, 30), (5, 50), (10, 40))}
    floors = {"tr": ((0, 0), (5, 0), (10, 0)), "en": sums["tr"]}
    for name, corners in areas.items():
        expected = [*sums[name], *reversed(floors[name])]
        assert len(corners) == len(expected)
        for corner, (seconds, mib) in zip(corners, expected, strict=True):
            assert corner == place(seconds, mib)
    (line,) = picture.iter("polyline")
    for corner, (seconds, mib) in zip(points(line), ((0, 60), (5, 90), (10, 80)), strict=True):
        assert corner == place(seconds, mib)


def test_only_the_window_is_drawn():
    samples = [sample(second, 50, en=20) for second in range(100)]
    picture = svg(plot_html(samples, window=10.0, state=None))
    (line,) = picture.iter("polyline")
    left = float(picture.get("data-x"))
    assert len(points(line)) == 11
    assert points(line)[0][0] == pytest.approx(left, abs=0.06)


def test_many_samples_keep_their_peaks():
    samples = [sample(index / 10, 900 if index == 1234 else 50, en=20) for index in range(3001)]
    picture = svg(plot_html(samples, window=300.0, state=None))
    (line,) = picture.iter("polyline")
    assert len(points(line)) <= 301
    top, y, height = (float(picture.get(f"data-{name}")) for name in ("top", "y", "height"))
    assert min(below for _, below in points(line)) == pytest.approx(y + height * (1 - 900 * MIB / top), abs=0.06)


def test_one_sample_is_a_picture():
    html = plot_html([sample(3, 50, en=20)], window=60.0, state=None)
    assert len(points(next(svg(html).iter("polyline")))) == 2


def test_a_budget_is_a_line_where_it_fits():
    near = plot_html([sample(0, 60, budget=100 * MIB, en=50)], window=10.0, state=None)
    assert [line for line in svg(near).iter("line") if line.get("stroke-dasharray")]
    assert "budget 100 MiB" in near
    far = plot_html([sample(0, 60, budget=64 << 30, en=50)], window=10.0, state=None)
    assert not [line for line in svg(far).iter("line") if line.get("stroke-dasharray")], "models would be a flat line"
    assert "budget 64 GiB" in far


def test_axes_have_units():
    html = plot_html([sample(0, 60, en=50), sample(30, 60, en=50)], window=120.0, state=None)
    assert {"2 min ago", "1 min ago", "now", "0"} <= set(texts(html))
    assert any(text.endswith(" MiB") for text in texts(html))
    html = plot_html([sample(0, 9000, en=8000)], window=30.0, state=None)
    assert "30 s ago" in texts(html)
    assert any(text.endswith(" GiB") for text in texts(html))


def test_the_legend_has_figures_and_cards():
    html = plot_html([sample(0, 80, cards={"en": 300 * MIB}, tr=10, en=20)], window=10.0, state="stopped")
    assert "en 20 MiB" in html
    assert "300 MiB on the card" in html
    assert "process 80 MiB" in html
    assert "stopped" in html


def test_caches_lie_on_top_and_what_was_unloaded_has_no_figure():
    samples = [
        sample(0, 80, **{"cache of results": 1, "tr": 10}),
        sample(1, 80, **{"cache of results": 1, "keys and values": 2, "en": 5}),
    ]
    html = plot_html(samples, window=10.0, state=None)
    names = [area.get("data-layer") for area in svg(html).iter("polygon")]
    assert names == ["tr", "en", "cache of results", "keys and values"]
    assert "tr –" in html
    assert "en 5 MiB" in html


def test_names_are_escaped_and_themes_work():
    hostile = "<script>alert(1)</script>\"'&<img src=x onerror=alert(1)>"
    html = plot_html([MemorySample(0.0, MIB, {hostile: MIB}, None, {})], window=10.0, state=None)
    assert "<script" not in html
    assert "<img" not in html
    ET.fromstring(f"<all>{html}</all>")
    assert "currentColor" in html
    assert "url(" not in html


# --- Live -------------------------------------------------------------------------------------------------------------


def test_it_shows_a_load_and_an_unload(manager, notebook):
    plot = memory_plot(manager, interval=0.1)
    assert plot.running
    assert "english_sentence" not in plot.samples[-1].layers
    manager.embed(ENGLISH_TEXT)
    size = manager.stats()["slots"]["english_sentence"]["bytes"]
    until(lambda: plot.samples[-1].layers.get("english_sentence") == size)
    manager.unload("english_sentence")
    until(lambda: not plot.samples[-1].layers.get("english_sentence"))
    plot.stop()
    assert not plot.running
    assert "stopped" in notebook.shown[-1]
    assert 'data-layer="english_sentence"' in notebook.shown[-1], "it was there"
    shown = len(notebook.shown)
    plot.stop()
    time.sleep(0.25)
    assert len(notebook.shown) == shown, "ended is ended"


def test_the_last_picture_is_of_the_end(manager, notebook):
    plot = memory_plot(manager, interval=60.0)
    manager.load("english_sentence")
    plot.stop()
    assert "english_sentence" in plot.samples[-1].layers
    assert 'data-layer="english_sentence"' in notebook.shown[-1]


def test_looking_loads_nothing(manager, notebook):
    with memory_plot(manager, interval=0.1) as plot:
        until(lambda: len(plot.samples) > 2)
    assert not plot.running
    assert not any(map(manager.is_loaded, manager.slots()))


def test_closing_the_manager_ends_it(manager, notebook):
    plot = memory_plot(manager, interval=0.1)
    manager.close()
    until(lambda: not plot.running)
    assert "manager closed" in notebook.shown[-1]
    with pytest.raises(ClosedError):
        memory_plot(manager)


def test_it_does_not_keep_the_manager(notebook):
    from conftest import tiny

    manager = tiny()
    plot = memory_plot(manager, interval=0.1)
    until(lambda: len(plot.samples) > 1)
    manager.close()
    del manager
    gc.collect()
    until(lambda: not plot.running)


def test_time_ends_it(manager, notebook):
    plot = memory_plot(manager, interval=0.1, duration=0.3)
    until(lambda: not plot.running)
    assert "ended after 0.3 s" in notebook.shown[-1]


def test_a_second_plot_ends_the_first(manager, notebook):
    first = memory_plot(manager, interval=0.1)
    second = memory_plot(manager, interval=0.1)
    assert not first.running
    assert second.running
    second.stop()


def test_a_notebook_that_went_away_ends_it(manager, monkeypatch, caplog):
    notebook = Notebook(broken_after=3)
    monkeypatch.setattr(drawing, "_display", notebook)
    plot = memory_plot(manager, interval=0.1)
    until(lambda: not plot.running)
    assert "the kernel is gone" in caplog.text
    plot.stop()


def test_threads_end(manager, notebook):
    before = {thread.ident for thread in threading.enumerate()}
    for _ in range(3):
        memory_plot(manager, interval=0.1).stop()
    assert {thread.ident for thread in threading.enumerate()} <= before


def test_the_window_bounds_memory(manager, notebook, monkeypatch):
    with memory_plot(manager, interval=0.1, window=1.0) as plot:
        until(lambda: len(plot.samples) >= 10)
        for _ in range(200):
            plot._take(manager)
        assert plot.samples[-1].seconds - plot.samples[0].seconds <= 1.2


def test_outside_of_a_notebook_it_says_so(manager):
    with pytest.raises(RuntimeError, match=r"memory_plot\(\) draws in a notebook.*stats\(\)"):
        memory_plot(manager)


WRONG = [0, -1, float("nan"), "1", True]


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name in ("interval", "window", "duration") for value in WRONG]
    + [("interval", None), ("window", None)],
)
def test_wrong_arguments_are_named(manager, notebook, name, value):
    with pytest.raises((InputError, TypeError), match=name):
        memory_plot(manager, **{name: value})
    assert notebook.shown == []


def test_an_interval_below_a_tenth_of_a_second_is_refused(manager, notebook):
    with pytest.raises(InputError, match=r"interval=0\.05.*0\.1"):
        memory_plot(manager, interval=0.05)


def test_it_wants_a_manager(notebook):
    with pytest.raises(TypeError, match="manager"):
        memory_plot("english_sentence")


def test_repr(manager, notebook):
    with memory_plot(manager, interval=0.1) as plot:
        assert isinstance(plot, MemoryPlot)
        assert repr(plot).startswith("<MemoryPlot running, ")
    assert repr(plot).startswith("<MemoryPlot stopped, ")


@pytest.mark.timeout(90)
@pytest.mark.filterwarnings("default")
def test_in_a_real_notebook(monkeypatch, tmp_path):
    """The picture of the first cell changes while other cells run, and stays as it was at the end."""
    sources = (
        f"""
import time, warnings
warnings.simplefilter("error")
from model_manager import ModelManager
from model_manager.integrations.jupyter import memory_plot
manager = ModelManager(english_model={ENGLISH_MODEL!r})
plot = memory_plot(manager, interval=0.1)
""",
        """
manager.load("english_sentence")
deadline = time.monotonic() + 30
while "english_sentence" not in plot.samples[-1].layers and time.monotonic() < deadline:
    time.sleep(0.01)
""",
        "plot.stop()",
    )
    cells = run_cells(sources, tmp_path, monkeypatch)
    (output,) = cells[0].outputs
    assert output["output_type"] == "display_data"
    assert 'data-layer="english_sentence"' in output["data"]["text/html"]
    assert "stopped" in output["data"]["text/html"]
    assert output["data"]["text/plain"].startswith("<MemoryPlot stopped")
    assert "Error" not in json.dumps([cell.outputs for cell in cells])
