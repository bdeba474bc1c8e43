"""Why a request that is right in itself is not served; a wrong one raises RequestError. Messages are for clients."""

from __future__ import annotations


class ServiceError(Exception):
    """A request that cannot be served now."""


class OverloadedError(ServiceError):
    """As many answers run or wait as may: try again later."""


class DrainingError(ServiceError):
    """The service ends what it has begun and takes nothing more."""


class DeadlineError(ServiceError):
    """The request's time has passed."""


class EngineFailedError(ServiceError):
    """A step failed, or the answer's text could not be made."""
