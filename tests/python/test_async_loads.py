"""Asynchronous calls that ask what a model is: loading it does not block the event loop."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest
from conftest import ENGLISH_MODEL, FIXTURES, TURKISH_MODEL
from generators import GPT2, TEXT
from model_manager import Config, ModelManager
from model_manager.errors import InputError, UnknownModelError
from model_manager.handles import TextGenerator


class Watched(ModelManager):
    """A manager whose descriptions wait until the event loop has run a callback. On the loop's thread they never
    return.
    """

    on_loop: threading.Event
    descriptions: int

    def describe(self, name, load=True):
        if load:
            self._wait()
        return super().describe(name, load)

    def describe_generator(self, name="text_generator"):
        self._wait()
        return super().describe_generator(name)

    def _wait(self):
        self.descriptions += 1
        assert self.loop_thread != threading.get_ident(), "the model is loaded on the event loop"
        self.on_loop.clear()
        self.loop.call_soon_threadsafe(self.on_loop.set)
        assert self.on_loop.wait(30), "the event loop is blocked"

    def watch(self):
        """Begin to watch the running loop."""
        self.loop, self.loop_thread = asyncio.get_running_loop(), threading.get_ident()
        self.on_loop, self.descriptions = threading.Event(), 0


@pytest.fixture
def manager():
    settings = Config(
        english_model=ENGLISH_MODEL,
        turkish_model=TURKISH_MODEL,
        generator_model=GPT2,
        dtype="float32",
        generator_dtype="float32",
        auto_cleanup=False,
    )
    with Watched(settings) as manager:
        manager.register("bge", str(FIXTURES / "bge_m3"), dtype="float32")
        manager.register("splade", str(FIXTURES / "splade_bert"), dtype="float32")
        yield manager


@pytest.mark.parametrize("end", [316, [316]])
async def test_the_end_of_a_pipelines_text(manager, end):
    manager.watch()
    pipeline = TextGenerator(manager)
    answer = await pipeline.acall(TEXT, max_new_tokens=4, eos_token_id=end)
    assert manager.descriptions == 1
    assert answer == await pipeline.acall(TEXT, max_new_tokens=4)
    assert manager.descriptions == 1, "without the option nothing is looked up"
    with pytest.raises(InputError, match="eos_token_id=5: only the model's own token, 316"):
        await pipeline.acall(TEXT, eos_token_id=5)


async def test_what_is_wrong_with_a_call_is_said_without_a_load(manager):
    manager.watch()
    pipeline = TextGenerator(manager)
    with pytest.raises(TypeError, match="text_inputs"):
        await pipeline.acall(None, eos_token_id=316)
    with pytest.raises(TypeError, match="gather"):
        await pipeline.acall([TEXT, TEXT], eos_token_id=316)
    with pytest.raises(InputError, match="do_sample"):
        await pipeline.acall(TEXT, eos_token_id=316, num_return_sequences=2)
    assert manager.descriptions == 0
    assert not manager.is_loaded("text_generator")


@pytest.mark.parametrize("outputs", [("dense", "multi"), ("dense", "sparse", "multi")])
async def test_outputs(manager, outputs):
    manager.watch()
    found = await manager.aembed(["a text"], "bge", outputs=outputs)
    assert manager.descriptions == 1
    assert manager.is_loaded("bge")
    again = await manager.aembed(["a text"], "bge", outputs=outputs)
    assert manager.descriptions == 1, "a model in memory is described at once"
    np.testing.assert_array_equal(found.dense, again.dense)
    with pytest.raises(UnknownModelError, match="absent"):
        await manager.aembed(["a text"], "absent", outputs=outputs)


@pytest.mark.parametrize("outputs", ["dense", ("sparse", "sparse")])
async def test_one_output_needs_no_description(manager, outputs):
    manager.watch()
    await manager.aembed(["a text"], "bge", outputs=outputs)
    manager.embed(["a text"], "bge", outputs=outputs)
    assert manager.descriptions == 0


async def test_a_sparse_matrix(manager):
    pytest.importorskip("scipy")
    manager.watch()
    found = await manager.aembed_sparse(["a text"], "splade", form="scipy")
    assert found.shape == (1, manager.describe("splade", load=False)["sparse_dimension"])
    manager.unload("splade")
    # The result is in the cache, and the width of the matrix is the model's.
    assert (await manager.aembed_sparse(["a text"], "splade", form="scipy")).shape == found.shape
