"""What a registration keeps, and what is left when it ends."""

from __future__ import annotations

import functools
import pickle
from typing import TYPE_CHECKING

import pytest
from conftest import ENGLISH_MODEL, ENGLISH_TEXT, TURKISH_MODEL
from model_manager import ModelManager, errors, lazy_load_model, model_manager

if TYPE_CHECKING:
    from collections.abc import Callable

ENGLISH = "english_sentence"


def there_and_back(manager: ModelManager) -> ModelManager:
    return pickle.loads(pickle.dumps(manager))


# --- Loaders whose result can be used once ----------------------------------------------------------------------------


async def coroutine() -> int:
    return 5


def generator():
    yield 5


async def asynchronous_generator():
    yield 5


class Loader:
    async def method(self) -> int:
        return 5

    async def __call__(self) -> int:
        return 5


ONCE = [coroutine, generator, asynchronous_generator, Loader().method, Loader(), functools.partial(coroutine)]


@pytest.mark.parametrize("loader", ONCE)
def test_a_loader_whose_result_can_be_used_once_is_refused(manager, loader):
    with pytest.raises(TypeError, match="must be a plain function that returns the model"):
        manager.register("mine", loader=loader)
    assert "mine" not in manager.slots()


@pytest.mark.parametrize("loader", [list, functools.partial(dict, a=1), lambda: 5, Loader, "text".upper])
def test_other_loaders_are_not(manager, loader):
    manager.register("mine", loader=loader)
    assert type(manager.get("mine")) is type(loader())


def test_a_loader_that_returns_a_coroutine_says_so(manager):
    manager.register("mine", loader=lambda: coroutine())
    with pytest.raises(errors.LoaderError, match="not a coroutine"):
        manager.get("mine")


# --- Pickling ---------------------------------------------------------------------------------------------------------


def test_what_is_changed_after_the_registration_is_not_pickled(manager):
    prompts, cache = {"query": "find: "}, {"size": 3, "tiers": ["memory"]}
    manager.register("mine", ENGLISH_MODEL, prompts=prompts, cache=cache)
    prompts["query"] = "seek: "
    cache["tiers"].append("nothing")
    with there_and_back(manager) as other:
        here, there = (one.embed("a text", "mine", prompt_name="query") for one in (manager, other))
        assert here.tolist() == there.tolist()
        assert other.cache_info()["models"]["mine"]["max_entries"] == 3


@pytest.mark.parametrize("fallback", [lambda: iter([ENGLISH_MODEL]), lambda: {ENGLISH_MODEL: 1}.keys()])
def test_fallbacks_that_can_be_read_once(manager, fallback):
    manager.register("mine", "/no/such/folder", fallback=fallback(), kind="embedding")
    with there_and_back(manager) as other:
        assert other.embed(ENGLISH_TEXT, "mine").tolist() == manager.embed(ENGLISH_TEXT, "mine").tolist()


@pytest.mark.parametrize("fallback", ["a text", {"a": 1}, 5, [5]])
def test_other_fallbacks_are_refused_as_before(manager, fallback):
    with pytest.raises(TypeError, match="fallback"):
        manager.register("mine", ENGLISH_MODEL, fallback=fallback)


def test_what_is_set_on_a_manager_travels(make_manager):
    manager = make_manager()
    manager.quality_threshold = 0.25
    manager.fallback_answers = ["one", "two"]
    manager.set_auto_cleanup(True, 7, 99)
    with there_and_back(manager) as other:
        assert other.quality_threshold == 0.25
        assert other.fallback_answers == ["one", "two"]
        assert other.auto_cleanup == (True, 7, 99)
        # And once more.
        with there_and_back(other) as third:
            assert (third.quality_threshold, third.auto_cleanup) == (0.25, (True, 7, 99))


class Named(ModelManager):
    def __init__(self, name="usual", **settings):
        self.name = name


class WithNew(ModelManager):
    def __new__(cls, name, **settings):
        return super().__new__(cls, **settings)

    def __init__(self, *others, **settings):
        pass


class Demanding(ModelManager):
    def __init__(self, config, folder):
        self.folder = folder


class Usual(ModelManager):
    def __init__(self, config=None, *, label="usual", **settings):
        self.label = label


class Reducing(WithNew):
    def __reduce__(self):
        return (Reducing, ("mine",))


@pytest.mark.parametrize("make", [lambda: Named(cache_size=3), lambda: WithNew("a", cache_size=3)])
def test_a_class_that_takes_other_arguments_is_not_made_of_the_wrong_ones(make):
    with make() as manager, pytest.raises(TypeError, match=r"__reduce__, or let __(init|new)__ take config alone"):
        pickle.dumps(manager)


def test_classes_that_can_be_made_again():
    with Usual(cache_size=3) as manager, there_and_back(manager) as other:
        assert (other.label, other.config.cache_size) == ("usual", 3)
    with Reducing("mine", cache_size=3) as manager, there_and_back(manager) as other:
        assert type(other) is Reducing


# --- The end of a registration ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["unregister", "replace", "files"])
def test_pins_of_a_model_that_is_gone_leave_the_cache(make_manager, tmp_path, ending):
    import shutil

    from conftest import give_other_weights

    manager = make_manager(cache_size=3)
    folder = shutil.copytree(ENGLISH_MODEL, tmp_path / "model")
    manager.register("mine", folder)
    manager.preload(["one", "two", "three"], "mine", when="now", pin=True).wait()
    assert manager.cache_info()["pinned"] == 3
    if ending == "unregister":
        manager.unregister("mine")
    elif ending == "replace":
        manager.register("mine", TURKISH_MODEL, replace=True)
    else:
        manager.unload("mine")
        give_other_weights(folder)
        manager.load("mine")
    assert manager.cache_info()["pinned"] == 0
    manager.embed(ENGLISH_TEXT, ENGLISH)
    assert manager.cache_info()["entries"] == 1


def test_pins_stay_where_a_slot_has_the_same_model(make_manager):
    manager = make_manager(cache_size=3)
    manager.register("mine", ENGLISH_MODEL)
    manager.register("again", ENGLISH_MODEL)
    manager.preload(["one", "two"], "mine", when="now", pin=True).wait()
    manager.load("again")
    manager.unregister("mine")
    assert manager.cache_info()["pinned"] == 2
    # Registered once more: its files may have another model now.
    manager.register("again", ENGLISH_MODEL, replace=True)
    assert manager.cache_info()["pinned"] == 0


def test_a_slot_that_is_gone_has_no_figures(manager):
    tables = manager.tracker.get_statistics().keys()
    for number in range(3):
        manager.register(f"slot {number}", loader=list)
        manager.get(f"slot {number}")
        assert f"slot {number}" in manager.tracker.get_statistics()["load_times"]
        manager.unregister(f"slot {number}")
    manager.load(ENGLISH)
    figures = manager.tracker.get_statistics()
    assert figures.keys() == tables
    assert all(by_slot.keys() <= {ENGLISH} for by_slot in figures.values())
    # A slot of the same name begins anew.
    manager.register("slot 1", loader=list)
    manager.get("slot 1")
    assert manager.tracker.get_statistics()["load_counts"]["slot 1"] == 1


def test_lazy_models_of_dropped_objects_leave_no_figures():
    class Owner:
        @lazy_load_model("words")
        def words(self) -> list[str]:
            return ["a"]

    def used(make: Callable[[], Owner]) -> list[str]:
        return make().words

    for _ in range(3):
        assert used(Owner) == ["a"]
    figures = model_manager.tracker.get_statistics()
    assert not [name for by_slot in figures.values() for name in by_slot if "Owner" in name]
