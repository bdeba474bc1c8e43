"""Structured logs: one JSON object a line, on standard error."""

from __future__ import annotations

import json
import logging
import re
import sys
from dataclasses import asdict, is_dataclass
from datetime import datetime, timezone
from typing import Any, Literal

LogLevel = Literal["debug", "info", "warning", "error"]
LOGGER = "sparsespec.serving"


class JsonLines(logging.Formatter):
    """Messages that are dataclasses are events, named by their class, with their fields; others are texts."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        time = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": time, "level": record.levelname.lower()}
        if is_dataclass(record.msg) and not isinstance(record.msg, type):
            line |= {"event": _snake(type(record.msg).__name__), **asdict(record.msg)}
        else:
            line |= {"event": "message", "logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def log_event(event: object, level: int = logging.INFO) -> None:
    """Log a dataclass; its class is the event's name."""
    logging.getLogger(LOGGER).log(level, event)


def log_as_json(level: LogLevel = "info") -> None:
    """Have all of this process's logs written as JSON lines; for the main program of a server."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def _snake(name: str) -> str:
    return re.sub("(?<!^)(?=[A-Z])", "_", name).lower()
