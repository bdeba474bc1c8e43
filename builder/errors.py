"""Errors caused by what a user handed us; every tool reports them in one line and exits with code 2."""


class InputError(ValueError):
    """A value from outside (file, flag, prompt) that cannot be used; the message names the value and the limit."""


class CheckpointError(InputError):
    """A model checkpoint that is damaged, incomplete or of an unsupported kind."""


class EngineError(InputError):
    """An engine directory that is damaged, foreign or newer than this code."""


class RequestError(InputError):
    """A single request that cannot be served; other requests are not affected."""


class BackendError(RuntimeError):
    """TensorRT refused or failed at run time; the message is its own, and says in what."""


def one_line(error: BaseException) -> str:
    """What a dependency's exception says, without its line breaks."""
    return " ".join(str(error).split())
