"""The chatbot's decorators."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import time

import pytest
from conftest import ENGLISH_MODEL, TURKISH_MODEL, run_python
from model_manager import Config, ModelManager, ModelType, lazy_load_model, memory_efficient_cache, model_manager
from model_manager.compat.lazy import LazyModel
from model_manager.errors import ArgumentError


class Mine(ModelManager):
    loads = 0

    @lazy_load_model("summarizer")
    def summarizer(self):
        """Makes long texts short."""
        type(self).loads += 1
        time.sleep(0.05)
        return {"model": self.loads}


@pytest.fixture
def mine():
    Mine.loads = 0
    with Mine(Config(auto_cleanup=False)) as manager:
        yield manager


def test_loaded_at_first_use_and_once(mine):
    assert Mine.loads == 0
    results = []
    threads = [threading.Thread(target=lambda: results.append(mine.summarizer)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Mine.loads == 1
    assert set(map(id, results)) == {id(mine.summarizer)}
    assert results[0] == {"model": 1}


def test_tracked_unloaded_and_loaded_again(mine):
    assert mine.summarizer == {"model": 1}
    assert mine.is_loaded("summarizer")
    assert mine.tracker.get_statistics()["load_counts"] == {"summarizer": 1}
    assert mine.unload("summarizer")
    assert mine.summarizer == {"model": 2}


def test_unloaded_when_idle(mine):
    assert mine.summarizer
    mine.set_auto_cleanup(True, 0.1, 0.1)
    end = time.monotonic() + 30
    while mine.is_loaded("summarizer"):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_documented_on_the_class():
    assert Mine.summarizer.__doc__ == "Makes long texts short."


def test_a_built_in_slot_can_be_replaced_this_way():
    class WithGenerator(ModelManager):
        @lazy_load_model(ModelType.TEXT_GENERATOR)
        def text_generator(self):
            return lambda prompt, **options: [{"generated_text": "A fine answer."}]

    with WithGenerator() as manager:
        assert manager.generate_text_response("hello") == "A fine answer."
        assert manager.get_model_info()["text_generator_loaded"]


def test_one_kind_is_one_property_of_a_manager():
    """The kind is the slot: a second property would return the object of the first."""
    with pytest.raises(ArgumentError, match=r"Twice\.second: .*'summarizer'.* kind of Twice\.first .*another kind"):

        class Twice(ModelManager):
            @lazy_load_model("summarizer")
            def first(self):
                return "first"

            @lazy_load_model("summarizer")
            def second(self):
                return "second"

    with pytest.raises(ArgumentError, match=r"Derived\.other: .*'summarizer'.* kind of Derived\.summarizer "):

        class Derived(Mine):
            @lazy_load_model("summarizer")
            def other(self):
                return "other"


def test_a_mixin_counts_as_the_class_itself():
    class Mixin:
        @lazy_load_model("summarizer")
        def of_the_mixin(self):
            return "of the mixin"

    with pytest.raises(ArgumentError, match=r"Both\.(summarizer|of_the_mixin): .*'summarizer'"):

        class Both(Mixin, Mine):
            pass


def test_a_derived_class_may_replace_a_property():
    class Replaced(Mine):
        @lazy_load_model("summarizer")
        def summarizer(self):
            return "replaced"

    class Moved(Mine):
        summarizer = "no property"

        @lazy_load_model("summarizer")
        def other(self):
            return "other"

    class Alias(Mine):
        short = Mine.summarizer

    with Replaced(Config(auto_cleanup=False)) as manager:
        assert manager.summarizer == "replaced"
    with Moved(Config(auto_cleanup=False)) as manager:
        assert manager.other == "other"
    with Alias(Config(auto_cleanup=False)) as manager:
        assert manager.short is manager.summarizer


@pytest.mark.parametrize("kind", [ModelType.TURKISH_SENTENCE, ModelType.ENGLISH_SENTENCE, "english_sentence"])
def test_the_slots_of_the_sentence_models_are_taken(kind):
    """An object in such a slot embeds nothing, and `generate_embedding` would return an empty list."""
    with pytest.raises(ArgumentError, match=r"Embedding\.model: .*_sentence'.*register\("):

        class Embedding(ModelManager):
            @lazy_load_model(kind)
            def model(self):
                return "an object"


def test_in_any_other_class_kinds_may_repeat_and_be_those_of_sentence_models():
    class Host:
        @lazy_load_model(ModelType.ENGLISH_SENTENCE)
        def first(self):
            return ["first"]

        @lazy_load_model(ModelType.ENGLISH_SENTENCE)
        def second(self):
            return ["second"]

    host = Host()
    assert (host.first, host.second) == (["first"], ["second"])
    assert model_manager._english_sentence_model is None


def test_embedding_works_next_to_a_property():
    models = Config(english_model=ENGLISH_MODEL, turkish_model=TURKISH_MODEL, auto_cleanup=False)
    with Mine(models) as manager:
        assert manager.summarizer
        assert len(manager.generate_embedding("an english text")) == 32


def test_in_any_other_class_the_process_wide_manager_keeps_it():
    class Service:
        def __init__(self, name):
            self.name = name

        @lazy_load_model("engine")
        def engine(self):
            return [self.name]

    first, second = Service("first"), Service("second")
    before = set(model_manager.slots())
    assert first.engine == ["first"]
    assert second.engine == ["second"]
    assert first.engine is first.engine
    assert len(set(model_manager.slots()) - before) == 2
    del first, second
    gc.collect()
    assert set(model_manager.slots()) == before, "the slots go with their owners"


class Copied:
    def __init__(self, path):
        self.path = path

    @lazy_load_model("copied")
    def engine(self):
        return [self.path]

    def __eq__(self, other):  # equal objects are not the same one, and have no hash
        return isinstance(other, Copied)

    __hash__ = None


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_has_an_object_of_its_own(how):
    before = set(model_manager.slots())
    first = Copied("first")
    assert first.engine == ["first"]
    second = how(first)
    second.path = "second"
    assert second.engine == ["second"]
    assert first.engine == ["first"]
    assert second.engine is second.engine
    del first
    gc.collect()
    assert second.engine == ["second"]
    del second
    gc.collect()
    assert set(model_manager.slots()) == before


def test_a_pickled_object_finds_no_slot_of_another_process():
    first = Copied("first")
    assert first.engine == ["first"]
    stored = pickle.dumps(first).hex()
    code = f"""
import pickle
from test_lazy import Copied
others = [Copied(f"other {{number}}") for number in range(20)]
assert [one.engine for one in others] == [[f"other {{number}}"] for number in range(20)]
print(pickle.loads(bytes.fromhex("{stored}")).engine)
"""
    assert run_python(code).stdout.strip() == "['first']"


def test_errors_of_the_loader_come_out_and_it_is_tried_again():
    class Flaky(ModelManager):
        calls = 0

        @lazy_load_model("flaky")
        def flaky(self):
            type(self).calls += 1
            if self.calls == 1:
                raise ConnectionError("no network")
            return "ready"

    with Flaky() as manager:
        with pytest.raises(RuntimeError, match="no network"):
            _ = manager.flaky
        assert manager.flaky == "ready"


def test_memory_efficient_cache():
    calls = []

    @memory_efficient_cache(maxsize=2)
    def square(n):
        """Times itself."""
        calls.append(n)
        if n < 0:
            raise ValueError(n)
        return n * n

    assert [square(2), square(3), square(2), square(4), square(2), square(3)] == [4, 9, 4, 16, 4, 9]
    assert calls == [2, 3, 4, 3], "the least recently used left"
    info = square.cache_info()
    assert (info.hits, info.misses, info.maxsize, info.currsize) == (2, 4, 2, 2)
    for _ in range(2):
        with pytest.raises(ValueError, match="-1"):
            square(-1)
    assert calls[-2:] == [-1, -1], "failures are not remembered"
    square.cache_clear()
    assert square.cache_info().currsize == 0
    assert square.__doc__ == "Times itself."


def test_memory_efficient_cache_keeps_50_by_default():
    @memory_efficient_cache()
    def same(n):
        return n

    for n in range(100):
        same(n)
    assert same.cache_info().maxsize == same.cache_info().currsize == 50


def test_memory_efficient_cache_without_parentheses():
    @memory_efficient_cache
    def function(number):
        return number

    assert function(1) == 1
    assert function.cache_info().maxsize == 50


def test_memory_efficient_cache_refuses_results_that_are_used_once():
    """The second caller would get a coroutine that was awaited already, or a generator without items."""

    async def coroutine(_):
        return 1

    def generator(_):
        yield 1

    for function in (coroutine, generator):
        for decorator in (memory_efficient_cache, memory_efficient_cache(maxsize=2)):
            with pytest.raises(TypeError, match=f"{function.__name__} must be a plain function that returns a value"):
                decorator(function)


class Base:
    @lazy_load_model("model")
    def model(self):
        return "base"


def test_a_subclass_overrides_a_property():
    class Derived(Base):
        @lazy_load_model("model")
        def model(self):
            return ["derived", super().model]

    for first in (Base, Derived):
        one = Derived()
        first.model.__get__(one)
        assert one.model == ["derived", "base"]
        assert Base.model.__get__(one) == "base"


def test_a_subclass_of_a_manager_overrides_a_property():
    class Derived(Mine):
        @lazy_load_model("summarizer")
        def summarizer(self):
            return ["derived", super().summarizer]

    with Derived(Config(auto_cleanup=False)) as manager:
        assert manager.summarizer[0] == "derived"
        assert list(manager.summarizer[1]) == ["model"]
        assert manager.get("summarizer") is manager.summarizer


def test_a_class_derived_from_one_of_its_own_name():
    """As in a notebook, where a cell is changed and run again."""
    derived = type("Base", (Base,), {})
    derived.__module__, derived.__qualname__ = Base.__module__, Base.__qualname__
    derived.model = LazyModel("model", lambda self: ["derived", Base.model.__get__(self)])
    derived.model.__set_name__(derived, "model")
    assert derived().model == ["derived", "base"]


def test_results_that_can_be_used_once_are_refused():
    async def coroutine(self):
        return 1

    def generator(self):
        yield 1

    async def both(self):
        yield 1

    for method in (coroutine, generator, both):
        with pytest.raises(TypeError, match=f"{method.__name__} must be a plain function"):
            lazy_load_model("model")(method)


@pytest.mark.parametrize(
    ("slots", "missing"),
    [((), "__dict__ and __weakref__"), (("__weakref__",), "__dict__"), (("__dict__",), "__weakref__")],
)
def test_slots_of_python_leave_no_place(slots, missing):
    class Slotted:
        __slots__ = slots

        @lazy_load_model("model")
        def model(self):
            return 1

    with pytest.raises(TypeError, match=f"Slotted has __slots__ without {missing}, which"):
        _ = Slotted().model
