"""`POST /v1/rerank` in the forms of Jina, Cohere and text-embeddings-inference, and `POST /v1/classify`."""

from __future__ import annotations

import secrets
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import orjson

from ..._bridge import in_thread
from ..._scoring import RERANKER, classified, ranked
from ..bodies import read_json
from ..disconnect import deadline_of, seconds_until, unless_disconnected
from ..errors import bad_request, timed_out, unknown_model
from ..fields import check_fields, unsupported
from ..middleware import to_json
from ..schemas import AnyRerankAnswer, ClassifyAnswer, ClassifyRequest, RerankAnswer, RerankRequest
from ..uses import is_source
from .vectors import LATE, inferred, json_kind, read_truncate

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from ..routing import Routes
    from ..service import Service

_KINDS = ("reranker", "classifier")


def add_routes(routes: Routes, service: Service) -> None:
    """Register all endpoints."""

    async def rerank(request: Request) -> Response:
        """Documents by their relevance to a query, best first; with `texts` in the form of TEI."""
        body = await _read(request, service)
        if body.get("documents") is None and body.get("texts") is not None:
            return to_json(await _tei(request, service, body))
        return _to_json(await _rerank(request, service, body, documents=True))

    async def rerank_v2(request: Request) -> Response:
        """The same in the form of Cohere's version 2: without the documents."""
        body = await _read(request, service)
        return _to_json(await _rerank(request, service, body, documents=False))

    async def classify(request: Request) -> Response:
        """The labels of texts or of pairs of texts, with their probabilities."""
        body = await read_json(request, service)
        check_fields(body, ClassifyRequest)
        return to_json(await _classify(request, service, body))

    post = partial(routes.add, method="POST", tags=["reranking"])
    for path in ("/v1/rerank", "/rerank"):
        post(path, rerank, body=RerankRequest, answer=AnyRerankAnswer, summary="Rerank documents")
    post("/v2/rerank", rerank_v2, body=RerankRequest, answer=RerankAnswer, summary="Rerank documents")
    post("/v1/classify", classify, body=ClassifyRequest, answer=ClassifyAnswer, summary="Classify texts")


async def _read(request: Request, service: Service) -> dict[str, Any]:
    """The body of a request to rerank."""
    body = await read_json(request, service)
    check_fields(body, RerankRequest)
    return body


def _to_json(answer: dict[str, Any]) -> Response:
    try:
        return to_json(answer)
    except orjson.JSONEncodeError:
        # Bodies nest deeper than what can be written.
        raise bad_request(
            "documents nest too deep to be returned: send return_documents false", "documents", "invalid_json"
        ) from None


def _check_form(body: dict[str, Any], texts: str, others: tuple[str, ...]) -> None:
    """Refuse the fields of the other form, which this one would ignore."""
    for name in others:
        if body.get(name):
            raise unsupported(name, f"it does not go together with {texts}; leave it out")


async def _rerank(request: Request, service: Service, body: dict[str, Any], *, documents: bool) -> dict[str, Any]:
    _check_form(body, "documents", ("texts", "return_text", "raw_scores"))
    name, slot = _model(service, body)
    query, texts = _query(body), _documents(body, service.config.max_inputs)
    top_n, shown = _count(body, "top_n"), _flag(body, "return_documents", documents)
    # From 0 to 1 as in these services, also where a model's files ask for its logits.
    options = {**_options(service, body), **_prompt(body), "activation": "sigmoid"}
    await _check_length(request, service, slot, body, texts, options)
    scores, tokens = await _scores(request, service, slot, query, texts, options, "documents")
    service.metrics.embedded(slot, len(texts), tokens)
    results = []
    for one in ranked(scores, texts, slot, top_n, shown):
        result: dict[str, Any] = {"index": one.index, "relevance_score": one.score}
        if shown:
            # As it came: callers find their own fields in it.
            item = body["documents"][one.index]
            result["document"] = {"text": item} if isinstance(item, str) else item
        results.append(result)
    return {
        "id": f"rerank-{secrets.token_hex(12)}",
        "object": "list",
        "model": name,
        "results": results,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "meta": {"api_version": {"version": "1" if documents else "2"}, "billed_units": {"search_units": 1}},
    }


async def _tei(request: Request, service: Service, body: dict[str, Any]) -> list[dict[str, Any]]:
    _check_form(body, "texts", ("return_documents",))
    _, slot = _model(service, body)
    query, texts = _query(body), _documents(body, service.config.max_inputs, "texts")
    activation = "identity" if _flag(body, "raw_scores", False) else "sigmoid"
    options = {**_options(service, body), **_prompt(body), "activation": activation}
    top_n, shown = _count(body, "top_n"), _flag(body, "return_text", False)
    await _check_length(request, service, slot, body, texts, options)
    scores, tokens = await _scores(request, service, slot, query, texts, options, "texts")
    service.metrics.embedded(slot, len(texts), tokens)
    return [
        {"index": one.index, "score": one.score, **({"text": one.document} if shown else {})}
        for one in ranked(scores, texts, slot, top_n, shown)
    ]


async def _classify(request: Request, service: Service, body: dict[str, Any]) -> dict[str, Any]:
    name, slot = _model(service, body)
    given = body.get("input")
    items = [given] if isinstance(given, str) else given
    if not isinstance(items, list) or not items:
        raise bad_request("input must be a text, or a list of texts or pairs of texts, at least one", "input")
    _check_count(items, service.config.max_inputs, "input")
    pairs = isinstance(items[0], list)
    for index, item in enumerate(items):
        texts = item if pairs else [item]
        wanted = 2 if pairs else 1
        if not isinstance(texts, list) or len(texts) != wanted or not all(isinstance(text, str) for text in texts):
            what = "a pair of strings" if pairs else "a string"
            raise bad_request(f"input[{index}] must be {what}, not {json_kind(item)}", "input")
    first, second = ([a for a, _ in items], [b for _, b in items]) if pairs else (items, None)
    options = {**_options(service, body), "activation": "probabilities"}
    single = isinstance(given, str)
    scores, tokens = await _scores(request, service, slot, first, second, options, "input", single=single)
    service.metrics.embedded(slot, len(items), tokens)
    labels = service.manager._labels(slot)
    data = [
        {
            "index": index,
            "label": one.label,
            "probs": list(one.scores.values()),
            "scores": one.scores,
            "num_classes": len(one.scores),
        }
        for index, one in enumerate(classified(scores, labels))
    ]
    return {
        "id": f"classify-{secrets.token_hex(12)}",
        "object": "list",
        "created": int(time.time()),
        "model": name,
        "data": data,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


async def _scores(
    request: Request,
    service: Service,
    slot: str,
    first: Any,
    second: Any,
    options: dict[str, Any],
    field: str,
    *,
    single: bool = False,
) -> tuple[Any, int]:
    """The core's scores and the number of tokens."""
    texts, count = (first, second), len(second if second is not None else first)
    return await inferred(service, request, "scores", texts, count, slot, options, field, single=single)


async def _check_length(
    request: Request, service: Service, slot: str, body: dict[str, Any], texts: list[str], options: dict[str, Any]
) -> None:
    """Refuse `max_tokens_per_doc` where it would cut a document. Cohere's clients send their API's default. The time
    that it takes is taken from the `timeout` of `options`.
    """
    most = _count(body, "max_tokens_per_doc")
    if most is None:
        return
    deadline = deadline_of(service)
    work = _token_counts(service, slot, texts, most)
    counts = await unless_disconnected(request.receive, work, deadline, timed_out(LATE))
    options["timeout"] = seconds_until(deadline)
    for index, count in enumerate(counts):
        if count > most:
            field = "documents" if body.get("documents") is not None else "texts"
            raise unsupported(
                "max_tokens_per_doc", f"{field}[{index}] has {count} tokens; leave it out, or cut the texts yourself"
            )


async def _token_counts(service: Service, slot: str, texts: list[str], most: int) -> list[int]:
    """The tokens of each text, without special tokens; none if the model reads no more than `most`."""
    await service.load(slot)
    known = service.description(slot)
    if known is not None and known["max_length"] is not None and known["max_length"] <= most:
        # Of a query and a document together.
        return []
    *counts, special = await in_thread(lambda: service.manager.count_tokens([*texts, ""], slot))
    return [count - special for count in counts]


def _model(service: Service, body: dict[str, Any]) -> tuple[str, str]:
    """The name for the answer, and the slot: the manager's reranker without a name."""
    name = body.get("model")
    if name is None or name == "":
        return RERANKER, RERANKER
    if not isinstance(name, str):
        raise bad_request(f"model must be a string, not {json_kind(name)}", "model")
    plain = name.removesuffix(":latest")
    slots = service.manager.stats()["slots"]
    # The built-in slot appears with its first use, unless it was registered with another model.
    source = service.manager.config.reranker_model
    if plain == RERANKER or (name == source and (RERANKER not in slots or service.holds(RERANKER, source))):
        return name, RERANKER
    for slot, state in slots.items():
        if plain == slot or (state["kind"] in _KINDS and (name == slot or is_source(name, state))):
            return name, slot
    known = [RERANKER, *(slot for slot, state in slots.items() if state["kind"] in _KINDS)]
    raise unknown_model(name, list(dict.fromkeys(known)))


def _options(service: Service, body: dict[str, Any]) -> dict[str, Any]:
    return {
        "truncate": read_truncate(body.get("truncate")),
        "timeout": service.config.request_timeout,
        "keep_alive": body.get("keep_alive"),
    }


def _prompt(body: dict[str, Any]) -> dict[str, Any]:
    """The instruction of models that take one, or the name of one of the model's own."""
    options = {}
    for field, option in (("instruction", "prompt"), ("prompt_name", "prompt_name")):
        value = body.get(field)
        if value is not None and not isinstance(value, str):
            raise bad_request(f"{field} must be a string, not {json_kind(value)}", field)
        if value:
            options[option] = value
    return options


def _query(body: dict[str, Any]) -> str:
    query = body.get("query")
    if isinstance(query, dict):
        for name, value in query.items():
            if name != "text" and value is not None:
                raise unsupported(f"query.{name:.100}", "a query is a text; leave it out", "query")
        query = query.get("text")
    if not isinstance(query, str):
        raise bad_request(f"query must be a string, not {json_kind(query)}", "query")
    if not query.strip():
        raise bad_request("query is blank: send a text that is not", "query", "empty_input")
    return query


def _documents(body: dict[str, Any], most: int, field: str = "documents") -> list[str]:
    items = body.get(field)
    if not isinstance(items, list):
        what = "is missing" if items is None else f"must be a list, not {json_kind(items)}"
        raise bad_request(f"{field} {what}", field)
    if not items:
        raise bad_request(f"{field} is an empty list: send at least one", field, "empty_input")
    _check_count(items, most, field)
    texts = []
    for index, item in enumerate(items):
        text = item.get("text") if isinstance(item, dict) else item
        if not isinstance(text, str):
            raise bad_request(
                f"{field}[{index}] must be a string or an object with a string 'text', not {json_kind(item)}", field
            )
        texts.append(text)
    return texts


def _check_count(items: list[Any], most: int, field: str) -> None:
    if len(items) > most:
        raise bad_request(
            f"{field} has {len(items)} items; {most} are allowed in one request", field, "too_many_inputs"
        )


def _count(body: dict[str, Any], field: str) -> int | None:
    value = body.get(field)
    if type(value) is float and value.is_integer():
        value = int(value)
    if value is None or (type(value) is int and value >= 1):
        return value
    raise bad_request(f"{field} must be a whole number of at least 1", field)


def _flag(body: dict[str, Any], field: str, default: bool) -> bool:
    value = body.get(field)
    if value is None:
        return default
    if isinstance(value, bool):
        return value
    raise bad_request(f"{field} must be true or false, not {json_kind(value)}", field)
