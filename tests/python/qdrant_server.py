"""A Qdrant server for tests: Qdrant's REST API over an embedded Qdrant.

No binary of the server is in the package registries. What this checks is the server mode of qdrant-client: that each
request is one of the API's, with the fields and types of its OpenAPI models, which refuse unknown ones. The answers are
those of the embedded Qdrant.
"""

from __future__ import annotations

import http.server
import json
import re
import threading
import warnings
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError
from qdrant_client import QdrantClient, models
from typing_extensions import Self

if TYPE_CHECKING:
    from collections.abc import Callable


class QdrantServer:
    """Serves on `url` while the context lasts. `requests` has the path and the body of each request."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, Any]] = []
        self.die_after: int | None = None
        """So many more writes are served; the rest of the requests get status 503."""
        self.lock = threading.Lock()
        self.qdrant = QdrantClient(location=":memory:", force_disable_check_same_thread=True)
        self.indexes: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> Self:
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self.qdrant.close()

    def bodies(self, path_end: str) -> list[Any]:
        """The bodies of all requests whose path ends so."""
        return [body for path, body in self.requests if path.endswith(path_end)]

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        with self.lock:
            self.requests.append((f"{method} {path}", body))
            if self.die_after is not None:
                if self.die_after <= 0:
                    return 503, {"status": {"error": "the server is dead"}}
                self.die_after -= method == "PUT" and path.endswith("/points")
            for pattern, verb, call in _ROUTES:
                found = re.fullmatch(pattern, path)
                if found is not None and verb == method:
                    try:
                        # The embedded Qdrant warns of parameters that only a server has.
                        with warnings.catch_warnings():
                            warnings.simplefilter("ignore")
                            result = call(self, *found.groups(), body)
                    except ValidationError as error:
                        return 422, {"status": {"error": f"the request is not one of the API: {error}"}}
                    except (ValueError, KeyError) as error:
                        missing = "not found" in str(error)
                        return 404 if missing else 400, {"status": {"error": str(error)}}
                    return 200, {"result": result, "status": "ok", "time": 0.0}
        return 404, {"status": {"error": f"no such route: {method} {path}"}}


def _model(kind: Any, body: Any) -> Any:
    return TypeAdapter(kind).validate_python(body)


def _json(value: Any) -> Any:
    return TypeAdapter(Any).dump_python(value, mode="json")


def _fields(request: Any, **names: str) -> dict[str, Any]:
    """The fields of a request that are set, under the client's names."""
    given = {name: getattr(request, name) for name in type(request).model_fields if getattr(request, name) is not None}
    return {names.get(name, name): value for name, value in given.items()}


def _create(server: QdrantServer, name: str, body: Any) -> bool:
    asked = _model(models.CreateCollection, body)
    kept = ("vectors", "sparse_vectors", "metadata")
    chosen = {key: value for key, value in _fields(asked).items() if key in kept}
    renamed = {"vectors": "vectors_config", "sparse_vectors": "sparse_vectors_config"}
    return server.qdrant.create_collection(name, **{renamed.get(key, key): value for key, value in chosen.items()})


def _info(server: QdrantServer, name: str, _body: Any) -> Any:
    found = _json(server.qdrant.get_collection(name))
    real = {one.alias_name: one.collection_name for one in server.qdrant.get_aliases().aliases}.get(name, name)
    found["payload_schema"] = server.indexes.get(real, {})
    return found


def _upsert(server: QdrantServer, name: str, body: Any) -> Any:
    asked = _model(models.PointInsertOperations, body)
    points = asked.batch if isinstance(asked, models.PointsBatch) else asked.points
    return _json(server.qdrant.upsert(name, points))


def _retrieve(server: QdrantServer, name: str, body: Any) -> Any:
    asked = _fields(_model(models.PointRequest, body), with_vector="with_vectors")
    return _json(server.qdrant.retrieve(name, **asked))


def _delete(server: QdrantServer, name: str, body: Any) -> Any:
    return _json(server.qdrant.delete(name, _model(models.PointsSelector, body)))


def _query(server: QdrantServer, name: str, body: Any) -> Any:
    renamed = {"filter": "query_filter", "params": "search_params", "with_vector": "with_vectors"}
    asked = _fields(_model(models.QueryRequest, body), **renamed)
    return _json(server.qdrant.query_points(name, **asked))


def _groups(server: QdrantServer, name: str, body: Any) -> Any:
    renamed = {"filter": "query_filter", "params": "search_params", "with_vector": "with_vectors"}
    asked = _fields(_model(models.QueryGroupsRequest, body), **renamed)
    return _json(server.qdrant.query_points_groups(name, **asked))


def _scroll(server: QdrantServer, name: str, body: Any) -> Any:
    asked = _fields(_model(models.ScrollRequest, body), filter="scroll_filter", with_vector="with_vectors")
    points, offset = server.qdrant.scroll(name, **asked)
    return {"points": _json(points), "next_page_offset": offset}


def _count(server: QdrantServer, name: str, body: Any) -> Any:
    asked = _fields(_model(models.CountRequest, body), filter="count_filter")
    return _json(server.qdrant.count(name, **asked))


def _change_aliases(server: QdrantServer, body: Any) -> bool:
    return server.qdrant.update_collection_aliases(_model(models.ChangeAliasesOperation, body).actions)


def _index(server: QdrantServer, name: str, body: Any) -> Any:
    asked = _model(models.CreateFieldIndex, body)
    server.indexes.setdefault(name, {})[asked.field_name] = {"data_type": asked.field_schema, "points": 0}
    return {"operation_id": 0, "status": "completed"}


def _set_payload(server: QdrantServer, name: str, body: Any) -> Any:
    asked = _model(models.SetPayload, body)
    return _json(server.qdrant.set_payload(name, asked.payload, asked.filter or asked.points))


_ONE = r"/collections/([^/]+)"
_ROUTES: list[tuple[str, str, Callable[..., Any]]] = [
    (f"{_ONE}/exists", "GET", lambda server, name, _body: {"exists": server.qdrant.collection_exists(name)}),
    (_ONE, "GET", _info),
    (_ONE, "PUT", _create),
    (_ONE, "DELETE", lambda server, name, _body: server.qdrant.delete_collection(name)),
    (r"/collections/aliases", "POST", _change_aliases),
    (r"/aliases", "GET", lambda server, _body: _json(server.qdrant.get_aliases())),
    (f"{_ONE}/index", "PUT", _index),
    (f"{_ONE}/points", "PUT", _upsert),
    (f"{_ONE}/points", "POST", _retrieve),
    (f"{_ONE}/points/delete", "POST", _delete),
    (f"{_ONE}/points/payload", "POST", _set_payload),
    (f"{_ONE}/points/query", "POST", _query),
    (f"{_ONE}/points/query/groups", "POST", _groups),
    (f"{_ONE}/points/scroll", "POST", _scroll),
    (f"{_ONE}/points/count", "POST", _count),
]


def _handler(server: QdrantServer) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(size)) if size else None
            status, answer = server.answer(self.command, self.path.partition("?")[0], body)
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815

        def log_message(self, *_arguments: object) -> None:
            pass

    return Handler
