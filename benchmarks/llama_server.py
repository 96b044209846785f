"""llama.cpp's server with a sentence model, for `ollama_api.py --relay`; it runs in an environment of its own.

python benchmarks/llama_server.py FOLDER FILE.gguf     # writes the BERT of FOLDER as GGUF in float16, as Ollama has it
python benchmarks/llama_server.py FILE.gguf            # serves it with two threads and one slot
"""

import argparse
import json
import time
from pathlib import Path

LAYER = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
SPECIAL = {"cls": "[CLS]", "bos": "[CLS]", "eos": "[SEP]", "seperator": "[SEP]", "unknown": "[UNK]", "padding": "[PAD]"}


def write(folder: Path, target: str) -> None:
    import numpy as np
    from gguf import GGUFWriter, PoolingType, TokenType
    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text("utf-8"))
    tensors = {name.removeprefix("bert."): value for name, value in load_file(folder / "model.safetensors").items()}
    words = (folder / "vocab.txt").read_text("utf-8").split("\n")[: config["vocab_size"]]
    made = GGUFWriter(target, "bert")
    made.add_name(folder.name)
    made.add_context_length(config["max_position_embeddings"])
    made.add_embedding_length(config["hidden_size"])
    made.add_feed_forward_length(config["intermediate_size"])
    made.add_block_count(config["num_hidden_layers"])
    made.add_head_count(config["num_attention_heads"])
    made.add_layer_norm_eps(config["layer_norm_eps"])
    made.add_causal_attention(False)
    made.add_pooling_type(PoolingType.MEAN)
    made.add_file_type(1)
    made.add_tokenizer_model("bert")
    special = [word.startswith("[") and word.endswith("]") for word in words]
    # A word's beginning is marked instead of its continuations.
    plain = [w if s else w[2:] if w.startswith("##") else f"\u2581{w}" for w, s in zip(words, special, strict=True)]
    made.add_token_list(plain)
    made.add_token_types([TokenType.CONTROL if one else TokenType.NORMAL for one in special])
    made.add_token_type_count(2)
    for role, word in SPECIAL.items():
        made.add_uint32(f"tokenizer.ggml.{role}_token_id", words.index(word))

    def add(name: str, tensor: str, half: bool = False) -> None:
        made.add_tensor(name, tensors[tensor].astype(np.float16 if half else np.float32))

    add("token_embd.weight", "embeddings.word_embeddings.weight", True)
    add("position_embd.weight", "embeddings.position_embeddings.weight")
    add("token_types.weight", "embeddings.token_type_embeddings.weight")
    for part in ("weight", "bias"):
        add(f"token_embd_norm.{part}", f"embeddings.LayerNorm.{part}")
        for layer in range(config["num_hidden_layers"]):
            for theirs, ours in LAYER.items():
                half = part == "weight" and "Norm" not in theirs
                add(f"blk.{layer}.{ours}.{part}", f"encoder.layer.{layer}.{theirs}.{part}", half)
    made.write_header_to_file()
    made.write_kv_data_to_file()
    made.write_tensors_to_file()
    made.close()


def serve(file: str) -> None:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = file
    params.embedding = True
    params.n_ctx = params.n_batch = params.n_ubatch = 512
    params.n_parallel = 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 2
    params.port = 0
    server = xllamacpp.Server(params)
    print(f"running on {server.listening_address}", flush=True)
    while True:
        time.sleep(60)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="the folder, or the file to serve")
    parser.add_argument("file", nargs="?", help="where the folder's model is written")
    given = parser.parse_args()
    if given.file:
        write(Path(given.source), given.file)
    else:
        serve(given.source)
