"""What TensorRT says: its log, and errors in the order in which they came."""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass
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
_MOST_ERRORS = 16  # first, and last


@dataclass(frozen=True)
class _Error:
    code: object
    description: str


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
    """The methods of IErrorRecorder; keeps the first errors, which are mostly the cause, and the last, which end it.

    TensorRT may call it from any thread, and need not log what it reports here. Nothing of it is fatal by itself: the
    call that failed says so.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._first: list[_Error] = []
        self._last: deque[_Error] = deque(maxlen=_MOST_ERRORS)
        self._overflowed = False

    def report_error(self, code: object, description: str) -> bool:
        """See IErrorRecorder. False: TensorRT may go on."""
        LOGGER.warning("%s", description)
        with self._lock:
            if len(self._first) < _MOST_ERRORS:
                self._first.append(_Error(code, description))
            else:
                self._overflowed = self._overflowed or len(self._last) == _MOST_ERRORS
                self._last.append(_Error(code, description))
        return False

    def get_num_errors(self) -> int:
        """See IErrorRecorder.num_errors: the bindings look for it under this name."""
        return len(self._all())

    def get_error_code(self, index: int) -> object:
        """See IErrorRecorder."""
        return self._all()[index].code

    def get_error_desc(self, index: int) -> str:
        """See IErrorRecorder."""
        return self._all()[index].description

    def has_overflowed(self) -> bool:
        """See IErrorRecorder."""
        return self._overflowed

    def clear(self) -> None:
        """See IErrorRecorder."""
        with self._lock:
            self._first.clear()
            self._last.clear()
            self._overflowed = False

    def take(self) -> str:
        """All that was reported since it was last empty, in one line."""
        texts = [" ".join(error.description.split()) for error in self._all()]
        self.clear()
        return "; ".join(texts) or "TensorRT gave no reason"

    def _all(self) -> list[_Error]:
        with self._lock:
            return [*self._first, *self._last]
