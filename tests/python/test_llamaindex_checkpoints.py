"""LlamaIndex's caches, two checkpoints of one name, and the dictionary that distinguishes them."""

from __future__ import annotations

import asyncio
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


CALLS = {
    "get_query_embedding": "a",
    "get_text_embedding": "a",
    "get_text_embedding_batch": ["a", "b"],
    "aget_query_embedding": "a",
    "aget_text_embedding": "a",
    "aget_text_embedding_batch": ["a", "b"],
}


@pytest.mark.parametrize("name", CALLS)
def test_a_report_of_a_call_embeds_nothing(monkeypatch, name):
    """LlamaIndex up to 0.14.20 makes the dictionary in each call, before it asks for vectors."""
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from model_manager.integrations.llamaindex import ModelManagerEmbedding

    call, reports = getattr(BaseEmbedding, name), []

    def former(self, *arguments, **options):
        reports.append(self.to_dict())
        return call(self, *arguments, **options)

    async def former_async(self, *arguments, **options):
        reports.append(self.to_dict())
        return await call(self, *arguments, **options)

    monkeypatch.setattr(BaseEmbedding, name, former_async if name.startswith("a") else former)
    with tiny(cache_size=0) as manager:
        manager.register("m", str(FIXTURES / "bert_plain"))
        model = ModelManagerEmbedding("m", manager=manager)
        found = getattr(model, name)(CALLS[name])
        found = asyncio.run(found) if name.startswith("a") else found
        assert manager.stats()["queue"]["requests"] == 1
        [report] = reports
        assert (report["model_name"], report["class_name"]) == ("m", "ModelManagerEmbedding")
        assert "fingerprint" not in report
        assert model.to_dict()["fingerprint"]
