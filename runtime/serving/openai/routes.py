"""The routes of OpenAI's API, and one form for all errors."""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from sparsespec.builder.errors import RequestError
from sparsespec.runtime.serving.openai.answer_types import ChatCompletion, Completion, ErrorBody, ModelCard, ModelList
from sparsespec.runtime.serving.openai.chat import ChatEndpoint
from sparsespec.runtime.serving.openai.completions import CompletionsEndpoint
from sparsespec.runtime.serving.openai.errors import error_answer
from sparsespec.runtime.serving.openai.models import ModelsEndpoint
from sparsespec.runtime.serving.openai.request_errors import JsonRoute, validation_answer
from sparsespec.runtime.serving.service import Service
from sparsespec.runtime.serving.service_errors import ServiceError

_EVENTS = "with `stream: true`: events of JSON chunks, of errors, and `data: [DONE]` last"
_STREAMED: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string", "description": _EVENTS}}}}
}
_FAILURES = (400, 401, 404, 408, 413, 429, 500, 503, 504)


class ApiApp(FastAPI):
    """A FastAPI whose errors all are OpenAI's, in its schema too."""

    def openapi(self) -> dict[str, Any]:
        """The schema, without the answers to bad requests that FastAPI would give by itself."""
        if self.openapi_schema is None:
            schema = super().openapi()
            for operations in schema["paths"].values():
                for operation in operations.values():
                    operation["responses"].pop("422", None)
            for name in ("HTTPValidationError", "ValidationError"):
                schema["components"]["schemas"].pop(name, None)
        return super().openapi()


def add_openai_routes(app: FastAPI, service: Service, model: str) -> None:
    """Models, completions and chats under /v1."""
    models = ModelsEndpoint(model, int(time.time()))
    completions, chat = CompletionsEndpoint(service, model), ChatEndpoint(service, model)
    few = _errors(401, 500)
    router = APIRouter(route_class=JsonRoute)
    router.add_api_route("/v1/models", models.list_models, response_model=ModelList, responses=few)
    router.add_api_route(
        "/v1/models/{model:path}", models.retrieve_model, response_model=ModelCard, responses=few | _errors(404)
    )
    router.add_api_route(
        "/v1/completions",
        completions.create_completion,
        methods=["POST"],
        response_model=Completion,
        responses=_STREAMED | _errors(*_FAILURES),
    )
    router.add_api_route(
        "/v1/chat/completions",
        chat.create_chat_completion,
        methods=["POST"],
        response_model=ChatCompletion,
        responses=_STREAMED | _errors(*_FAILURES),
    )
    app.include_router(router)


def add_error_answers(app: FastAPI) -> None:
    """Whatever is raised is answered as OpenAI does."""
    app.add_exception_handler(RequestValidationError, _answer_validation)
    for kind in (RequestError, ServiceError, HTTPException, Exception):
        app.add_exception_handler(kind, _answer_error)


async def _answer_validation(request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    return validation_answer(request, error).response()


async def _answer_error(_: Request, error: Exception) -> Response:
    return error_answer(error).response()


def _errors(*codes: int) -> dict[int | str, dict[str, Any]]:
    return {code: {"model": ErrorBody, "description": HTTPStatus(code).phrase} for code in codes}
