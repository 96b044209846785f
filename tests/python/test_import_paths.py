"""Every module path and public name that the package has ever documented or shipped still imports.

The lists are written down, not computed: they are what programs in use may import.
"""

from __future__ import annotations

import importlib

import pytest
from conftest import run_python

PATHS = """
model_manager: Config LazyLoadTracker ModelManager ModelManagerError ModelType SentenceModel TextGenerator TextStream
    Ticket TurkishLanguageDetector __version__ available_isas errors is_turkish isa lazy_load_model
    memory_efficient_cache model_manager resident_bytes trim_memory
model_manager.__main__: main
model_manager._dotenv: SWITCH load_into_environment resolve
model_manager._embedder: Embedder slot_for without_key
model_manager._extras: extra
model_manager._loader: run
model_manager._types: CacheStatistics Completion Description FieldInfo GenerationStatistics GeneratorDescription
    Inputs MemoryStatistics QueueStatistics RemoteStatistics SlotStatistics Statistics TrackerStatistics
model_manager.aio: aembed aresponse start_response
model_manager.chat_host: NAME ask_host has_host
model_manager.chat_text: FALLBACK_ANSWERS MAX_GENERATED_TOKENS MAX_PROMPT MAX_TEXT MIN_ANSWER MIN_LAST_SENTENCE
    MIN_TEXT SAMPLING build_prompt clean_answer is_host_fallback normalize pick_fallback score_answer
model_manager.chatbot: ENGLISH GENERATOR LazyLoadTracker ModelManager ModelType TURKISH TurkishLanguageDetector
    lazy_load_model memory_efficient_cache model_manager
model_manager.cli: cli run
model_manager.cli.bench: bench
model_manager.cli.collections: index search
model_manager.cli.doctor: doctor
model_manager.cli.embed: embed
model_manager.cli.output: dimensions_option json_option manager model_option quiet reading show_json show_table size
    writing
model_manager.cli.serve: serve
model_manager.cli.slots: hub_cache models warmup
model_manager.cli.texts: Command F HelpContext TURKISH option say
model_manager.encoder: DOCUMENT_PROMPTS QUERY_PROMPTS SentenceModel find_prompt instruction quantize similarity
model_manager.errors: ArgumentError ClosedError ConfigError DeviceMemoryError DownloadError InputError InternalError
    InvalidFileError LoaderError MemoryBudgetError MissingFileError ModelIOError ModelManagerError ModelNotFoundError
    ModelPermissionError NoGeneratorError NotFiniteError OutOfMemoryError OverloadedError RemoteError
    RemoteRefusedError RequestCancelledError UnknownModelError UnsupportedModelError WaitTimeoutError
model_manager.generation: AsyncTextStream acomplete conversation
model_manager.generator: NEW_TOKENS TextGenerator Tokenizer
model_manager.jupyter: generator_html manager_html model_html
model_manager.langchain: ModelManagerEmbeddings
model_manager.lazy: LazyModel lazy_load_model memory_efficient_cache
model_manager.llamaindex: ModelManagerEmbedding
model_manager.qdrant: Backoff CollectionError Failure IndexReport IndexingError QdrantIndexer SearchHit StoreError
    point_id
model_manager.qdrant.documents: CONTENT_HASH Document Input OWN_FIELDS Stored point_id prepare
model_manager.qdrant.indexer: DEFAULT_HNSW_EF DEFAULT_PATH DEFAULT_SCORE_THRESHOLD QdrantIndexer
model_manager.qdrant.pipeline: OnError Run T
model_manager.qdrant.report: Failure IndexReport IndexingError
model_manager.qdrant.search: SearchHit make_filter
model_manager.qdrant.store: Backoff CollectionError Store StoreError T
model_manager.server: ServedModel ServerConfig Service create_app router
model_manager.server.admin: add_routes running
model_manager.server.app: Routes create_app router
model_manager.server.bodies: HELD LARGE VALUE_BYTES charge inflate is_large parse read_body read_json release
model_manager.server.config: ServedModel ServerConfig default_models
model_manager.server.embeddings: DEFAULT_TASK INSTRUCTIONS add_routes check_token_ids
model_manager.server.errors: ApiError bad_request from_exception install overloaded timed_out unavailable
    unknown_model
model_manager.server.generation: Chat Continuation EventStream add_routes generator
model_manager.server.generation_request: LONGEST_STOP MOST_STOPS chat_messages choices completion_prompts count_texts
    longest_text parameters stream_usage
model_manager.server.generation_schemas: AnswerMessage ChatAnswer ChatChoice ChatRequest CompletionAnswer
    CompletionChoice CompletionRequest GenerationUsage Message StopText StreamOptions TextPart
model_manager.server.health: add_routes ai_health ai_models_health health_of readiness
model_manager.server.hosts: Hosts is_loopback
model_manager.server.main: DrainingServer Supervisor end_at_once run worker_app
model_manager.server.metrics: Metrics add_routes check_shared_folder
model_manager.server.middleware: Endpoint to_json
model_manager.server.models: add_routes all_models find_model
model_manager.server.page: ServiceDescription Status add_routes description status_of
model_manager.server.protocol: BoundedHeaders MAX_HEADER_BYTES
model_manager.server.schemas: AiHealth AllLoaded Embedding EmbeddingsAnswer EmbeddingsRequest ErrorBody ErrorDetail
    Health LoadRequest Loaded Model ModelList Ready Running RunningModel Text Token Usage WarmUpRequest
model_manager.server.service: Kind Result SAMPLE_SECONDS Service in_thread own_manager
"""
"""The public names of version 0.1.0, by module."""
MOVED = {
    "model_manager.chat_host": "model_manager.compat.host",
    "model_manager.chat_text": "model_manager.compat.rules",
    "model_manager.chatbot": "model_manager.compat",
    "model_manager.encoder": "model_manager.handles.sentence_model",
    "model_manager.generator": "model_manager.handles.text_generator",
    "model_manager.lazy": "model_manager.compat.lazy",
    "model_manager.aio": "model_manager._async",
    "model_manager.jupyter": "model_manager.integrations.jupyter",
    "model_manager.langchain": "model_manager.integrations.langchain",
    "model_manager.llamaindex": "model_manager.integrations.llamaindex",
    "model_manager.generation": "model_manager._async",
    "model_manager.qdrant": "model_manager.integrations.qdrant",
    "model_manager.qdrant.documents": "model_manager.integrations.qdrant.documents",
    "model_manager.qdrant.indexer": "model_manager.integrations.qdrant.indexer",
    "model_manager.qdrant.pipeline": "model_manager.integrations.qdrant.pipeline",
    "model_manager.qdrant.report": "model_manager.integrations.qdrant.report",
    "model_manager.qdrant.search": "model_manager.integrations.qdrant.search",
    "model_manager.qdrant.store": "model_manager.integrations.qdrant.store",
    "model_manager.server.admin": "model_manager.server.routes.admin",
    "model_manager.server.embeddings": "model_manager.server.routes.embeddings",
    "model_manager.server.health": "model_manager.server.routes.health",
    "model_manager.server.models": "model_manager.server.routes.models",
    "model_manager.server.page": "model_manager.server.routes.status",
    "model_manager.server.metrics": "model_manager.server.prometheus",
    "model_manager.server.generation": "model_manager.server.routes.generation.endpoints",
    "model_manager.server.generation_request": "model_manager.server.routes.generation.request",
    "model_manager.server.generation_schemas": "model_manager.server.routes.generation.schemas",
}
"""Modules whose contents have a new home, and that home."""
ELSEWHERE = {
    ("model_manager.chatbot", "ENGLISH"): "model_manager.compat.chatbot",
    ("model_manager.chatbot", "GENERATOR"): "model_manager.compat.chatbot",
    ("model_manager.chatbot", "TURKISH"): "model_manager.compat.chatbot",
    ("model_manager.aio", "aembed"): "model_manager._vectors",
    ("model_manager.generation", "conversation"): "model_manager.manager",
    ("model_manager.server.metrics", "add_routes"): "model_manager.server.routes.metrics",
    ("model_manager.server.generation", "Chat"): "model_manager.server.routes.generation.forms",
    ("model_manager.server.generation", "Continuation"): "model_manager.server.routes.generation.forms",
    ("model_manager.server.generation", "EventStream"): "model_manager.server.routes.generation.events",
    ("model_manager.server.app", "Routes"): "model_manager.server.routing",
    ("model_manager.server.service", "in_thread"): "model_manager._bridge",
    ("model_manager.server.embeddings", "check_token_ids"): "model_manager.server.routes.token_ids",
}
"""Names that left their module alone, and their new home."""


@pytest.mark.parametrize(
    "line", PATHS.replace("\n    ", " ").split("\n")[1:-1], ids=lambda line: line.partition(":")[0]
)
def test_an_import_path_still_works(line):
    path, *names = line.replace(":", "").split()
    module = importlib.import_module(path)
    assert names
    for name in names:
        value = getattr(module, name)
        home = ELSEWHERE.get((path, name), MOVED.get(path, path))
        assert value is getattr(importlib.import_module(home), name), (path, name)


def test_submodules_are_attributes_of_the_package_without_an_import_of_their_own():
    """Programs write `import model_manager` and then `model_manager.chatbot.ModelManager`."""
    run_python(
        "import model_manager\n"
        "for name in 'chat_host chat_text chatbot encoder errors generation generator lazy'.split():\n"
        "    assert getattr(model_manager, name).__name__ == f'model_manager.{name}'\n"
        "assert not hasattr(model_manager, 'no_such_module')"
    )


def test_pickles_of_earlier_versions_can_be_read():
    """They name the manager's class and its helper by their former module."""
    from model_manager import ModelManager, chatbot, model_manager

    assert chatbot.ModelManager() is model_manager
    with chatbot._restore(
        ModelManager, model_manager.config, {"mine": ("a/source", {"kind": "embedding"})}
    ) as restored:
        assert "mine" in restored.slots()
