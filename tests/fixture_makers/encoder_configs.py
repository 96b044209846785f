"""config.json of each family of encoders, as transformers writes it, and as the first files of a family spell it."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from . import files

Config = dict[str, Any]
Sizes = Mapping[str, int]
LFM2_CLASSES = {"AutoModel": "Model", "AutoModelForMaskedLM": "ForMaskedLM"}
FACTOR, THETA = 8.0, 20_000.0  # of the NTK scaling of GTE


def common(sizes: Sizes, **others: Any) -> Config:
    return {
        "vocab_size": sizes["vocabulary"],
        "hidden_size": sizes["hidden"],
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": sizes["heads"],
        "intermediate_size": sizes["intermediate"],
        "max_position_embeddings": sizes["positions"],
        **others,
    }


def gte(sizes: Sizes) -> Config:
    """NTK scaling of a base and a factor is linear scaling of another base and factor."""
    width = sizes["hidden"] // sizes["heads"]
    rope = {"rope_type": "linear", "rope_theta": THETA * FACTOR, "factor": FACTOR ** (2 / width)}
    return common(sizes, hidden_act="gelu", type_vocab_size=1, layer_norm_eps=1e-12, rope_parameters=rope)


def nomic(sizes: Sizes) -> Config:
    return common(sizes, hidden_act="silu", type_vocab_size=2, layer_norm_eps=1e-12)


def nomic_moe(sizes: Sizes) -> Config:
    rope = {"rope_type": "default", "rope_theta": 10_000.0}
    return {**nomic(sizes), "type_vocab_size": 1, "layer_norm_eps": 1e-5, "rope_parameters": rope, "pad_token_id": 1}


def jina(sizes: Sizes) -> Config:
    return common(sizes, hidden_act="gelu", type_vocab_size=1, layer_norm_eps=1e-5)


def modernbert(sizes: Sizes) -> Config:
    """As the first files spell it."""
    return common(
        sizes,
        hidden_activation="gelu",
        norm_eps=1e-5,
        layer_norm_eps=1e-5,
        position_embedding_type="absolute",
        local_attention=8,
        pad_token_id=0,
        global_attn_every_n_layers=3,
        global_rope_theta=160_000.0,
        local_rope_theta=10_000.0,
        reference_compile=False,
        classifier_pooling="mean",
    )


def modernbert_silu(sizes: Sizes) -> Config:
    """As transformers writes it since version 5, with everything that can be switched on."""
    kinds = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    rope = {
        "full_attention": {"rope_type": "default", "rope_theta": 80_000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 5_000.0},
    }
    return common(
        sizes,
        hidden_activation="silu",
        norm_eps=1e-5,
        norm_bias=True,
        attention_bias=True,
        mlp_bias=True,
        local_attention=6,
        pad_token_id=0,
        sliding_window=3,
        layer_types=kinds[: sizes["layers"]],
        rope_parameters=rope,
    )


def mpnet(sizes: Sizes) -> Config:
    config = common(sizes, hidden_act="gelu", layer_norm_eps=1e-5, relative_attention_num_buckets=32)
    return {**config, "max_position_embeddings": sizes["positions"] + 2}


def distilbert(sizes: Sizes) -> Config:
    return {
        "vocab_size": sizes["vocabulary"],
        "dim": sizes["hidden"],
        "n_layers": sizes["layers"],
        "n_heads": sizes["heads"],
        "hidden_dim": sizes["intermediate"],
        "max_position_embeddings": sizes["positions"],
        "activation": "gelu",
        "sinusoidal_pos_embds": False,
        "tie_weights_": True,
        "qa_dropout": 0.1,
    }


def electra(sizes: Sizes) -> Config:
    return common(sizes, embedding_size=20, hidden_act="gelu", type_vocab_size=2, layer_norm_eps=1e-12)


def albert(sizes: Sizes) -> Config:
    """Two groups of two layers each, of which each is used twice."""
    groups = {"num_hidden_groups": 2, "inner_group_num": 2, "down_scale_factor": 1, "net_structure_type": 0}
    shape = {"embedding_size": 20, "type_vocab_size": 2, "layer_norm_eps": 1e-12}
    return common(sizes, hidden_act="gelu_new", **shape, **groups)


def grouped(sizes: Sizes, **others: Any) -> Config:
    """Two query heads share each key head."""
    end = sizes["vocabulary"] - 1
    ids = {"pad_token_id": 0, "bos_token_id": end, "eos_token_id": end}
    return common(sizes, num_key_value_heads=sizes["heads"] // 2, rope_theta=50_000.0, **ids, **others)


def eurobert(sizes: Sizes) -> Config:
    return grouped(sizes, hidden_act="silu", rms_norm_eps=1e-5, mask_token_id=4, clf_pooling="late")


def mistral(sizes: Sizes) -> Config:
    return grouped(sizes, hidden_act="silu", rms_norm_eps=1e-5, sliding_window=5)


def gemma(sizes: Sizes) -> Config:
    """EmbeddingGemma: in both directions, through a window of which half lies on each side in most layers."""
    return grouped(
        sizes,
        model_type="gemma3_text",
        head_dim=8,
        hidden_activation="gelu_pytorch_tanh",
        query_pre_attn_scalar=8,
        rms_norm_eps=1e-6,
        rope_local_base_freq=10_000.0,
        sliding_window=7,
        sliding_window_pattern=2,
        use_bidirectional_attention=True,
    )


def lfm2(sizes: Sizes, **others: Any) -> Config:
    """Convolutions, and some layers of attention."""
    kinds = ["conv", "full_attention", "conv", "conv"]
    own = {"block_auto_adjust_ff_dim": False, "norm_eps": 1e-5, "conv_L_cache": 3, "tie_embedding": True}
    return grouped(sizes, layer_types=kinds[: sizes["layers"]], **{**own, **others})


def lfm2_bidirectional(sizes: Sizes) -> Config:
    """With biases, and with an even number of rows, of which an output sees one more before its own than after it."""
    return lfm2(sizes, conv_L_cache=4, conv_bias=True)


def deberta(sizes: Sizes, **others: Any) -> Config:
    shape = {"hidden_act": "gelu", "layer_norm_eps": 1e-7, "relative_attention": True, "type_vocab_size": 0}
    return common(sizes, **shape, position_biased_input=False, max_relative_positions=-1, **others)


def deberta_v3(sizes: Sizes) -> Config:
    """As DeBERTa-v3 and its multilingual model have it, with few buckets of distances."""
    own = {"position_buckets": 8, "norm_rel_ebd": "layer_norm", "share_att_key": True, "pos_att_type": "p2c|c2p"}
    return deberta(sizes, **own)


def deberta_v2(sizes: Sizes) -> Config:
    """As DeBERTa-v2 has it: a convolution, here of two groups, and layers of their own for relative positions."""
    own = {"position_buckets": 6, "max_relative_positions": 12, "pos_att_type": ["c2p", "p2c"], "embedding_size": 20}
    conv = {"conv_kernel_size": 3, "conv_act": "gelu", "conv_groups": 2}
    return {**deberta(sizes), **own, **conv, "type_vocab_size": 2, "position_biased_input": True}


def deberta_c2p(sizes: Sizes) -> Config:
    """A row for each distance, fewer than texts have."""
    return {**deberta(sizes), "max_relative_positions": 9, "pos_att_type": "c2p", "conv_kernel_size": 5}


def deberta_p2c(sizes: Sizes) -> Config:
    own = {"position_buckets": 8, "share_att_key": True, "pos_att_type": ["p2c"], "norm_rel_ebd": "none"}
    return {**deberta(sizes), **own, "type_vocab_size": 2}


def deberta_plain(sizes: Sizes) -> Config:
    """No relative positions; the head has another function."""
    own = {"relative_attention": False, "position_biased_input": True, "pooler_hidden_act": "tanh"}
    return {**deberta(sizes), **own, "type_vocab_size": 2, "conv_kernel_size": 3, "conv_act": "tanh"}


def convbert(sizes: Sizes, **others: Any) -> Config:
    """As the Turkish models have it: half as many heads, and convolutions over nine tokens."""
    shape = {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "type_vocab_size": 2, "embedding_size": sizes["hidden"]}
    return common(sizes, **{**shape, "head_ratio": 2, "conv_kernel_size": 9, "num_groups": 1, **others})


def convbert_grouped(sizes: Sizes) -> Config:
    """Narrow embeddings, perceptrons of two groups, as many heads as there are, and a short convolution."""
    return convbert(sizes, embedding_size=20, num_groups=2, head_ratio=1, conv_kernel_size=5, hidden_act="gelu_new")


def t5(sizes: Sizes, **others: Any) -> Config:
    """Heads that are wider together than states are."""
    return {
        "vocab_size": sizes["vocabulary"],
        "d_model": sizes["hidden"],
        "d_kv": sizes["hidden"] // sizes["heads"] + 4,
        "d_ff": sizes["intermediate"],
        "num_layers": sizes["layers"],
        "num_decoder_layers": 1,
        "num_heads": sizes["heads"],
        "relative_attention_num_buckets": 16,
        "relative_attention_max_distance": 20,
        "layer_norm_epsilon": 1e-6,
        "feed_forward_proj": "relu",
        "n_positions": 16,
        "is_encoder_decoder": True,
        "use_cache": True,
        "pad_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 1,
        **others,
    }


def t5_gated(sizes: Sizes) -> Config:
    return t5(sizes, feed_forward_proj="gated-gelu", dense_act_fn="gelu_new", is_gated_act=True)


def embedding_gemma2_text(sizes: Sizes, **others: Any) -> Config:
    """Vectors are wider than states; each second layer sees all tokens, with one wider head of keys."""
    return {
        "vocab_size": sizes["vocabulary"],
        "hidden_size": sizes["hidden"] - 8,
        "embedding_dim": sizes["hidden"],
        "intermediate_size": sizes["intermediate"],
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": sizes["heads"],
        "num_key_value_heads": 2,
        "head_dim": 10,
        "global_head_dim": 20,
        "num_global_key_value_heads": 1,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size_per_layer_input": 12,
        "max_position_embeddings": sizes["positions"],
        "sliding_window": 3,
        "sliding_window_pattern": 2,
        "pad_token_id": 1,
        **others,
    }


def embedding_gemma2_partial(sizes: Sizes) -> Config:
    """Types of layers by name, biases, and rotary positions of a part of the wider heads, as Gemma 4 has them."""
    full = {"rope_type": "proportional", "partial_rotary_factor": 0.3, "rope_theta": 1e5}
    return embedding_gemma2_text(
        sizes,
        layer_types=["full_attention", "sliding_attention", "full_attention"],
        attention_bias=True,
        rms_norm_eps=1e-3,
        rope_parameters={"sliding_attention": {"rope_type": "default", "rope_theta": 500.0}, "full_attention": full},
    )


CONFIGS: dict[str, tuple[str, Callable[[Sizes], Config]]] = {
    "gte": ("GteModel", gte),
    "nomic_bert": ("NomicBertModel", nomic),
    "nomic_bert_moe": ("NomicBertModel", nomic_moe),
    "jina_embeddings_v3": ("JinaEmbeddingsV3Model", jina),
    "modernbert": ("ModernBertModel", modernbert),
    "modernbert_silu": ("ModernBertModel", modernbert_silu),
    "mpnet": ("MPNetModel", mpnet),
    "distilbert": ("DistilBertModel", distilbert),
    "electra": ("ElectraModel", electra),
    "albert": ("AlbertModel", albert),
    "eurobert": ("EuroBertModel", eurobert),
    "mistral": ("MistralModel", mistral),
    "gemma": ("Gemma3TextModel", gemma),
    "lfm2": ("Lfm2Model", lfm2),
    "lfm2_bidirectional": ("Lfm2Model", lfm2_bidirectional),
    "deberta_v3": ("DebertaV2Model", deberta_v3),
    "deberta_v2": ("DebertaV2Model", deberta_v2),
    "deberta_c2p": ("DebertaV2Model", deberta_c2p),
    "deberta_p2c": ("DebertaV2Model", deberta_p2c),
    "deberta_plain": ("DebertaV2Model", deberta_plain),
    "convbert": ("ConvBertModel", convbert),
    "convbert_grouped": ("ConvBertModel", convbert_grouped),
    "embedding_gemma2_text": ("EmbeddingGemma2TextModel", embedding_gemma2_text),
    "embedding_gemma2_text_partial": ("EmbeddingGemma2TextModel", embedding_gemma2_partial),
    "t5": ("T5EncoderModel", t5),
    "t5_gated": ("MT5EncoderModel", t5_gated),
}


def config(architecture: str, sizes: Sizes, dtype: torch.dtype) -> Config:
    name, settings = CONFIGS[architecture]
    model_type = "deberta-v2" if architecture.startswith("deberta") else architecture
    for variant in ("_silu", "_bidirectional", "_grouped", "_partial", "_moe"):
        model_type = model_type.removesuffix(variant)
    model_type = "mt5" if architecture == "t5_gated" else model_type
    dtype_name = str(dtype).removeprefix("torch.")
    return {"architectures": [name], "model_type": model_type, "torch_dtype": dtype_name, **settings(sizes)}


def publish(directory: Path) -> None:
    """Spells the model of `directory` as the first files of its family are."""
    config = json.loads((directory / "config.json").read_text("utf-8"))
    tensors = load_file(directory / "model.safetensors")
    makers = {"gte": publish_gte, "nomic_bert": publish_nomic, "modernbert": publish_modernbert}
    makers |= {"lfm2": publish_lfm2, "embedding_gemma2_text": publish_embedding_gemma2}
    published = makers[config["model_type"]]
    (directory / "model.safetensors").unlink()
    files.write_json(directory / "config.json", published(config, tensors))
    files.save_single(directory, {name: tensor.contiguous() for name, tensor in tensors.items()})


def rename(tensors: dict[str, torch.Tensor], names: Mapping[str, str]) -> None:
    for name in list(tensors):
        new = name
        for old, other in names.items():
            new = new.replace(old, other)
        tensors[new] = tensors.pop(name)


def prefix(tensors: dict[str, torch.Tensor], prefix: str) -> None:
    for name in list(tensors):
        tensors[prefix + name] = tensors.pop(name)


def fuse(tensors: dict[str, torch.Tensor], parts: list[str], whole: str) -> None:
    """Puts the rows of several layers below each other."""
    for name in [name for name in tensors if parts[0] in name]:
        rows = [tensors.pop(name.replace(parts[0], part)) for part in parts]
        tensors[name.replace(parts[0], whole)] = torch.cat(rows)


def publish_gte(config: Config, tensors: dict[str, torch.Tensor]) -> Config:
    fuse(tensors, [f"self_attn.{part}_proj" for part in "qkv"], "attention.qkv_proj")
    fuse(tensors, ["mlp.up_proj", "mlp.gate_proj"], "mlp.up_gate_proj")
    names = {"self_attn.o_proj": "attention.o_proj", "post_attention_layernorm": "attn_ln"}
    rename(tensors, {"layers.": "encoder.layer.", **names, "post_mlp_layernorm": "mlp_ln"})
    prefix(tensors, "new.")
    code = {"AutoConfig": "Alibaba-NLP/new-impl--configuration.NewConfig"}
    code["AutoModel"] = "Alibaba-NLP/new-impl--modeling.NewModel"
    del config["rope_parameters"]
    return {
        **config,
        "architectures": ["NewModel"],
        "model_type": "new",
        "auto_map": code,
        "layer_norm_type": "layer_norm",
        "logn_attention_clip1": False,
        "logn_attention_scale": False,
        "pack_qkv": True,
        "position_embedding_type": "rope",
        "rope_scaling": {"factor": FACTOR, "type": "ntk"},
        "rope_theta": THETA,
        "unpad_inputs": "true",
        "use_memory_efficient_attention": "true",
    }


def publish_modernbert(config: Config, tensors: dict[str, torch.Tensor]) -> Config:
    """Part of a masked language model."""
    prefix(tensors, "model.")
    return {**config, "architectures": ["ModernBertForMaskedLM"], "sparse_pred_ignore_index": -100}


def publish_embedding_gemma2(config: Config, tensors: dict[str, torch.Tensor]) -> Config:
    """The text model of one that reads images and sound, for which a token of texts stands."""
    prefix(tensors, "language_model.")
    for name in ("vision_tower.patch_embedder.input_proj", "audio_tower.output_proj", "embed_vision.projection"):
        tensors[f"{name}.weight"] = torch.ones(4, 4)
    return {
        "dtype": config.pop("torch_dtype"),
        "architectures": ["EmbeddingGemma2Model"],
        "model_type": "embedding_gemma2",
        "text_config": config,
        "vision_config": {"model_type": "gemma4_vision", "hidden_size": 4, "rms_norm_eps": 1e-6},
        "audio_config": {"model_type": "gemma4_audio", "hidden_size": 4, "chunk_size_feed_forward": 0},
        "image_token_id": config["vocab_size"] - 4,  # [UNK]
        "video_token_id": 258884,
        "audio_token_id": 258881,
        "boa_token_id": 256000,
        "boi_token_id": 255999,
        "eoa_token_index": 258883,
        "eoi_token_id": 258882,
        "initializer_range": 0.02,
    }


def publish_lfm2(config: Config, _tensors: dict[str, torch.Tensor]) -> Config:
    """Code of its own, and the name of another family."""
    code = {name: f"modeling_lfm2_bidirectional.Lfm2Bidirectional{end}" for name, end in LFM2_CLASSES.items()}
    return {**config, "architectures": ["Lfm2BidirectionalModel"], "auto_map": code}


def publish_nomic(config: Config, tensors: dict[str, torch.Tensor]) -> Config:
    fuse(tensors, [f"self_attn.{part}_proj" for part in "qkv"], "attn.Wqkv")
    names = {"self_attn.o_proj": "attn.out_proj", "post_attention_layernorm": "norm1"}
    names |= {"post_mlp_layernorm": "norm2", "embeddings.LayerNorm": "emb_ln"}
    names |= {"mlp.up_proj": "mlp.fc11", "mlp.gate_proj": "mlp.fc12", "mlp.down_proj": "mlp.fc2"}
    rename(tensors, {"layers.": "encoder.layers.", **names})
    code = {"AutoConfig": "nomic-ai/nomic-bert-2048--configuration_hf_nomic_bert.NomicBertConfig"}
    code["AutoModel"] = "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel"
    code["AutoModelForMaskedLM"] = "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertForPreTraining"
    rows = tensors["embeddings.word_embeddings.weight"]
    padding = torch.zeros(-rows.shape[0] % 64, rows.shape[1])
    tensors["embeddings.word_embeddings.weight"] = torch.cat([rows, padding])
    return {
        "architectures": ["NomicBertModel"],
        "model_type": "nomic_bert",
        "auto_map": code,
        "vocab_size": config["vocab_size"],
        "pad_vocab_size_multiple": 64,
        "n_embd": config["hidden_size"],
        "n_head": config["num_attention_heads"],
        "n_inner": config["intermediate_size"],
        "n_layer": config["num_hidden_layers"],
        "n_positions": config["max_position_embeddings"],
        "type_vocab_size": config["type_vocab_size"],
        "activation_function": "swiglu",
        "layer_norm_epsilon": config["layer_norm_eps"],
        "rotary_emb_base": 1000,
        "rotary_emb_fraction": 1.0,
        "rotary_emb_interleaved": False,
        "rotary_emb_scale_base": None,
        "rotary_scaling_factor": None,
        "max_trained_positions": 2048,
        "mlp_fc1_bias": False,
        "mlp_fc2_bias": False,
        "qkv_proj_bias": False,
        "scale_attn_weights": True,
        "fused_bias_fc": True,
        "fused_dropout_add_ln": True,
        "use_flash_attn": True,
        "use_rms_norm": False,
        "use_xentropy": True,
        "prenorm": False,
        "parallel_block": False,
        "causal": False,
        "torch_dtype": "float32",
    }
