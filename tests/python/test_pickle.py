"""A manager is pickled by its configuration."""

from __future__ import annotations

import copy
import pickle

import pytest
from conftest import DIMENSION, ENGLISH_MODEL, ENGLISH_TEXT
from model_manager import ModelManager, model_manager


def there_and_back(thing):
    return pickle.loads(pickle.dumps(thing))


def test_settings_travel_and_models_do_not(make_manager):
    manager = make_manager(cache_size=7)
    manager.embed(ENGLISH_TEXT)
    with there_and_back(manager) as other:
        assert other is not manager
        assert type(other) is ModelManager
        assert other.config == manager.config
        assert not other.is_loaded("english_sentence")
        assert other.embed(ENGLISH_TEXT).tolist() == manager.embed(ENGLISH_TEXT).tolist()


def test_registrations_travel(make_manager):
    manager = make_manager()
    manager.register("mine", ENGLISH_MODEL, dtype="float32", pooling="cls")
    manager.register("a list", loader=list)
    manager.register("gone", ENGLISH_MODEL)
    manager.unregister("gone")
    with there_and_back(manager) as other:
        assert other.slots() == manager.slots()
        assert other.describe("mine")["pooling"] == "cls"
        assert other.get("a list") == []


def test_a_loader_that_cannot_travel_says_so(make_manager):
    manager = make_manager()
    manager.register("mine", loader=lambda: 1)
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        pickle.dumps(manager)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_is_the_manager_itself(make_manager, copied):
    """What holds a manager is copied with it; a second manager would load its models once more."""
    manager = make_manager()
    manager.register("mine", loader=lambda: 1)
    assert copied(manager) is manager
    assert copied([manager])[0] is manager
    model = copied(manager.english_sentence_model)
    model.encode(ENGLISH_TEXT)
    assert manager.is_loaded("english_sentence")


def test_the_process_wide_object_stays_itself():
    assert there_and_back(model_manager) is model_manager
    assert copy.copy(model_manager) is model_manager
    assert copy.deepcopy(model_manager) is model_manager


def test_a_sentence_model_travels_with_its_manager(make_manager):
    model = make_manager().english_sentence_model
    other = there_and_back(model)
    assert other.name == "english_sentence"
    assert other.encode(ENGLISH_TEXT).shape == (DIMENSION,)
