"""The HTTP surface of a service: routes, limits, errors as JSON, the page and its documentation.

Reads bodies itself, so that a protocol sees bytes. Knows no Ray and nothing of models.
"""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from serving.batcher import BatchFailed, Closed, Overloaded
from serving.protocols import tei
from serving.service import MAX_TEXTS, Service, TooLong
from trainers.encoding import EncodingError

MAX_BODY_BYTES = 2 * 1024 * 1024
PAGES = Path(__file__).parent / "page"
JSON = "application/json"
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; img-src data:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
REFUSALS: dict[type[Exception], tuple[int, tei.ErrorType]] = {
    TooLong: (413, "Validation"),
    EncodingError: (422, "Tokenizer"),
    BatchFailed: (424, "Backend"),
    Overloaded: (429, "Overloaded"),
    Closed: (503, "Unhealthy"),
}
ERROR_STATUSES = {
    400: "the body is not JSON in UTF-8, or a text is empty",
    413: "too many bytes, texts or tokens",
    422: "a key has a wrong type, or a text cannot be read",
    424: "the model failed on this batch",
    429: "too much is waiting; see Retry-After",
    503: "the model does not answer",
}

log = logging.getLogger(__name__)


def build(service: Service) -> FastAPI:
    """The application that answers for `service`, and closes it when it shuts down."""

    @asynccontextmanager
    async def closing(_: FastAPI) -> AsyncIterator[None]:
        yield
        await service.close()

    app = FastAPI(
        title="Bertha",
        summary=f"{service.name}: {service.card.task}",
        version=tei.version(),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=closing,
    )
    _answer_errors_as_json(app)
    _add_pages(app)
    _add_tei(app, service)
    return app


def _add_tei(app: FastAPI, service: Service) -> None:
    """The routes of Text Embeddings Inference."""

    @app.post(
        "/predict",
        summary="Classify a text or a list of texts",
        response_model=tei.PredictResponse,
        responses=_errors(400, 413, 422, 424, 429, 503),
        openapi_extra=_body_schema(tei.PredictRequest.model_json_schema()),
    )
    async def predict(http: Request) -> Response:
        request = tei.parse(await _body(http), MAX_TEXTS)
        predictions = await service.predict(request.texts, request.truncate is not False)
        return Response(tei.answer(request, predictions, service.card.labels), media_type=JSON)

    @app.get("/health", summary="200 where the model answers", responses=_errors(503))
    async def health() -> Response:
        if await service.healthy():
            return Response()
        return _error(503, "Unhealthy", "the model does not answer")

    information = tei.info(service.name, service.card, service.token_budget, MAX_TEXTS)

    @app.get("/info", summary="The model, its labels, limits and held-out metrics")
    async def info() -> tei.Info:
        return information


def _add_pages(app: FastAPI) -> None:
    """The page for people, and the documentation."""

    def page(path: str, file: str) -> None:
        html = (PAGES / file).read_text(encoding="utf-8")

        @app.get(path, include_in_schema=False)
        async def show() -> Response:
            return HTMLResponse(html, headers=PAGE_HEADERS)

    page("/", "index.html")
    page("/docs", "docs.html")


def _answer_errors_as_json(app: FastAPI) -> None:
    """Whatever goes wrong, the answer is JSON and holds no trace of our code."""

    async def refused(_: Request, error: tei.Refused) -> Response:
        return _error(error.status, error.error_type, str(error))

    async def failed(_: Request, error: Exception) -> Response:
        if isinstance(error, BatchFailed):
            log.error("a batch failed", exc_info=error)
        response = _error(*REFUSALS[type(error)], str(error))
        if isinstance(error, Overloaded):
            response.headers["Retry-After"] = str(error.retry_after_seconds)
        return response

    async def no_route(http: Request, error: HTTPException) -> Response:
        known = {404: "there is no {path}", 405: "{path} does not answer {method}"}
        message = known.get(error.status_code, error.detail)
        message = message.format(path=http.url.path, method=http.method)
        response = _error(error.status_code, "Validation", f"{message}; see /docs")
        response.headers.update(error.headers or {})
        return response

    async def gone(_: Request, __: ClientDisconnect) -> Response:
        return Response(status_code=499)

    async def unexpected(_: Request, error: Exception) -> Response:
        log.error("a request failed", exc_info=error)
        return _error(500, "Internal", "an error of the server's own; its log says which")

    handlers: dict[type[Exception], Callable[..., Any]] = {
        tei.Refused: refused,
        **dict.fromkeys(REFUSALS, failed),
        HTTPException: no_route,
        ClientDisconnect: gone,
        Exception: unexpected,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


async def _body(http: Request) -> bytes:
    """The bytes of a request; refused early by its Content-Length, and while they stream in."""
    declared = http.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > MAX_BODY_BYTES:
        raise _too_large()
    body = bytearray()
    async for chunk in http.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise _too_large()
    return bytes(body)


def _too_large() -> tei.Refused:
    return tei.Refused(
        413, "Validation", f"the body is larger than {MAX_BODY_BYTES} bytes; send less at once"
    )


def _error(status: int, error_type: str, message: str) -> Response:
    return Response(tei.error(message, error_type), status_code=status, media_type=JSON)


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors of a route, for its schema."""
    return {
        status: {"model": tei.ErrorResponse, "description": ERROR_STATUSES[status]}
        for status in statuses
    }


def _body_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """A request body of `schema`, for a route that reads its own bytes."""
    return {"requestBody": {"required": True, "content": {JSON: {"schema": schema}}}}
