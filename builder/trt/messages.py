"""What TensorRT says: its log, and errors in the order in which they came."""

from __future__ import annotations

import logging
from collections import deque
from functools import cache
from threading import Lock

from sparsespec.builder.trt.api import Named, TensorRT
from sparsespec.builder.trt.versions import implement

LOGGER = logging.getLogger("sparsespec.tensorrt")
_LEVELS = {
    "INTERNAL_ERROR": logging.CRITICAL,
    "ERROR": logging.ERROR,
    "WARNING": logging.WARNING,
    "INFO": logging.DEBUG,  # TensorRT tells of every step there
    "VERBOSE": logging.DEBUG - 1,
}
_MOST_ERRORS = 64


@cache
def python_logger(trt: TensorRT) -> object:
    """The one logger of this process: TensorRT takes no second one."""
    logger: object = implement(trt.ILogger, PythonLog())
    return logger


class PythonLog:
    """The methods of ILogger over Python's logging."""

    def log(self, severity: Named, message: str) -> None:
        """See ILogger."""
        LOGGER.log(_LEVELS.get(severity.name, logging.WARNING), "%s", message)


class ErrorLog:
    """The methods of IErrorRecorder; keeps the first errors of a failure, of which the others follow.

    TensorRT may call it from any thread. What it gets told of is not fatal by itself: the call that failed says so.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._errors: deque[tuple[object, str]] = deque()
        self._overflowed = False

    def report_error(self, code: object, description: str) -> bool:
        """See IErrorRecorder. False: TensorRT may go on."""
        with self._lock:
            if len(self._errors) < _MOST_ERRORS:
                self._errors.append((code, description))
            else:
                self._overflowed = True
        return False

    def get_num_errors(self) -> int:
        """See IErrorRecorder.num_errors: the bindings look for it under this name."""
        return len(self._errors)

    def get_error_code(self, index: int) -> object:
        """See IErrorRecorder."""
        return self._errors[index][0]

    def get_error_desc(self, index: int) -> str:
        """See IErrorRecorder."""
        return self._errors[index][1]

    def has_overflowed(self) -> bool:
        """See IErrorRecorder."""
        return self._overflowed

    def clear(self) -> None:
        """See IErrorRecorder."""
        with self._lock:
            self._errors.clear()
            self._overflowed = False

    def take(self) -> str:
        """All that was reported since the last time, in one line."""
        with self._lock:
            texts = [" ".join(description.split()) for _, description in self._errors]
            self._errors.clear()
            self._overflowed = False
        return "; ".join(texts) or "TensorRT gave no reason"
