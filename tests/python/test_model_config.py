"""Every feature in a model's files is supported or refused by name, never ignored."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import ENGLISH_TEXT, FIXTURES, changed
from model_manager import _core
from model_manager.errors import InvalidFileError, ModelManagerError, NoGeneratorError, UnsupportedModelError
from safetensors.numpy import load_file, save_file

TEXTS = ["Merhaba dünya, bugün hava çok güzel.", ENGLISH_TEXT]
FORWARD = {"method": "forward", "method_output_name": "last_hidden_state"}
MESSAGES = {"text": FORWARD, "message": {**FORWARD, "format": "flat"}}


@pytest.mark.parametrize(
    ("name", "file", "keys", "words"),
    [
        ("bert_plain", "config.json", {"auto_map": {"AutoModel": "modeling.OtherModel"}}, ["auto_map", "OtherModel"]),
        ("qwen3_embedding", "config.json", {"auto_map": {"AutoModel": "m.Qwen3BiModel"}}, ["auto_map"]),
        ("bert_plain", "config.json", {"is_decoder": True}, ["is_decoder"]),
        ("bert_plain", "config.json", {"embedding_size": 128}, ["embedding_size", "128"]),
        ("qwen3_embedding", "config.json", {"attn_logit_softcapping": 30.0}, ["attn_logit_softcapping"]),
        ("qwen3_embedding", "config.json", {"layer_types": ["linear_attention"] * 2}, ["linear_attention"]),
        (
            "qwen3_embedding",
            "config.json",
            {"rope_scaling": {"rope_type": "default", "mrope_section": [1, 2]}},
            ["mrope_section"],
        ),
        ("qwen3_embedding", "config.json", {"rope_scaling": {"rope_type": "spiral"}}, ["spiral"]),
        (
            "qwen3_embedding",
            "config.json",
            {"is_causal": True, "use_bidirectional_attention": True},
            ["contradicts itself"],
        ),
        ("bert_cls", "1_Pooling/config.json", {"pooling_mode_median": True}, ["pooling_mode_median"]),
        ("bert_dense", "2_Dense/config.json", {"scale": 2.0}, ["scale"]),
        ("bert_dense", "2_Dense/config.json", {"activation_function": "mine.Tanh"}, ["mine.Tanh"]),
        ("bert_dense", "2_Dense/config.json", {"module_output_name": "other"}, ["other"]),
        ("bert_cls", "sentence_bert_config.json", {"query_length": 8}, ["query_length"]),
        ("bert_cls", "sentence_bert_config.json", {"transformer_task": "fill-mask"}, ["fill-mask"]),
        ("bert_cls", "sentence_bert_config.json", {"model_args": {"is_causal": True}}, ["is_causal"]),
        ("bert_cls", "sentence_bert_config.json", {"modality_config": MESSAGES}, ["modality_config", "chat template"]),
        ("bert_cls", "config_sentence_transformers.json", {"model_type": "SparseEncoder"}, ["SparseEncoder"]),
    ],
)
def test_a_key_that_is_not_honoured_is_refused(make_manager, tmp_path, name, file, keys, words):
    manager = make_manager()
    manager.register("m", str(changed(name, tmp_path / "m", file, **keys)), kind="embedding")
    with pytest.raises(UnsupportedModelError) as raised:
        manager.embed(TEXTS, "m")
    assert all(word in str(raised.value) for word in words), raised.value


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ({"type": "custom_st.Transformer"}, "custom_st.Transformer"),
        ({"type": "sentence_transformers.models.LSTM"}, "LSTM"),
        ({"type": "sentence_transformers.models.Transformer", "kwargs": ["task"]}, "task"),
    ],
)
def test_modules_of_other_kinds_are_refused(make_manager, tmp_path, module, words):
    folder = Path(shutil.copytree(FIXTURES / "bert_cls", tmp_path / "m"))
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([{**modules[0], **module}, *modules[1:]]))
    manager = make_manager()
    manager.register("m", str(folder))
    with pytest.raises(UnsupportedModelError, match=words):
        manager.embed(TEXTS, "m")


@pytest.mark.parametrize("name", ["bert_dense", "bert_sharded", "qwen3_embedding"])
def test_nulls_mean_absent(make_manager, tmp_path, name):
    """null for every key with a default, in every file."""
    folder = Path(shutil.copytree(FIXTURES / name, tmp_path / "m"))
    for file, keys in {
        "config.json": [
            "type_vocab_size_",
            "rope_scaling",
            "is_causal",
            "use_sliding_window",
            "attention_bias",
            "layer_types",
            "mlp_bias",
            "auto_map",
            "classifier_dropout",
            "never_heard_of",
        ],
        "sentence_bert_config.json": ["do_lower_case", "transformer_task", "model_args"],
        "config_sentence_transformers.json": ["similarity_fn_name", "default_prompt_name"],
        "1_Pooling/config.json": ["include_prompt", "pooling_mode_max_tokens", "pooling_mode_lasttoken_"],
        "2_Dense/config.json": ["use_residual", "module_input_name", "bias"],
    }.items():
        path = folder / file
        if path.is_file():
            path.write_text(json.dumps({**json.loads(path.read_text()), **dict.fromkeys(keys)}))
    manager = make_manager()
    manager.register("same", str(FIXTURES / name))
    manager.register("nulls", str(folder))
    np.testing.assert_array_equal(manager.embed(TEXTS, "nulls"), manager.embed(TEXTS, "same"))


@pytest.mark.parametrize(
    ("name", "key", "default"),
    [
        ("mpnet", "hidden_act", "gelu"),
        ("mpnet", "layer_norm_eps", 1e-12),
        ("distilbert", "activation", "gelu"),
        ("albert", "hidden_act", "gelu_new"),
        ("albert", "layer_norm_eps", 1e-12),
        ("bert_cls", "hidden_act", "gelu"),
        ("bert_cls", "layer_norm_eps", 1e-12),
    ],
)
def test_an_absent_key_has_the_default_of_transformers(make_manager, tmp_path, name, key, default):
    said = str(changed(name, tmp_path / "said", "config.json", **{key: default}))
    absent = changed(name, tmp_path / "absent")
    config = json.loads((absent / "config.json").read_text())
    del config[key]
    (absent / "config.json").write_text(json.dumps(config))
    manager = make_manager()
    for slot, source in (("said", said), ("absent", str(absent))):
        manager.register(slot, source)
    assert np.array_equal(manager.embed(TEXTS, "absent"), manager.embed(TEXTS, "said"))


@pytest.mark.parametrize("kept", [8, 10_000, None])
def test_a_saved_truncate_dim_is_the_default(make_manager, tmp_path, kept):
    """As in sentence-transformers: cut after the model's own normalization; a call may ask for another length."""
    manager = make_manager()
    manager.register("whole", str(FIXTURES / "bert_dense"))
    file = "config_sentence_transformers.json"
    manager.register("cut", str(changed("bert_dense", tmp_path / "m", file, truncate_dim=kept)))
    for normalize in (False, True):
        whole = manager.embed(TEXTS, "whole", normalize=False)
        width = min(kept or whole.shape[1], whole.shape[1])
        expected = whole[:, :width]
        if normalize:
            expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(manager.embed(TEXTS, "cut", normalize=normalize), expected, rtol=1e-6, atol=1e-7)
        for asked in (4, whole.shape[1]):
            same = manager.embed(TEXTS, "whole", truncate_dim=asked, normalize=normalize)
            np.testing.assert_array_equal(manager.embed(TEXTS, "cut", truncate_dim=asked, normalize=normalize), same)
    assert manager.describe("cut")["dimension"] == width
    assert manager.embed([], "cut").shape == (0, width)
    _, parts = manager.embed_chunks(TEXTS[0], "cut", normalize=False)
    _, all_of_them = manager.embed_chunks(TEXTS[0], "whole", normalize=False)
    np.testing.assert_array_equal(parts, all_of_them[:, :width])


def test_a_saved_truncate_dim_cuts_the_vectors_among_other_results(make_manager, tmp_path):
    manager = make_manager()
    manager.register("whole", str(FIXTURES / "bge_m3"))
    cut = str(changed("bge_m3", tmp_path / "m", "config_sentence_transformers.json", truncate_dim=8))
    manager.register("cut", cut)
    kinds = ("dense", "sparse", "multi")
    whole, found = (manager.embed(TEXTS, slot, outputs=kinds, normalize=False) for slot in ("whole", "cut"))
    np.testing.assert_array_equal(found[0], whole[0][:, :8])
    for found_one, whole_one in zip(found[2], whole[2], strict=True):
        np.testing.assert_array_equal(found_one, whole_one)


def test_a_truncate_dim_of_a_model_without_vectors_is_refused(make_manager, tmp_path):
    manager = make_manager()
    manager.register(
        "m", str(changed("splade_bert", tmp_path / "m", "config_sentence_transformers.json", truncate_dim=8))
    )
    with pytest.raises(UnsupportedModelError, match=r"truncate_dim.*SparseEncoder has no vectors"):
        manager.embed_sparse(TEXTS, "m")


@pytest.mark.parametrize("wrong", [0, -1, "8", 2.5])
def test_a_saved_truncate_dim_that_is_no_length_is_refused(make_manager, tmp_path, wrong):
    manager = make_manager()
    cut = str(changed("bert_cls", tmp_path / "m", "config_sentence_transformers.json", truncate_dim=wrong))
    manager.register("cut", cut)
    with pytest.raises(InvalidFileError, match=r"config_sentence_transformers\.json"):
        manager.embed(TEXTS, "cut")


@pytest.mark.parametrize("flag", [{"is_causal": False}, {"use_bidirectional_attention": True}])
def test_both_names_of_the_flag_attend_in_both_directions(make_manager, tmp_path, flag):
    """test_parity checks the vectors themselves; here they must be equal, and different from the causal ones."""
    manager = make_manager()
    causal = {"is_causal": None, "use_bidirectional_attention": None}
    manager.register("known", str(FIXTURES / "qwen3_bidirectional"))
    manager.register("flag", str(changed("qwen3_bidirectional", tmp_path / "f", "config.json", **{**causal, **flag})))
    manager.register("causal", str(changed("qwen3_bidirectional", tmp_path / "c", "config.json", **causal)))
    known = manager.embed(TEXTS, "known")
    np.testing.assert_array_equal(manager.embed(TEXTS, "flag"), known)
    assert np.abs(manager.embed(TEXTS, "causal") - known).max() > 0.05


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"is_causal": False}, "both directions"),
        ({"auto_map": {"AutoModelForCausalLM": "m.MyForCausalLM"}}, "auto_map"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"logit_scale": 0.25}, "logit_scale"),
    ],
)
def test_a_generator_is_held_to_its_configuration(make_manager, tmp_path, keys, words):
    manager = make_manager()
    manager.register("gen", str(changed("llama", tmp_path / "m", "config.json", **keys)), kind="generator")
    with pytest.raises(ModelManagerError, match=words):
        manager.generate("a", "gen", max_new_tokens=2)


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_generator_weights_without_their_prefix(make_manager, tmp_path, name):
    folder = Path(shutil.copytree(FIXTURES / name, tmp_path / "m"))
    tensors = load_file(folder / "model.safetensors")
    assert any(tensor.startswith("model.") for tensor in tensors)
    save_file({tensor.removeprefix("model."): value for tensor, value in tensors.items()}, folder / "model.safetensors")
    manager = make_manager(generator_dtype="float32")
    manager.register("whole", str(FIXTURES / name))
    manager.register("short", str(folder))
    options = {"do_sample": False, "max_new_tokens": 8}
    assert manager.complete("a", "short", **options)["tokens"] == manager.complete("a", "whole", **options)["tokens"]


def kind(manager, slot: str) -> str:
    return manager.stats()["slots"][slot]["kind"]


def test_the_kind_is_read_from_the_files(make_manager, tmp_path):
    manager = make_manager()
    for name in ("llama", "gpt2", "qwen3"):
        manager.register(name, str(FIXTURES / name))
        assert kind(manager, name) == "generator"
        assert isinstance(manager.generate("a", name, max_new_tokens=2), str)
        with pytest.raises(ModelManagerError, match='kind="embedding"'):
            manager.embed("a", name)
    for name in ("bert_plain", "qwen3_embedding"):
        manager.register(name, str(FIXTURES / name))
        assert kind(manager, name) == "embedding"
        assert len(manager.embed("abc", name)) > 0
        with pytest.raises(NoGeneratorError, match='kind="generator"'):
            manager.generate("a", name)
    manager.register("stated", str(FIXTURES / "qwen3"), kind="embedding")
    manager.register("pooled", str(FIXTURES / "qwen3"), pooling="mean")
    assert manager.embed("abc", "stated").shape == manager.embed("abc", "pooled").shape


def test_the_first_use_decides_where_no_file_says(make_manager, tmp_path):
    manager = make_manager()
    for slot in ("writes", "embeds"):
        manager.register(slot, str(tmp_path / slot), dtype="float32")
    shutil.copytree(FIXTURES / "llama", tmp_path / "writes")
    shutil.copytree(FIXTURES / "bert_plain", tmp_path / "embeds")
    assert isinstance(manager.generate("a", "writes", max_new_tokens=2), str)
    assert kind(manager, "writes") == "generator"
    assert manager.embed("abc", "embeds").size
    with pytest.raises(NoGeneratorError):
        manager.generate("a", "embeds")
    assert kind(manager, "embeds") == "embedding"


def test_modules_follow_each_other_as_they_are_listed(make_manager, tmp_path):
    """Not as their `idx` says, as in sentence-transformers."""
    manager = make_manager()
    manager.register("m", str(FIXTURES / "bert_dense"))
    expected = manager.embed(TEXTS, "m")
    folder = Path(shutil.copytree(FIXTURES / "bert_dense", tmp_path / "m"))
    modules = json.loads((folder / "modules.json").read_text())
    others = [{**module, "idx": len(modules) - index} for index, module in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(others))
    manager.register("other", str(folder))
    np.testing.assert_array_equal(manager.embed(TEXTS, "other"), expected)


def test_a_tensor_of_a_dense_module_that_its_configuration_does_not_announce(make_manager, tmp_path):
    folder = str(changed("bert_dense", tmp_path / "m", "2_Dense/config.json", bias=False))
    manager = make_manager()
    manager.register("m", folder)
    with pytest.raises(InvalidFileError, match=r"linear\.bias.*does not announce"):
        manager.embed(TEXTS, "m")


def test_a_tokenizer_whose_added_token_is_empty(tmp_path):
    """The crate would find it everywhere, until the process has no memory left."""
    path = tmp_path / "tokenizer.json"
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    tokens = [{"id": number, "content": content, **flags} for number, content in ((2, "\n"), (3, "SS"))]
    normalizers = [
        {"type": "Replace", "pattern": {"Regex": "."}, "content": "▁"},
        {"type": "Strip", "strip_left": True, "strip_right": True},
    ]
    found = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": tokens,
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {"<unk>": 0, "a": 1}, "unk_token": "<unk>"},
    }
    path.write_text(json.dumps(found))
    with pytest.raises(InvalidFileError, match="is empty for its normalizer"):
        _core._Tokenizer(str(path))
