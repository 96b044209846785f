"""LangChain and LlamaIndex get the manager's vectors, and their stores search with them."""

from __future__ import annotations

import asyncio
import copy
import pickle

import numpy as np
import pytest
from conftest import FIXTURES, run_python
from model_manager._core import Manager
from model_manager._embedder import slot_for
from model_manager.errors import ArgumentError, InputError

PROMPTS = str(FIXTURES / "bert_prompts")
TEXTS = ["the weather is lovely", "please pay the invoice", "Bugün hava çok güzel"]


@pytest.fixture(scope="module")
def manager(shared):
    shared.register("prompts", PROMPTS)
    return shared


def wanted(manager, texts, prompt_name, **options):
    return manager.embed(texts, "prompts", prompt_name=prompt_name, **options).tolist()


def langchain(manager, **options):
    from model_manager.integrations.langchain import ModelManagerEmbeddings

    return ModelManagerEmbeddings("prompts", manager=manager, **options)


def llamaindex(manager, **options):
    from model_manager.integrations.llamaindex import ModelManagerEmbedding

    return ModelManagerEmbedding("prompts", manager=manager, **options)


def test_langchain_has_the_managers_vectors(manager):
    model = langchain(manager)
    assert model.embed_documents(TEXTS) == wanted(manager, TEXTS, "passage")
    assert model.embed_query(TEXTS[0]) == wanted(manager, TEXTS[0], "query")
    assert asyncio.run(model.aembed_documents(TEXTS)) == wanted(manager, TEXTS, "passage")
    assert asyncio.run(model.aembed_query(TEXTS[0])) == wanted(manager, TEXTS[0], "query")
    assert model.embed_documents([]) == []
    assert langchain(manager, dimensions=8).embed_query("a") == wanted(manager, "a", "query", truncate_dim=8)
    assert repr(model) == "ModelManagerEmbeddings('prompts')"
    with pytest.raises(InputError, match="33"):
        langchain(manager, dimensions=33).embed_query("a")


@pytest.mark.parametrize("call", ["embed_query", "aembed_query"])
@pytest.mark.parametrize("given", [["a", "b"], [101, 102], 7])
def test_what_is_no_text_is_no_query(manager, call, given):
    async def ask():
        found = getattr(langchain(manager), call)(given)
        return await found if call == "aembed_query" else found

    with pytest.raises(TypeError, match="text must be a str"):
        asyncio.run(ask())


def test_numbers_are_no_documents(shared):
    """Of one text they would be the token ids, and all documents would get one vector."""
    from model_manager.integrations.langchain import ModelManagerEmbeddings

    model = ModelManagerEmbeddings("turkish_sentence", manager=shared)
    for numbers in ([5, 7], np.array([5, 7]), iter([5, 7])):
        with pytest.raises(TypeError, match=r"texts\[0\] must be a str, not int"):
            model.embed_documents(numbers)
    texts = ["bir", "iki"]
    assert (
        model.embed_documents(iter(texts))
        == model.embed_documents(texts)
        == shared.embed(texts, "turkish_sentence").tolist()
    )


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("english_sentense", "english_sentence"),
        ("english2", "english_sentence"),
        ("english", "english_sentence"),
        ("turkçe", "turkish_sentence"),
        ("rerank", "reranker"),
    ],
)
def test_a_misspelt_slot_is_named(make_manager, caplog, name, meant):
    slot_for(make_manager(), name)
    (record,) = caplog.records
    assert f"no slot is called {name!r}" in record.getMessage()
    assert f"there is a slot {meant!r}" in record.getMessage()


def test_sources_are_no_misspelt_slots(make_manager, caplog):
    manager = make_manager()
    for source in ("all-MiniLM-L6-v2", "sentence-t5-base", "multi-qa-MiniLM-L6-cos-v1", str(FIXTURES / "bert_plain")):
        slot_for(manager, source)
    assert "no slot is called" not in caplog.text


def test_the_reranker_is_a_slot_before_its_first_use(make_manager, caplog):
    manager = make_manager(reranker_model=str(FIXTURES / "rerank_bert"))
    for kind in ("embedding", "reranker"):
        assert slot_for(manager, "reranker", kind) == "reranker"
    assert caplog.records == []
    assert "reranker" not in manager.slots()


def test_a_slot_whose_model_is_replaced(make_manager):
    """The adapter's prompts are those of the present model, loaded or not."""
    manager = make_manager()
    manager.register("prompts", str(FIXTURES / "bert_plain"))
    model = langchain(manager)
    assert model.embed_query("a text") == manager.embed("a text", "prompts").tolist()
    manager.unload("prompts")
    assert model.embed_query("a text") == manager.embed("a text", "prompts").tolist()
    manager.register("prompts", PROMPTS, replace=True)
    assert model.embed_query("a text") == wanted(manager, "a text", "query")
    assert model.embed_documents(TEXTS) == wanted(manager, TEXTS, "passage")


@pytest.mark.parametrize("keep_alive", [0, 600])
@pytest.mark.parametrize("plain_manager", [False, True])
def test_a_slot_that_is_registered_again_with_other_prompts(make_manager, plain_manager, keep_alive):
    manager = Manager(make_manager().config) if plain_manager else make_manager()
    source, prompts = str(FIXTURES / "bert_plain"), {"query": "ask: "}
    manager.register("prompts", source, keep_alive=keep_alive)
    model = langchain(manager)
    plain = manager.embed("a text", "prompts").tolist()
    assert model.embed_query("a text") == plain
    manager.register("prompts", source, prompts=prompts, keep_alive=keep_alive, replace=True)
    asked = manager.embed("ask: a text", "prompts").tolist()
    assert model.embed_query("a text") == asked != plain
    manager.register("prompts", source, keep_alive=keep_alive, replace=True)
    assert model.embed_query("a text") == plain


async def test_a_slot_whose_model_is_replaced_in_asyncio(make_manager):
    manager = make_manager()
    manager.register("prompts", str(FIXTURES / "bert_plain"))
    model = langchain(manager)
    await model.aembed_query("a text")
    manager.register("prompts", PROMPTS, replace=True)
    assert await model.aembed_query("a text") == wanted(manager, "a text", "query")


def test_a_langchain_store_finds(manager):
    from langchain_core.vectorstores import InMemoryVectorStore

    model = langchain(manager)
    store = InMemoryVectorStore(model)
    store.add_texts(TEXTS, metadatas=[{"n": n} for n in range(3)])
    scores = np.array(model.embed_documents(TEXTS)) @ np.array(model.embed_query("lovely weather"))
    found = store.similarity_search_with_score("lovely weather", k=3)
    assert [document.metadata["n"] for document, _ in found] == np.argsort(-scores).tolist()
    np.testing.assert_allclose([score for _, score in found], np.sort(scores)[::-1], atol=1e-5)
    (first,) = asyncio.run(store.asimilarity_search("lovely weather", k=1))
    assert first.page_content == found[0][0].page_content


def test_llamaindex_has_the_managers_vectors(manager):
    model = llamaindex(manager)
    assert model.get_text_embedding_batch(TEXTS) == wanted(manager, TEXTS, "passage")
    assert model.get_text_embedding(TEXTS[0]) == wanted(manager, TEXTS[0], "passage")
    assert model.get_query_embedding(TEXTS[0]) == wanted(manager, TEXTS[0], "query")
    assert asyncio.run(model.aget_text_embedding_batch(TEXTS)) == wanted(manager, TEXTS, "passage")
    assert asyncio.run(model.aget_text_embedding(TEXTS[0])) == wanted(manager, TEXTS[0], "passage")
    assert asyncio.run(model.aget_query_embedding(TEXTS[0])) == wanted(manager, TEXTS[0], "query")
    assert len(llamaindex(manager, dimensions=8).get_query_embedding("a")) == 8
    assert (model.model_name, model.embed_batch_size, model.class_name()) == ("prompts", 100, "ModelManagerEmbedding")
    assert llamaindex(manager, embed_batch_size=2).get_text_embedding_batch(TEXTS) == wanted(manager, TEXTS, "passage")


def test_a_llamaindex_store_finds(manager):
    from llama_index.core.schema import TextNode
    from llama_index.core.vector_stores import SimpleVectorStore, VectorStoreQuery

    model = llamaindex(manager)
    store = SimpleVectorStore()
    vectors = model.get_text_embedding_batch(TEXTS)
    store.add([TextNode(id_=str(n), text=TEXTS[n], embedding=vector) for n, vector in enumerate(vectors)])
    query = model.get_query_embedding("lovely weather")
    found = store.query(VectorStoreQuery(query_embedding=query, similarity_top_k=3))
    assert found.ids == [str(n) for n in np.argsort(-(np.array(vectors) @ np.array(query)))]


def test_llamaindexes_ingestion_cache_tells_models_apart(manager, make_manager):
    from llama_index.core.ingestion import IngestionCache, IngestionPipeline
    from llama_index.core.schema import TextNode

    other = make_manager()
    other.register("prompts", str(FIXTURES / "bert_plain"))
    cache = IngestionCache()

    def run(model):
        return IngestionPipeline(transformations=[model], cache=cache).run(nodes=[TextNode(text="a", id_="1")])

    for model in (llamaindex(manager), llamaindex(manager, dimensions=8), llamaindex(other)):
        assert run(model)[0].embedding == model.get_text_embedding("a")


def test_a_llamaindex_embedding_is_made_from_its_dictionary(manager):
    from model_manager.integrations.llamaindex import ModelManagerEmbedding

    model = llamaindex(manager, dimensions=8, embed_batch_size=3)
    again = ModelManagerEmbedding.from_dict(model.to_dict(), manager=manager)
    assert again.to_dict() == model.to_dict()
    assert again.get_query_embedding("a") == model.get_query_embedding("a")
    assert ModelManagerEmbedding(model_name="prompts", manager=manager).model_name == "prompts"
    with pytest.raises(TypeError, match="give one of them"):
        ModelManagerEmbedding("prompts", model_name="prompts", manager=manager)
    for name, value in (("dimensions", 4), ("model_name", "other")):
        with pytest.raises(ValueError, match="frozen"):
            setattr(model, name, value)


def test_llamaindexes_own_cache_is_refused(manager):
    """Its keys are texts: a query would get the vector of an equal passage."""
    from llama_index.core.storage.kvstore import SimpleKVStore

    with pytest.raises(ArgumentError, match="cache_disk"):
        llamaindex(manager, embeddings_cache=SimpleKVStore())
    with pytest.raises(ValueError, match="frozen"):
        llamaindex(manager).embeddings_cache = SimpleKVStore()
    assert llamaindex(manager, embeddings_cache=None).embeddings_cache is None


def test_a_pickled_llamaindex_object_keeps_its_manager(make_manager):
    from model_manager.integrations.llamaindex import ModelManagerEmbedding, ModelManagerRerank

    manager = make_manager(reranker_model=str(FIXTURES / "rerank_xlmr"), max_queue=77)
    rerank = pickle.loads(pickle.dumps(ModelManagerRerank(manager=manager, top_n=1)))
    assert (rerank.top_n, rerank._manager.config.max_queue) == (1, 77)
    assert rerank._manager.config.reranker_model == manager.config.reranker_model
    manager.register("prompts", PROMPTS)
    model = pickle.loads(pickle.dumps(ModelManagerEmbedding("prompts", manager=manager, dimensions=8)))
    assert model._embedder.manager.config.max_queue == 77
    assert model.get_query_embedding("a") == wanted(manager, "a", "query", truncate_dim=8)


def test_copied_components_share_their_manager(make_manager):
    """A manager of their own would load the models once more. Chains copy their parts."""
    from model_manager.integrations.langchain import ModelManagerRerank
    from model_manager.integrations.llamaindex import ModelManagerRerank as Postprocessor

    manager = make_manager()
    manager.register("prompts", PROMPTS)
    for one in (ModelManagerRerank("prompts", manager=manager), Postprocessor("prompts", manager=manager)):
        assert one.model_copy(deep=True)._manager is one._manager is manager
        with pytest.warns(DeprecationWarning, match="copy"):
            assert one.copy(deep=True)._manager is manager
    copy.deepcopy(langchain(manager)).embed_documents(["a"])
    assert manager.stats()["queue"]["texts"] == 1
    copy.deepcopy(llamaindex(manager)).get_text_embedding("b")
    assert manager.stats()["queue"]["texts"] == 2


@pytest.mark.parametrize(
    ("field", "value"), [("dimensions", 8), ("model_name", "another"), ("embeddings_cache", object())]
)
@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("name", ["copy", "model_copy"])
@pytest.mark.filterwarnings("ignore:The `copy` method is deprecated")
def test_a_copied_llamaindex_embedding_keeps_what_its_vectors_depend_on(manager, field, value, deep, name):
    model = llamaindex(manager)
    copied = getattr(model, name)
    with pytest.raises(ArgumentError, match=f"a copy keeps its {field}; make a new ModelManagerEmbedding"):
        copied(update={field: value}, deep=deep)
    same = copied(update={field: getattr(model, field), "embed_batch_size": 5}, deep=deep)
    assert same.embed_batch_size == 5
    assert same.get_query_embedding("a") == model.get_query_embedding("a")
    assert same._embedder.manager is manager


def test_a_misspelt_keyword_is_refused(manager):
    from model_manager.integrations import langchain as chain, llamaindex as index

    for rerank in (chain.ModelManagerRerank, index.ModelManagerRerank):
        with pytest.raises(TypeError, match="'topn'; did you mean top_n"):
            rerank(manager=manager, topn=1)
        with pytest.raises(ArgumentError, match="top_n=0: must be at least 1"):
            rerank(manager=manager, top_n=0)
        assert rerank(manager=manager, top_n=None).top_n is None
    with pytest.raises(TypeError, match="'dimension'; did you mean dimensions"):
        index.ModelManagerEmbedding("prompts", manager=manager, dimension=8)


@pytest.mark.parametrize(("module", "needs"), [("langchain", "langchain-core"), ("llamaindex", "llama-index-core")])
def test_a_missing_package_is_named_with_its_remedy(module, needs):
    top = needs.replace("-core", "_core" if module == "langchain" else "").replace("-", "_")
    code = f"import sys; sys.modules[{top!r}] = None; import model_manager.integrations.{module}"
    done = run_python(code, check=False)
    assert f"needs {top}" in done.stderr
    assert f"pip install {needs}" in done.stderr


@pytest.mark.parametrize("module", ["qdrant", "langchain", "llamaindex", "cli"])
def test_importing_the_package_imports_no_part(module):
    loaded = run_python("import sys, model_manager; print(*sys.modules)").stdout.split()
    assert "model_manager" in loaded
    packages = {"qdrant_client", "langchain_core", "llama_index", "click", "rich", "tqdm", "pydantic", "numpy"}
    assert packages.isdisjoint(loaded)
    assert f"model_manager.{module}" not in loaded


@pytest.fixture(scope="module")
def reranker(manager):
    manager.register("rerank", str(FIXTURES / "rerank_bert"), kind="reranker")
    return manager


def test_langchain_compresses_documents_by_their_scores(reranker):
    from langchain_core.documents import Document
    from model_manager.integrations.langchain import ModelManagerRerank

    documents = [Document(text, metadata={"number": number}) for number, text in enumerate(TEXTS)]
    expected = reranker.rerank("the bill", TEXTS, "rerank", top_n=2)
    model = ModelManagerRerank("rerank", manager=reranker, top_n=2)
    found = model.compress_documents(documents, "the bill")
    assert found == asyncio.run(model.acompress_documents(documents, "the bill"))
    assert [(one.page_content, one.metadata) for one in found] == [
        (one.document, {"number": one.index, "relevance_score": one.score}) for one in expected
    ]
    assert model.compress_documents(iter(documents), "the bill") == found
    assert asyncio.run(model.acompress_documents(iter(documents), "the bill")) == found
    assert "relevance_score" not in documents[0].metadata
    assert model.compress_documents([], "the bill") == []


def test_llamaindex_orders_nodes_by_their_scores(reranker):
    from llama_index.core.schema import NodeWithScore, TextNode
    from model_manager.integrations.llamaindex import ModelManagerRerank

    nodes = [NodeWithScore(node=TextNode(text=text), score=0.5) for text in TEXTS]
    expected = reranker.rerank("the bill", TEXTS, "rerank", top_n=2)
    model = ModelManagerRerank("rerank", manager=reranker, top_n=2)
    found = model.postprocess_nodes(nodes, query_str="the bill")
    with pytest.raises(ArgumentError, match="a reranker needs the query") as raised:
        model.postprocess_nodes(nodes)
    assert raised.value.param == "query_bundle"
    assert [(one.node.get_content(), one.score) for one in found] == [(one.document, one.score) for one in expected]


def test_a_reranker_is_found_by_its_source(manager):
    from model_manager.integrations.langchain import ModelManagerRerank

    source = str(FIXTURES / "rerank_xlmr")
    assert ModelManagerRerank(source, manager=manager).model == source
    assert manager.describe(source)["tasks"] == ["rerank", "classify"]
    assert ModelManagerRerank(manager=manager).model == "reranker"
