"""HTTP requests to answers: the one handler of the aiohttp lane."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Any, Final, assert_never

from aiohttp.web import BaseRequest, Response
from multidict import CIMultiDict

import host
from host.config.deployment import DeployedModel
from host.dispatch import PoolKey
from host.front import documents
from host.front.access_log import FAILED_MIN_STATUS, Access, AccessLog, error_code, known_method
from host.front.answers import COMPRESS_INLINE_MAX_BYTES, OCTETS, compress, compression
from host.front.bodies import BodyBudget, read_body
from host.front.catalog import Catalog
from host.front.deadlines import body_timeout_ns
from host.front.documents import SERVER_NAME
from host.front.gateway import FEATURES_POOL, Call, Gateway, Result
from host.front.headers import (
    INFERENCE_HEADER,
    REQUEST_ID,
    REQUEST_TIMEOUT,
    TRACEPARENT,
    TRACESTATE,
    RequestIds,
    answer_encoding,
    given_request_id,
    given_traceparent,
    given_tracestate,
    inference_header,
    request_encoding,
    timeout_ns,
)
from host.front.routes import Endpoint, Route, match_route
from host.front.sharing import Sharing
from host.front.traffic import NO_CANARY, Traffic
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
from host.protocol.logs import about
from host.protocol.messages import NO_JSON_HEADER, Encoding, Operation, ResponseHead

logger = logging.getLogger("modelhost.front")

_OFFERED_BY_CLIENTS: Final = "h2c"
"""HTTP clients (Java's) ask for this upgrade beside an ordinary request, send nothing before its answer, and go on."""

_NO_MODEL: Final = ("", "")

_DEFAULT_TIMEOUT_MS: Final = 10_000
"""For bodies of requests that name no model."""


class Handler:
    """Answers every HTTP request of one front."""

    def __init__(
        self,
        catalog: Catalog,
        gateway: Gateway,
        sharing: Sharing,
        budget: BodyBudget,
        request_ids: RequestIds,
        access: AccessLog,
        max_body_bytes: int,
    ) -> None:
        self.catalog = catalog
        """What paths mean now."""
        self._gateway = gateway
        self._sharing = sharing
        self._max_body_bytes = max_body_bytes
        self._budget = budget
        self._request_ids = request_ids
        self._access = access
        self.stopping = False

    def ready(self) -> bool:
        """Whether every deployed model has a warm worker, and the front is not about to stop.

        Not those of canaries and shadows: without them the default answers everything.
        """
        needed = (model for model in self.catalog if not model.is_beside)
        return not self.stopping and not self.catalog.draining and all(map(self._is_ready, needed))

    async def __call__(self, request: BaseRequest) -> Response:
        """Answer one request; every failure becomes an error document."""
        received_ns = time.monotonic_ns()
        handling = _Handling(given_request_id(request.headers.get(REQUEST_ID)) or self._request_ids.new())
        response = await self._answer(request, handling, received_ns)
        self._access.countdown -= 1
        if self._access.countdown < 0 or response.status >= FAILED_MIN_STATUS:
            self._note(request, handling, response, received_ns)
        if self.stopping:
            response.force_close()
        if request.headers.get("Upgrade", _OFFERED_BY_CLIENTS).lower() != _OFFERED_BY_CLIENTS:
            # aiohttp may have thrown away what came behind it: nothing more can be read on this connection.
            response.force_close()
        return response

    def _note(self, request: BaseRequest, handling: _Handling, response: Response, received_ns: int) -> None:
        """Have the access log tell of an answer that is about to be written."""
        route, call = handling.route, handling.call
        body = response.body if isinstance(response.body, bytes) else b""
        model, version = self._asked(handling)
        self._access.note(
            Access(
                received_ns=received_ns,
                method=known_method(request.method),
                route=route.endpoint.route if route is not None else "",
                status=response.status,
                in_bytes=call.size_bytes if call is not None else 0,
                out_bytes=len(body),
                model=model,
                version=version,
                slot=self._gateway.slot_of(call) if call is not None else None,
                code=error_code(response.status, body),
                request_id=handling.request_id,
                traceparent=call.traceparent if call is not None else "",
            )
        )

    def _asked(self, handling: _Handling) -> PoolKey:
        """The version that a request was for; empty if that is none that is deployed: its name is the client's word."""
        route, call = handling.route, handling.call
        if call is not None:
            return call.pool if call.pool != FEATURES_POOL else _NO_MODEL
        try:
            return self.catalog.find(route.model, route.version).key if route is not None else _NO_MODEL
        except RequestError:
            return _NO_MODEL

    async def _answer(self, request: BaseRequest, handling: _Handling, received_ns: int) -> Response:
        headers = request.headers
        request_id = handling.request_id
        encoding = Encoding.JSON
        try:
            if "Content-Type" in headers:
                encoding = request_encoding(headers["Content-Type"])
            route = handling.route = match_route(request.method, request.raw_path)
            if route.endpoint is Endpoint.INFER or route.endpoint is Endpoint.V1_PREDICT:
                return await self._infer(request, route, encoding, handling, received_ns)
            if route.endpoint is Endpoint.V1_FEATURE or route.endpoint is Endpoint.V1_FEATURES_BATCH:
                response = await self._features(request, route, encoding, handling, received_ns)
            else:
                response = await self._inform(request, route, encoding, request_id, received_ns)
        except RequestError as error:
            refused = error
        except (asyncio.CancelledError, ConnectionError):
            raise
        except Exception:
            what = handling.route.endpoint.name if handling.route is not None else "its path"
            logger.exception("%s failed", what, extra=about(request_id))
            refused = Internal("internal error; the log has the details")
        else:
            self._gateway.others.answered(response.status, time.monotonic_ns() - received_ns)
            return response
        self._gateway.others.refused(refused)
        return _error_response(refused, encoding, request_id)

    # -- inference ----------------------------------------------------------------------------------------
    async def _infer(
        self, request: BaseRequest, route: Route, encoding: Encoding, handling: _Handling, received_ns: int
    ) -> Response:
        """Answer an inference request. From here on it is a model version's: what goes wrong counts as that one's."""
        catalog = self.catalog
        model, traffic = self._chosen(request, route)
        call: Call | None = None
        try:
            headers = request.headers
            deadline_ns = received_ns + timeout_ns(headers.get(REQUEST_TIMEOUT), model.limits.timeout_ms)
            accept = headers.get("Accept")
            is_v2 = route.endpoint is Endpoint.INFER
            json_bytes = inference_header(headers.get(INFERENCE_HEADER)) if is_v2 else NO_JSON_HEADER
            body = await read_body(request, self._max_body_bytes, self._budget, model.name, deadline_ns)
            try:
                if self.catalog is not catalog:  # it changed while the body arrived
                    model, traffic = self._chosen(request, route)
                if is_v2:
                    asked_ns = body_timeout_ns(body, encoding, json_bytes)
                    if asked_ns is not None:
                        deadline_ns = min(deadline_ns, received_ns + asked_ns)
                waiting = _Waiting()
                call = Call(
                    client=waiting,
                    pool=model.key,
                    deadline_ns=deadline_ns,
                    size_bytes=len(body),
                    operation=Operation.INFER if is_v2 else Operation.PREDICT,
                    body=body,
                    received_ns=received_ns,
                    encoding=encoding,
                    accept=encoding if accept is None else answer_encoding(accept, encoding),
                    json_bytes=json_bytes,
                    request_id=handling.request_id,
                    traceparent=given_traceparent(headers.get(TRACEPARENT)),
                    tracestate=given_tracestate(", ".join(headers.getall(TRACESTATE, ()))),
                )
                handling.call = call
                if traffic is not None:
                    self._sharing.prepare(call, traffic)
                head, answer = await self._result(call, waiting)
            finally:
                self._budget.give_back(len(body), model.name)
        except RequestError as error:
            if call is None:  # else the gateway has counted it
                self._gateway.outcomes_of(model.key).refused_unread(error)
            return _error_response(error, encoding, handling.request_id)
        return await _answer_response(request, handling.request_id, head, answer)

    def _chosen(self, request: BaseRequest, route: Route) -> tuple[DeployedModel, Traffic | None]:
        """The version that answers a request, and how those without a version are shared, if they are.

        Raises `UnknownModel`, `UnknownVersion`.
        """
        model = self.catalog.find(route.model, route.version)
        traffic = self.catalog.traffic(route.model, route.version)
        if traffic is None:
            return model, None
        slot = traffic.sticky_slot(request.headers.get(model.sticky_header))
        position = self._sharing.canary(traffic, slot)
        return model if position == NO_CANARY else traffic.canaries[position], traffic

    async def _features(
        self, request: BaseRequest, route: Route, encoding: Encoding, handling: _Handling, received_ns: int
    ) -> Response:
        """Rows of feature views: asked of the feature service, with its cache and its limits."""
        headers = request.headers
        deadline_ns = received_ns + timeout_ns(headers.get(REQUEST_TIMEOUT), _DEFAULT_TIMEOUT_MS)
        body, held = encode_document({"view": route.view, "path": route.key}, encoding), 0
        if route.endpoint is Endpoint.V1_FEATURES_BATCH:
            body = await read_body(request, self._max_body_bytes, self._budget, None, deadline_ns)
            held = len(body)
        try:
            waiting = _Waiting()
            call = Call(
                client=waiting,
                pool=FEATURES_POOL,
                deadline_ns=deadline_ns,
                size_bytes=len(body),
                operation=Operation.READ_FEATURES,
                body=body,
                received_ns=received_ns,
                encoding=encoding,
                accept=answer_encoding(headers.get("Accept", ""), encoding),
                request_id=handling.request_id,
                traceparent=given_traceparent(headers.get(TRACEPARENT)),
                tracestate=given_tracestate(", ".join(headers.getall(TRACESTATE, ()))),
            )
            handling.call = call
            head, answer = await self._result(call, waiting)
        finally:
            self._budget.give_back(held, None)
        return await _answer_response(request, handling.request_id, head, answer)

    async def _result(self, call: Call, waiting: _Waiting) -> Result:
        """Run a call. Raises `RequestError`; cancelled (the client is gone), it takes the call back."""
        self._gateway.submit(call, time.monotonic_ns())
        try:
            return await waiting.result
        except asyncio.CancelledError:
            self._gateway.cancel(call)
            raise

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
        catalog = self.catalog
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
                return 200, documents.model_metadata(model, list(catalog.versions(route.model)), catalog.features)
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
                return 200, documents.repository_index(((m, self._not_ready(m)) for m in catalog), only_ready)
            case Endpoint.V1_MODELS:
                return 200, {"models": catalog.names()}
            case Endpoint.V1_MODEL_STATUS:
                if route.version:
                    models = [catalog.find(route.model, route.version)]
                else:
                    models = list(catalog.versions(route.model).values())
                return 200, documents.v1_model_status([(m, self._is_ready(m)) for m in models])
            case Endpoint.V1_FEATURES:
                return 200, documents.feature_views(catalog.features)
            case Endpoint.INFER | Endpoint.V1_PREDICT | Endpoint.V1_FEATURE | Endpoint.V1_FEATURES_BATCH:
                raise AssertionError("what others answer has its own way")
            case _:
                assert_never(endpoint)

    async def _statistics(self, models: list[DeployedModel]) -> dict[str, Any]:
        counted = await asyncio.gather(*(self._gateway.statistics(m.key) for m in models))
        return {
            "model_stats": [
                documents.model_statistics(workers, model) for model, workers in zip(models, counted, strict=True)
            ]
        }

    async def _only_ready(self, request: BaseRequest, encoding: Encoding, received_ns: int) -> bool:
        deadline_ns = received_ns + timeout_ns(request.headers.get(REQUEST_TIMEOUT), _DEFAULT_TIMEOUT_MS)
        body = await read_body(request, self._max_body_bytes, self._budget, None, deadline_ns)
        self._budget.give_back(len(body), None)
        if not body:
            return False
        document = decode_document(body, encoding)
        ready = document.get("ready", False) if isinstance(document, dict) else None
        if not isinstance(ready, bool):
            raise InvalidInput('expected an object such as {"ready": true}')
        return ready

    def _is_ready(self, model: DeployedModel) -> bool:
        return self._not_ready(model) is None

    def _not_ready(self, model: DeployedModel) -> str | None:
        return self._gateway.not_ready(model.key)


@dataclass(slots=True)
class _Handling:
    """What is known of one request by now."""

    request_id: str
    route: Route | None = None
    call: Call | None = None


class _Waiting:
    """The client of a call of this lane: a future. Implements `gateway.Client`."""

    def __init__(self) -> None:
        self.result: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

    def answered(self, call: Call, head: ResponseHead, body: bytes) -> None:
        """Wake the handler."""
        if not self.result.done():
            self.result.set_result((head, body))

    def refused(self, call: Call, error: RequestError) -> None:
        """Wake the handler with an error."""
        if not self.result.done():
            self.result.set_exception(error)


async def _answer_response(request: BaseRequest, request_id: str, head: ResponseHead, answer: bytes) -> Response:
    """What a worker or the feature service answered."""
    answer_headers = _headers(request_id, CONTENT_TYPES[head.encoding])
    if head.json_bytes != NO_JSON_HEADER:
        answer_headers[INFERENCE_HEADER] = str(head.json_bytes)
        answer_headers["Content-Type"] = OCTETS
    coding = compression(request.headers.get("Accept-Encoding"), len(answer))
    if coding is not None:
        answer_headers["Content-Encoding"] = coding
        answer_headers["Vary"] = "Accept-Encoding"
        if len(answer) <= COMPRESS_INLINE_MAX_BYTES:
            answer = compress(answer, coding)
        else:
            answer = await asyncio.to_thread(compress, answer, coding)
    return Response(body=answer, status=head.status, headers=answer_headers)


def _headers(request_id: str, content_type: str) -> CIMultiDict[str]:
    return CIMultiDict({"Content-Type": content_type, REQUEST_ID: request_id, "Server": SERVER_NAME})


def _error_response(error: RequestError, encoding: Encoding, request_id: str) -> Response:
    if isinstance(error, UnsupportedMediaType):
        encoding = Encoding.JSON
    headers = _headers(request_id, CONTENT_TYPES[encoding])
    if isinstance(error, Overloaded):
        headers["Retry-After"] = str(error.retry_after_s)
    if isinstance(error, MethodNotAllowed):
        headers["Allow"] = error.allow
    return Response(body=error_document(error, encoding), status=http_status(error), headers=headers)
