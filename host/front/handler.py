"""HTTP requests to answers: the one handler of the aiohttp lane."""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import time
import zlib
from typing import Any, Final, assert_never

from aiohttp.web import BaseRequest, Response
from multidict import CIMultiDict

import host
from host.config.deployment import DeployedModel
from host.front import documents
from host.front.bodies import BodyBudget, read_body
from host.front.catalog import Catalog
from host.front.documents import SERVER_NAME
from host.front.gateway import Gateway, InferenceCall
from host.front.headers import (
    INFERENCE_HEADER,
    REQUEST_ID,
    REQUEST_TIMEOUT,
    TRACEPARENT,
    answer_compression,
    answer_encoding,
    given_request_id,
    given_traceparent,
    inference_header,
    request_encoding,
    timeout_ns,
)
from host.front.routes import Endpoint, Route, match_route
from host.protocol.documents import CONTENT_TYPES, decode_document, encode_document, error_document
from host.protocol.errors import (
    Internal,
    InvalidInput,
    MethodNotAllowed,
    Overloaded,
    RequestError,
    UnsupportedMediaType,
    http_status,
)
from host.protocol.messages import NO_JSON_HEADER, Encoding, Operation

logger = logging.getLogger("modelhost.front")

COMPRESS_MIN_BYTES: Final = 1024
"""Smaller answers are not worth compressing: they fit into one packet anyway."""

COMPRESS_INLINE_MAX_BYTES: Final = 64 * 1024
"""Larger answers are compressed in a thread: zlib does some 50 MB/s, and the loop has other clients."""

_DEFAULT_TIMEOUT_MS: Final = 10_000
"""For bodies of requests that name no model."""

_OCTETS: Final = "application/octet-stream"
_WINDOW_BITS: Final = {"gzip": 31, "deflate": 15}
"""zlib's `wbits`: 31 writes a gzip header, 15 zlib's own, which HTTP calls deflate."""


class Handler:
    """Answers every HTTP request of one front."""

    def __init__(self, catalog: Catalog, gateway: Gateway, max_body_bytes: int, budget: BodyBudget) -> None:
        self._catalog = catalog
        self._gateway = gateway
        self._max_body_bytes = max_body_bytes
        self._budget = budget
        self._request_id_prefix = secrets.token_hex(4)
        self._request_numbers = itertools.count(1)
        self.stopping = False

    def ready(self) -> bool:
        """Whether every deployed model has a warm worker, and the front is not about to stop."""
        return not self.stopping and all(map(self._is_ready, self._catalog))

    async def __call__(self, request: BaseRequest) -> Response:
        """Answer one request; every failure becomes an error document."""
        received_ns = time.monotonic_ns()
        headers = request.headers
        request_id = given_request_id(headers.get(REQUEST_ID)) or self._new_request_id()
        encoding = Encoding.JSON
        try:
            if "Content-Type" in headers:
                encoding = request_encoding(headers["Content-Type"])
            route = match_route(request.method, request.raw_path)
            if route.endpoint is Endpoint.INFER or route.endpoint is Endpoint.V1_PREDICT:
                return await self._infer(request, route, encoding, request_id, received_ns)
            return await self._inform(request, route, encoding, request_id, received_ns)
        except UnsupportedMediaType as error:
            return _error_response(error, Encoding.JSON, request_id)
        except RequestError as error:
            return _error_response(error, encoding, request_id)
        except (asyncio.CancelledError, ConnectionError):
            raise
        except Exception:
            logger.exception("request %s: %s %s failed", request_id, request.method, request.raw_path)
            return _error_response(Internal("internal error; the log has the details"), encoding, request_id)

    def _new_request_id(self) -> str:
        return f"{self._request_id_prefix}-{next(self._request_numbers):x}"

    # -- inference ----------------------------------------------------------------------------------------
    async def _infer(
        self, request: BaseRequest, route: Route, encoding: Encoding, request_id: str, received_ns: int
    ) -> Response:
        model = self._catalog.find(route.model, route.version)
        headers = request.headers
        deadline_ns = received_ns + timeout_ns(headers.get(REQUEST_TIMEOUT), model.limits.timeout_ms)
        accept = headers.get("Accept")
        is_v2 = route.endpoint is Endpoint.INFER
        json_bytes = inference_header(headers.get(INFERENCE_HEADER)) if is_v2 else NO_JSON_HEADER
        body = await read_body(request, self._max_body_bytes, self._budget, deadline_ns)
        size_bytes = len(body)
        try:
            call = InferenceCall(
                operation=Operation.INFER if is_v2 else Operation.PREDICT,
                body=body,
                received_ns=received_ns,
                deadline_ns=deadline_ns,
                encoding=encoding,
                accept=encoding if accept is None else answer_encoding(accept, encoding),
                json_bytes=json_bytes,
                request_id=request_id,
                traceparent=given_traceparent(headers.get(TRACEPARENT)),
            )
            head, answer = await self._gateway.infer((model.name, model.version), call)
        finally:
            self._budget.give_back(size_bytes)
        answer_headers = _headers(request_id, CONTENT_TYPES[head.encoding])
        if head.json_bytes != NO_JSON_HEADER:
            answer_headers[INFERENCE_HEADER] = str(head.json_bytes)
            answer_headers["Content-Type"] = _OCTETS
        if len(answer) >= COMPRESS_MIN_BYTES:
            answer = await _compressed(request, answer, answer_headers)
        return Response(body=answer, status=head.status, headers=answer_headers)

    # -- everything else ----------------------------------------------------------------------------------
    async def _inform(
        self, request: BaseRequest, route: Route, encoding: Encoding, request_id: str, received_ns: int
    ) -> Response:
        status, document = await self._document(request, route, encoding, received_ns)
        accept = answer_encoding(request.headers.get("Accept", ""), encoding)
        headers = _headers(request_id, CONTENT_TYPES[accept])
        return Response(body=encode_document(document, accept), status=status, headers=headers)

    async def _document(
        self, request: BaseRequest, route: Route, encoding: Encoding, received_ns: int
    ) -> tuple[int, Any]:
        catalog = self._catalog
        endpoint = route.endpoint
        match endpoint:
            case Endpoint.LIVE:
                return 200, documents.health(live=True, ready=self.ready())
            case Endpoint.READY:
                ready = self.ready()
                return 200 if ready else 503, documents.health(live=True, ready=ready)
            case Endpoint.SERVER_METADATA:
                return 200, documents.server_metadata(host.__version__)
            case Endpoint.MODEL_METADATA:
                model = catalog.find(route.model, route.version)
                return 200, documents.model_metadata(model, list(catalog.versions(route.model)))
            case Endpoint.MODEL_READY:
                model = catalog.find(route.model, route.version)
                ready = not self.stopping and self._is_ready(model)
                return 200 if ready else 503, {"name": model.name, "ready": ready}
            case Endpoint.MODEL_CONFIG:
                return 200, documents.model_config(catalog.find(route.model, route.version))
            case Endpoint.MODEL_STATISTICS:
                if route.version:
                    models = [catalog.find(route.model, route.version)]
                else:
                    models = list(catalog.versions(route.model).values())
                return 200, await self._statistics(models)
            case Endpoint.ALL_STATISTICS:
                return 200, await self._statistics(list(catalog))
            case Endpoint.REPOSITORY_INDEX:
                only_ready = await self._only_ready(request, encoding, received_ns)
                return 200, documents.repository_index(((m, self._is_ready(m)) for m in catalog), only_ready)
            case Endpoint.V1_MODELS:
                return 200, {"models": catalog.names()}
            case Endpoint.V1_MODEL_STATUS:
                if route.version:
                    models = [catalog.find(route.model, route.version)]
                else:
                    models = list(catalog.versions(route.model).values())
                return 200, documents.v1_model_status([(m, self._is_ready(m)) for m in models])
            case Endpoint.INFER | Endpoint.V1_PREDICT:
                raise AssertionError("inference has its own way")
            case _:
                assert_never(endpoint)

    async def _statistics(self, models: list[DeployedModel]) -> dict[str, Any]:
        counted = await asyncio.gather(*(self._gateway.statistics((m.name, m.version)) for m in models))
        return {
            "model_stats": [
                documents.model_statistics(workers, model) for model, workers in zip(models, counted, strict=True)
            ]
        }

    async def _only_ready(self, request: BaseRequest, encoding: Encoding, received_ns: int) -> bool:
        deadline_ns = received_ns + timeout_ns(request.headers.get(REQUEST_TIMEOUT), _DEFAULT_TIMEOUT_MS)
        body = await read_body(request, self._max_body_bytes, self._budget, deadline_ns)
        self._budget.give_back(len(body))
        if not body:
            return False
        document = decode_document(body, encoding)
        ready = document.get("ready", False) if isinstance(document, dict) else None
        if not isinstance(ready, bool):
            raise InvalidInput('expected an object such as {"ready": true}')
        return ready

    def _is_ready(self, model: DeployedModel) -> bool:
        return self._gateway.ready_workers((model.name, model.version)) > 0


def _headers(request_id: str, content_type: str) -> CIMultiDict[str]:
    return CIMultiDict({"Content-Type": content_type, REQUEST_ID: request_id, "Server": SERVER_NAME})


def _error_response(error: RequestError, encoding: Encoding, request_id: str) -> Response:
    headers = _headers(request_id, CONTENT_TYPES[encoding])
    if isinstance(error, Overloaded):
        headers["Retry-After"] = str(error.retry_after_s)
    if isinstance(error, MethodNotAllowed):
        headers["Allow"] = error.allow
    return Response(body=error_document(error, encoding), status=http_status(error), headers=headers)


async def _compressed(request: BaseRequest, body: bytes, headers: CIMultiDict[str]) -> bytes:
    """Compress an answer if the client takes it, and say so in its headers."""
    accepted = request.headers.get("Accept-Encoding")
    coding = answer_compression(accepted) if accepted is not None else None
    if coding is None:
        return body
    headers["Content-Encoding"] = coding
    headers["Vary"] = "Accept-Encoding"
    if len(body) <= COMPRESS_INLINE_MAX_BYTES:
        return zlib.compress(body, level=1, wbits=_WINDOW_BITS[coding])
    return await asyncio.to_thread(zlib.compress, body, level=1, wbits=_WINDOW_BITS[coding])
