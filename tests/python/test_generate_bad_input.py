"""Wrong prompts, parameters and files give a clear error, and the slot keeps working."""

from __future__ import annotations

import json
import shutil
import struct

import pytest
from conftest import ENGLISH_MODEL
from generators import GPT2, GREEDY, SLOT, TEXT
from model_manager.errors import (
    InputError,
    InvalidFileError,
    MissingFileError,
    ModelNotFoundError,
    NoGeneratorError,
    UnsupportedModelError,
)


@pytest.fixture(autouse=True)
def works_on(request):
    """After every error the generator of the module writes the same answer as before."""
    if "gpt2" not in request.fixturenames:
        yield
        return
    manager = request.getfixturevalue("gpt2")
    before = manager.generate(TEXT, **GREEDY, max_new_tokens=10)
    yield
    assert manager.generate(TEXT, **GREEDY, max_new_tokens=10) == before
    assert manager.stats()["slots"][SLOT]["generation"]["active"] <= 1


@pytest.mark.parametrize(
    ("prompt", "error", "words"),
    [
        ("", InputError, "empty"),
        ("word " * 100, InputError, "64"),
        ("lone \ud800", InputError, "surrogate"),
        (None, TypeError, "str"),
        (7, TypeError, "str"),
        (b"bytes", TypeError, "str"),
        ([], ValueError, "empty"),
        ([{"role": "user"}], InputError, "content"),
        ([{"role": "user", "content": object()}], TypeError, "object"),
        ([{"role": "user", "content": None}], TypeError, r'messages\[0\]\["content"\] must be a str, .* not NoneType'),
        ([{"role": "user", "content": ["a"]}], InputError, r'messages\[0\]\["content"\]\[0\] must be {"type": "text"'),
        ([{"role": "user", "content": [{"type": "image_url"}]}], InputError, "other content is not supported"),
        ([{"role": "usr", "content": "a"}], InputError, r"role.* must be one of system, developer, .*, not 'usr'"),
        ([{"role": 7, "content": "a"}], TypeError, r"role.* must be one of system, .*, not int"),
        (["text"], TypeError, "messages"),
    ],
)
def test_prompts(gpt2, prompt, error, words):
    for call in (gpt2.complete, gpt2.generate, gpt2.stream):
        with pytest.raises(error, match=words):
            call(prompt, max_new_tokens=3)


def test_a_text_is_no_chat(gpt2):
    with pytest.raises(TypeError, match="messages"):
        gpt2.chat("hello")


@pytest.mark.parametrize(
    ("params", "error", "words"),
    [
        ({"max_length": 1}, InputError, "max_length=1"),
        ({"max_length": 0}, InputError, "max_length"),
        ({"max_new_tokens": 0}, InputError, "max_new_tokens"),
        ({"max_new_tokens": -1}, InputError, "max_new_tokens"),
        ({"max_new_tokens": 1.5}, TypeError, "max_new_tokens"),
        ({"max_new_tokens": True}, TypeError, "max_new_tokens"),
        ({"temperature": -1}, InputError, "temperature"),
        ({"temperature": float("nan")}, InputError, "temperature"),
        ({"temperature": "hot"}, TypeError, "temperature"),
        ({"top_p": -0.1}, InputError, "top_p"),
        ({"top_p": 1.5}, InputError, "top_p"),
        ({"top_k": -2}, InputError, "top_k"),
        ({"min_p": 2}, InputError, "min_p"),
        ({"repetition_penalty": 0}, InputError, "repetition_penalty"),
        ({"no_repeat_ngram_size": -2}, InputError, "no_repeat_ngram_size"),
        ({"seed": -(2**63) - 1}, InputError, "seed"),
        ({"seed": 2**64}, InputError, "seed"),
        ({"seed": 1.0}, TypeError, "seed"),
        ({"min_new_tokens": 4, "max_new_tokens": 3}, InputError, "min_new_tokens=4: must be at most 3, the most"),
        ({"min_new_tokens": 100_000}, InputError, "min_new_tokens=100000: must be at most "),
        ({"seed": "x"}, TypeError, "seed"),
        ({"stop": 7}, TypeError, "stop"),
        ({"stop": [7]}, TypeError, "stop"),
        ({"stop": ["x"] * 65}, InputError, "stop has 65 texts: at most 64"),
        ({"stop": ["x" * 1025]}, InputError, "stop has a text of 1025 characters: at most 1024"),
        ({"stop": ["\ud800"]}, InputError, "surrogate"),
        ({"prefix_scope": 7}, TypeError, "prefix_scope"),
        ({"prefix_scope": "\ud800"}, InputError, "surrogate"),
        ({"timeout": -1}, InputError, "timeout"),
        ({"keep_alive": "soon"}, ValueError, "keep_alive"),
        ({"max_tokens": 5}, TypeError, "max_tokens"),
    ],
)
def test_parameters(gpt2, params, error, words):
    for call in (gpt2.complete, gpt2.stream, lambda prompt, **params: gpt2.submit_generation(prompt, print, **params)):
        if call is not gpt2.complete and words == "max_length=1":
            continue
        with pytest.raises(error, match=words):
            call(TEXT, **params)


def test_a_negative_seed_counts_down(gpt2):
    """As over HTTP, where seeds may be negative."""
    params = {"max_new_tokens": 5, "temperature": 1.0}
    found = gpt2.complete(TEXT, seed=-1, **params)
    assert found["seed"] == 2**64 - 1
    assert gpt2.complete(TEXT, seed=2**64 - 1, **params)["text"] == found["text"]


def test_no_generator(gpt2):
    gpt2.register("vectors", ENGLISH_MODEL, replace=True)
    with pytest.raises(NoGeneratorError, match='"vectors" gives vectors'):
        gpt2.generate(TEXT, "vectors")
    with pytest.raises(InputError, match="gives text"):
        gpt2.embed(TEXT, SLOT)
    with pytest.raises(KeyError):
        gpt2.generate(TEXT, "no_such")


def gguf(version=3, tensors=0, architecture="llama"):
    """The beginning of a .gguf file with one entry of metadata."""
    key, value = b"general.architecture", architecture.encode()
    entry = struct.pack("<Q", len(key)) + key + struct.pack("<IQ", 8, len(value)) + value
    return b"GGUF" + struct.pack("<IQQ", version, tensors, 1) + entry


FILES = {
    "empty": (b"", InvalidFileError),
    "wrong magic": (b"NOPE" + gguf()[4:], InvalidFileError),
    "cut in the header": (gguf()[:20], InvalidFileError),
    "cut in the metadata": (gguf()[:-3], InvalidFileError),
    "a version from the future": (gguf(version=99), (InvalidFileError, UnsupportedModelError)),
    "an unknown architecture": (gguf(architecture="mamba"), UnsupportedModelError),
    "a count beyond reason": (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60), InvalidFileError),
    "no tokenizer": (gguf(), (InvalidFileError, UnsupportedModelError)),
}


@pytest.mark.parametrize("name", FILES)
def test_gguf_files(make_writer, tmp_path, name):
    content, error = FILES[name]
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    manager = make_writer(generator_model=str(path))
    with pytest.raises(error, match=r"model\.gguf"):
        manager.generate(TEXT)
    assert manager.text_generator is None
    assert manager.stats()["slots"][SLOT]["state"] == "absent"
    assert "model.gguf" in manager.stats()["slots"][SLOT]["last_error"]


def test_a_truncated_real_file(make_writer, tmp_path, smollm2):
    path = tmp_path / "model.gguf"
    with open(smollm2, "rb") as whole:
        path.write_bytes(whole.read(5_000_000))
    with pytest.raises(InvalidFileError, match=r"model\.gguf"):
        make_writer(generator_model=str(path)).generate(TEXT)


def copy(folder):
    shutil.copytree(GPT2, folder)
    return folder


def test_a_slot_recovers(make_writer, tmp_path):
    model = tmp_path / "model"
    manager = make_writer(generator_model=str(model))
    with pytest.raises(ModelNotFoundError):
        manager.generate(TEXT)
    copy(model)
    (model / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(UnsupportedModelError, match="mamba"):
        manager.generate(TEXT)
    (model / "config.json").write_text("{")
    with pytest.raises(InvalidFileError, match=r"config\.json"):
        manager.generate(TEXT)
    (model / "config.json").unlink()
    with pytest.raises(MissingFileError, match=r"config\.json"):
        manager.generate(TEXT)
    shutil.rmtree(model)
    copy(model)
    assert manager.generate(TEXT, max_new_tokens=3) is not None
    assert manager.stats()["slots"][SLOT]["last_error"] is None


def test_weights(make_writer, tmp_path):
    model = copy(tmp_path / "model")
    whole = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(InvalidFileError, match=r"model\.safetensors"):
        make_writer(generator_model=str(model)).generate(TEXT)
    length = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + length])
    name = next(name for name in header if name.endswith("ln_f.weight"))
    header["another"] = header.pop(name)
    text = json.dumps(header).encode()
    (model / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length :])
    with pytest.raises((InvalidFileError, MissingFileError), match=r"ln_f\.weight"):
        make_writer(generator_model=str(model)).generate(TEXT)


def test_weights_that_are_not_numbers(make_writer, tmp_path):
    model = copy(tmp_path / "model")
    path = model / "model.safetensors"
    whole = path.read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    path.write_bytes(whole[: 8 + length] + b"\xff" * (len(whole) - 8 - length))
    manager = make_writer(generator_model=str(model))
    for _ in range(2):
        with pytest.raises(ArithmeticError):
            manager.generate(TEXT)
