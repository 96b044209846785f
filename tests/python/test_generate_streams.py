"""The ends of a stream: closing it, and a second thread that reads it."""

from __future__ import annotations

import contextlib
import threading

import pytest
from generators import GREEDY, TEXT, WITHOUT_END, eventually, figures


@pytest.mark.parametrize("form", ["close", "closing", "with"])
def test_a_closed_stream_ends_at_once(endless, form):
    before = figures(endless)["cancelled"]
    stream = endless.stream(TEXT, **WITHOUT_END)
    manager = {"close": contextlib.nullcontext(stream), "closing": contextlib.closing(stream), "with": stream}[form]
    with manager as opened:
        assert opened is stream
        assert next(stream)
        if form == "close":
            stream.close()
    assert list(stream) == []
    assert stream.completion is None
    eventually(lambda: figures(endless)["cancelled"] == before + 1)
    stream.close()
    stream.cancel()


def test_an_error_within_a_with_statement_is_raised_on(endless):
    stream = endless.stream(TEXT, **WITHOUT_END)

    def read():
        with stream:
            raise KeyError(next(stream))

    with pytest.raises(KeyError):
        read()
    assert list(stream) == []


def test_a_stream_that_has_ended_may_be_closed(gpt2):
    with gpt2.stream(TEXT, **GREEDY, max_new_tokens=4) as stream:
        text = "".join(stream)
    assert stream.completion["text"] == text == gpt2.generate(TEXT, **GREEDY, max_new_tokens=4)


def test_one_thread_reads_a_stream(endless):
    stream = endless.stream(TEXT, **WITHOUT_END)
    pieces = []
    reader = threading.Thread(target=lambda: pieces.extend(stream))
    reader.start()
    # A piece that comes between two readers' calls serves either.
    with pytest.raises(RuntimeError, match="another thread already waits for a piece"):
        for _ in stream:
            pass
    assert reader.is_alive()
    stream.close()
    reader.join()
    assert pieces
    assert list(stream) == []


async def test_an_asynchronous_stream_is_closed_by_its_block(endless):
    before = figures(endless)["cancelled"]
    async with endless.astream(TEXT, **WITHOUT_END) as stream:
        assert await anext(stream)
    assert [piece async for piece in stream] == []
    eventually(lambda: figures(endless)["cancelled"] == before + 1)
