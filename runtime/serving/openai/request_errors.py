"""What is wrong with a request's body, told by the field's name. No torch."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from sparsespec.builder.config_io import shown
from sparsespec.runtime.serving.openai.errors import ErrorAnswer

_MOST_TOLD = 4  # of a value's errors
_MOST_CHARS, _MOST_NAME_CHARS = 500, 100  # of a message, and of a field's name: both may quote the request


class JsonRequest(Request):
    """Whose body is JSON as its standard has it: Unicode, no NaN, no nesting without end."""

    async def json(self) -> Any:
        """The body. Raises HTTPException, 400, where it is none."""
        try:
            return from_json(await self.body(), allow_inf_nan=False)
        except ValueError as error:
            raise HTTPException(400, f"the body is no JSON: {error}") from None


class JsonRoute(APIRoute):
    """A route that reads its body so."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See FastAPI."""
        handle = super().get_route_handler()

        async def handle_json(request: Request) -> Response:
            return await handle(JsonRequest(request.scope, request.receive))

        return handle_json


def validation_answer(request: Request, error: RequestValidationError) -> ErrorAnswer:
    """400, with the field as `param`: `messages[0].content`."""
    errors = error.errors()
    if isinstance(error.body, bytes):
        found = request.headers.get("content-type", "none")
        return ErrorAnswer(400, f"the body must be JSON: expected content-type application/json, found {shown(found)}")
    deepest = _most_exact(errors)
    param = _path(deepest[0]["loc"][1:], error.body)
    kind = deepest[0]["type"]
    if kind == "extra_forbidden":
        return ErrorAnswer(400, f"unknown field {param}", param=param, code="unknown_parameter")
    told = dict.fromkeys(f"{_path(each['loc'][1:], error.body) or 'the body'}: {each['msg']}" for each in deepest)
    code = "unsupported_parameter" if kind == "unsupported" else None
    return ErrorAnswer(400, _cut("; ".join(list(told)[:_MOST_TOLD]), _MOST_CHARS), param=param or None, code=code)


def _most_exact(errors: Sequence[Any]) -> list[Any]:
    """Of the first wrong field. A value that may have several forms has an error for each: those that got furthest."""
    field = errors[0]["loc"][:2]
    same = [error for error in errors if error["loc"][:2] == field]
    furthest = max(_progress(error["loc"]) for error in same)
    return [error for error in same if _progress(error["loc"]) == furthest]


def _progress(location: Sequence[int | str]) -> tuple[int, int]:
    """How far into the value one of its forms fitted: levels, then elements of a list."""
    last = location[-1]
    return len(location), last if isinstance(last, int) else 0


def _path(location: Iterable[int | str], body: object) -> str:
    """As one writes it in code. pydantic's location also names the forms that it tried; they are not in the body."""
    path = ""
    parts = list(location)
    for number, part in enumerate(parts):
        if isinstance(body, dict) and (part in body or number == len(parts) - 1):
            name = _cut(str(part), _MOST_NAME_CHARS)
            path += f".{name}" if path else name
            body = body.get(part)
        elif isinstance(body, list) and isinstance(part, int) and part < len(body):
            path += f"[{part}]"
            body = body[part]
    return path


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}..."
