"""An error's body, as OpenAI's clients read it."""

from __future__ import annotations

import json


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> bytes:
    """JSON."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return json.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}}).encode()
