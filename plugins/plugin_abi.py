"""The C interface of libsparsespec_plugin_host.so in ctypes; plugins/host/plugin_host.h says what each function is."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_int32, c_int64, c_void_p
from pathlib import Path

MAX_DIMS = 8


class PluginError(RuntimeError):
    """A plugin or the host refused; the message says what was expected and what came.

    code: what the plugin's method returned (plugins/common/status.h), or a negative one of the host.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{message} (code {code})")
        self.code = code
        self.message = message


class TensorStruct(ctypes.Structure):
    """SparsespecTensor."""

    _fields_ = (("type", c_int32), ("format", c_int32), ("rank", c_int32), ("sizes", c_int64 * MAX_DIMS))


class FieldStruct(ctypes.Structure):
    """SparsespecField."""

    _fields_ = (("name", c_char_p), ("data", c_void_p), ("type", c_int32), ("length", c_int32))


class TensorsStruct(ctypes.Structure):
    """SparsespecTensors."""

    _fields_ = (("tensors", POINTER(TensorStruct)), ("num_inputs", c_int32), ("num_outputs", c_int32))


_PROTOTYPES = {
    "last_error": (c_char_p, ()),
    "open": (c_int32, (c_char_p, POINTER(c_void_p))),
    "num_creators": (c_int32, (c_void_p,)),
    "creator_name": (c_char_p, (c_void_p, c_int32)),
    "creator_version": (c_char_p, (c_void_p, c_int32)),
    "creator_namespace": (c_char_p, (c_void_p, c_int32)),
    "creator_fields": (c_int32, (c_void_p, c_int32, POINTER(FieldStruct), c_int32)),
    "create": (c_int32, (c_void_p, c_int32, POINTER(FieldStruct), c_int32, c_int32, POINTER(c_void_p))),
    "destroy": (None, (c_void_p,)),
    "clone": (c_int32, (c_void_p, POINTER(c_void_p))),
    "attach": (c_int32, (c_void_p, c_int32, POINTER(c_void_p))),
    "identity": (c_char_p, (c_void_p,)),
    "serialise": (c_int32, (c_void_p, POINTER(FieldStruct), c_int32)),
    "num_outputs": (c_int32, (c_void_p,)),
    "aliased_input": (c_int32, (c_void_p, c_int32)),
    "output_types": (c_int32, (c_void_p, POINTER(c_int32), c_int32, c_int32)),
    "output_shapes": (c_int32, (c_void_p, POINTER(TensorStruct), c_int32, c_int32, c_int32)),
    "supports": (c_int32, (c_void_p, c_int32, POINTER(TensorsStruct))),
    "configure": (c_int32, (c_void_p, POINTER(TensorsStruct))),
    "workspace_size": (c_int64, (c_void_p, POINTER(TensorsStruct))),
    "on_shape_change": (c_int32, (c_void_p, POINTER(TensorsStruct))),
    "prepare": (c_int32, (c_void_p, POINTER(TensorsStruct), c_int64, POINTER(c_void_p))),
    "discard": (None, (c_void_p,)),
    "enqueue": (c_int32, (c_void_p, c_void_p, c_void_p, c_int64, c_void_p)),
}


class HostLibrary:
    """The host's functions, and its errors as PluginError."""

    def __init__(self, path: Path) -> None:
        try:
            self._library = ctypes.CDLL(str(path))
            functions = {name: self._function(name) for name in _PROTOTYPES}
        except (OSError, AttributeError) as error:
            raise PluginError(-1, f"{path}: expected the plugin host library: {error}") from error
        self._functions = functions

    def _function(self, name: str) -> ctypes._NamedFuncPointer:
        function = self._library[f"sparsespec_host_{name}"]
        function.restype, function.argtypes = _PROTOTYPES[name]
        return function

    def last_error(self) -> str:
        """What went wrong in this thread's last call."""
        text: bytes = self._functions["last_error"]()
        return text.decode(errors="replace")

    def number(self, name: str, *arguments: object) -> int:
        """The answer of a function whose negative answers are errors."""
        answer: int = self._functions[name](*arguments)
        if answer < 0:
            raise PluginError(answer, self.last_error())
        return answer

    def alias(self, plugin: c_void_p, output: int) -> int:
        """sparsespec_host_aliased_input, the one function for which -1 is an answer."""
        answer: int = self._functions["aliased_input"](plugin, output)
        if answer < -1 or self.last_error():
            raise PluginError(answer, self.last_error())
        return answer

    def check(self, name: str, *arguments: object) -> None:
        """Call a function whose answer is 0 or an error's code."""
        code: int = self._functions[name](*arguments)
        if code != 0:
            raise PluginError(code, self.last_error())

    def text(self, name: str, *arguments: object) -> str:
        """The answer of a function that gives text."""
        answer: bytes | None = self._functions[name](*arguments)
        if answer is None:
            raise PluginError(-1, self.last_error())
        return answer.decode()

    def new_handle(self, name: str, *arguments: object) -> c_void_p:
        """What a function leaves in its last argument."""
        handle = c_void_p()
        self.check(name, *arguments, ctypes.byref(handle))
        return handle

    def release(self, name: str, handle: c_void_p) -> None:
        """Call `destroy` or `discard`."""
        self._functions[name](handle)
