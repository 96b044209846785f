"""Broken and missing model files give a clear error that names the file, and the slot recovers."""

from __future__ import annotations

import errno
import json
import os
import shutil
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import DIMENSION, ENGLISH_MODEL, ENGLISH_TEXT, FIXTURES
from model_manager.errors import (
    InvalidFileError,
    MissingFileError,
    ModelManagerError,
    ModelNotFoundError,
    NotFiniteError,
    UnsupportedModelError,
)


@pytest.fixture
def folder(tmp_path):
    """A copy of a tiny model, to be broken."""
    return Path(shutil.copytree(ENGLISH_MODEL, tmp_path / "model"))


def fails(manager, folder, error, match):
    """Loading raises `error`; when the files are repaired, the same slot works."""
    manager.register("model", str(folder), dtype="float32")
    for _ in range(2):
        with pytest.raises(error, match=match):
            manager.embed(ENGLISH_TEXT, "model")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ENGLISH_MODEL, folder)
    manager.unload("model")
    assert manager.embed(ENGLISH_TEXT, "model").shape == (DIMENSION,)


def test_no_folder(manager, tmp_path):
    fails(manager, tmp_path / "nowhere", ModelNotFoundError, "nowhere")


def test_a_package_that_is_not_installed(manager):
    manager.register("model", "pkg:no_such_package/model")
    with pytest.raises(ModelNotFoundError, match=r"no_such_package.*pip install"):
        manager.load("model")


def test_a_hub_model_that_is_not_there_offline(manager):
    manager.register("model", "someone/no-such-model")
    with pytest.raises(ModelNotFoundError, match=r"someone/no-such-model.*(offline|HF_HUB_OFFLINE)"):
        manager.load("model")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file(manager, folder, name):
    (folder / name).unlink()
    fails(manager, folder, MissingFileError, name if name != "model.safetensors" else "safetensors")


def test_errors_of_files_are_those_of_the_system(make_manager, folder, tmp_path):
    manager = make_manager(cache_disk=str(tmp_path / "cache"))
    (folder / "tokenizer.json").unlink()
    manager.register("model", str(folder))
    with pytest.raises(FileNotFoundError) as missing:
        manager.load("model")
    assert (missing.value.errno, missing.value.filename) == (errno.ENOENT, str(folder / "tokenizer.json"))
    assert "tokenizer.json" in str(missing.value)
    with pytest.raises(OSError, match="none") as unwritable:
        manager.cache_export(tmp_path / "none" / "file")
    assert unwritable.value.filename == str(tmp_path / "none" / "file")
    if sys.platform != "win32":
        assert unwritable.value.errno == errno.ENOENT


DAMAGED = [
    (name, content)
    for name in ["config.json", "tokenizer.json", "modules.json", "1_Pooling/config.json"]
    for content in ["", "{", "[]", '"text"', "\0\0\0"]
    # An empty list of modules is well-formed.
    if (name, content) != ("modules.json", "[]")
]


@pytest.mark.parametrize(("name", "content"), DAMAGED)
def test_a_damaged_json_file(manager, folder, name, content):
    (folder / name).write_text(content)
    fails(manager, folder, ModelManagerError, name.split("/")[-1])


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -1000, -1])
def test_truncated_weights(manager, folder, keep):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:keep])
    fails(manager, folder, InvalidFileError, "model.safetensors")


def test_a_header_that_lies_about_its_length(manager, folder):
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 2**63) + path.read_bytes()[8:])
    fails(manager, folder, InvalidFileError, "model.safetensors")


def rewrite(folder, change):
    """Pass the safetensors header and data through `change(header, data) -> (header, data)`."""
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header, data = change(json.loads(raw[8 : 8 + length]), bytearray(raw[8 + length :]))
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(data))


def test_a_tensor_of_the_wrong_shape(manager, folder):
    config = json.loads((folder / "config.json").read_text())
    config["vocab_size"] += 1
    (folder / "config.json").write_text(json.dumps(config))
    fails(manager, folder, InvalidFileError, r"word_embeddings.*(shape|rows|\[)")


def test_a_missing_tensor(manager, folder):
    def change(header, data):
        name = next(name for name in header if name.endswith("layer.0.output.dense.weight"))
        header[name + ".lost"] = header.pop(name)
        return header, data

    rewrite(folder, change)
    fails(manager, folder, InvalidFileError, r"layer\.0\.output\.dense\.weight")


def test_not_a_number_in_the_weights(manager, folder):
    def change(header, data):
        name = next(name for name in header if name.endswith("layer.1.output.dense.bias"))
        start, end = header[name]["data_offsets"]
        data[start:end] = struct.pack("<f", float("nan")) * ((end - start) // 4)
        return header, data

    rewrite(folder, change)
    fails(manager, folder, NotFiniteError, "model")


@pytest.mark.parametrize(
    ("key", "value"), [("model_type", "gpt_neo"), ("model_type", "no_such"), ("hidden_act", "no_such")]
)
def test_an_unsupported_model(manager, folder, key, value):
    config = json.loads((folder / "config.json").read_text())
    config[key] = value
    (folder / "config.json").write_text(json.dumps(config))
    fails(manager, folder, UnsupportedModelError, value)


@pytest.mark.parametrize(
    ("key", "value"), [("num_attention_heads", 0), ("hidden_size", 10**12), ("num_hidden_layers", -1)]
)
def test_a_config_out_of_range(manager, folder, key, value):
    config = json.loads((folder / "config.json").read_text())
    config[key] = value
    (folder / "config.json").write_text(json.dumps(config))
    fails(manager, folder, ModelManagerError, f"config.json|shape|{key}|attention heads")


@pytest.mark.skipif(
    os.name != "posix" or os.geteuid() == 0, reason="a mode keeps neither root nor Windows from reading"
)
def test_no_permission(manager, folder):
    (folder / "model.safetensors").chmod(0)
    fails(manager, folder, PermissionError, "model.safetensors")


def test_a_folder_where_a_file_should_be(manager, folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()
    fails(manager, folder, ModelManagerError, "safetensors")


def with_a_large_table(folder, factor=1.0):
    """Weights whose word embeddings are too large to be copied at the load, in an old file."""
    config = json.loads((folder / "config.json").read_text())
    rows = 10_000

    def change(header, data):
        name = next(name for name in header if name.endswith("word_embeddings.weight"))
        start, end = header[name]["data_offsets"]
        width = header[name]["shape"][1]
        table = np.zeros((rows, width), np.float32)
        table[: header[name]["shape"][0]] = np.frombuffer(data[start:end], np.float32).reshape(-1, width) * factor
        grown = table.nbytes - (end - start)
        for other in header.values():
            if "data_offsets" in other and other["data_offsets"][0] >= end:
                other["data_offsets"] = [at + grown for at in other["data_offsets"]]
        header[name] |= {"shape": [rows, width], "data_offsets": [start, end + grown]}
        return header, bytes(data[:start]) + table.tobytes() + bytes(data[end:])

    rewrite(folder, change)
    config["vocab_size"] = rows
    (folder / "config.json").write_text(json.dumps(config))
    os.utime(folder / "model.safetensors", (1_700_000_000, 1_700_000_000))


def test_weights_that_are_overwritten_in_place(make_manager, folder, tmp_path):
    """No signal and no vectors from two files: the model is loaded again."""
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    with_a_large_table(folder)
    with_a_large_table(other, factor=0.5)
    path = folder / "model.safetensors"
    sound, changed = path.read_bytes(), (other / "model.safetensors").read_bytes()
    assert len(sound) == len(changed)

    def embed(manager):
        return manager.embed(ENGLISH_TEXT, "model").tolist()

    manager, fresh = make_manager(cache_size=0), make_manager()
    manager.register("model", str(folder), dtype="float32")
    fresh.register("model", str(other), dtype="float32")
    first, second = embed(manager), embed(fresh)
    assert first != second
    path.write_bytes(changed)
    assert embed(manager) == second
    os.utime(path, (1_700_000_001, 1_700_000_001))
    manager.unload("model")
    assert embed(manager) == second
    path.write_bytes(sound[: len(sound) // 2])
    for _ in range(2):
        with pytest.raises(InvalidFileError, match=r"model\.safetensors"):
            embed(manager)
    path.write_bytes(sound)
    assert embed(manager) == first


def test_weights_that_are_overwritten_under_every_batch(make_manager, folder):
    """Every answer is correct or a typed error, for any interleaving of reads and writes."""
    with_a_large_table(folder)
    path = folder / "model.safetensors"
    sound = path.read_bytes()
    manager = make_manager(cache_size=0)
    manager.register("model", str(folder), dtype="float32")
    expected = manager.embed(ENGLISH_TEXT, "model").tolist()
    stop = threading.Event()

    def overwrite():
        while not stop.is_set():
            path.write_bytes(sound[:-100_000])
            path.write_bytes(sound)

    writer = threading.Thread(target=overwrite)
    writer.start()
    refused = []
    try:
        for _ in range(50):
            try:
                assert manager.embed(ENGLISH_TEXT, "model").tolist() == expected
            except InvalidFileError as error:
                refused.append(str(error))
    finally:
        stop.set()
        writer.join()
    assert all("model.safetensors" in error for error in refused)
    assert manager.embed(ENGLISH_TEXT, "model").tolist() == expected


def test_nothing_is_written_to_the_terminal():
    """Integers and booleans in a PyTorch file are not a reason to refuse it."""
    code = (
        "import sys; from model_manager import ModelManager; m = ModelManager();"
        "m.register('m', sys.argv[1]); m.embed('a', 'm')"
    )
    command = [sys.executable, "-c", code, str(FIXTURES / "bert_bin")]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={**os.environ, "RUST_BACKTRACE": "1"}
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_shards_of_pytorch(make_manager, tmp_path):
    folder = Path(shutil.copytree(FIXTURES / "bert_bin", tmp_path / "m"))
    names = [f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)]
    (folder / "pytorch_model.bin").rename(folder / names[1])
    shutil.copy(FIXTURES / "bge_m3" / "sparse_linear.pt", folder / names[0])
    index = {"metadata": {}, "weight_map": {"weight": names[0], "embeddings.word_embeddings.weight": names[1]}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    manager = make_manager()
    manager.register("m", str(folder))
    manager.register("whole", str(FIXTURES / "bert_bin"))
    np.testing.assert_array_equal(manager.embed(ENGLISH_TEXT, "m"), manager.embed(ENGLISH_TEXT, "whole"))
    manager.unload("m")
    (folder / names[1]).unlink()
    with pytest.raises(MissingFileError, match=names[1]):
        manager.embed("another text", "m")
