"""LlamaIndex's caches and two checkpoints of one name."""

from __future__ import annotations

import shutil

import pytest
from conftest import FIXTURES, give_other_weights, tiny

pytest.importorskip("llama_index.core")


def test_llamaindexes_ingestion_cache_tells_checkpoints_apart(tmp_path):
    from llama_index.core.ingestion import IngestionCache, IngestionPipeline
    from llama_index.core.schema import TextNode
    from model_manager.integrations.llamaindex import ModelManagerEmbedding

    folders = [tmp_path / name / "model" for name in ("old", "new")]
    for folder in folders:
        shutil.copytree(FIXTURES / "bert_plain", folder)
    give_other_weights(folders[1])
    cache, found, expected = IngestionCache(), [], []
    for folder in (folders[0], folders[1], folders[0]):
        with tiny() as manager:
            manager.register("m", str(folder))
            model = ModelManagerEmbedding("m", manager=manager)
            pipeline = IngestionPipeline(transformations=[model], cache=cache)
            found.append(pipeline.run(nodes=[TextNode(text="a", id_="1")])[0].embedding)
            expected.append(model.get_text_embedding("a"))
    assert found == expected
    assert found[0] != found[1]
    # The same checkpoint is found again.
    assert len(cache.cache.get_all(cache.collection)) == 2
