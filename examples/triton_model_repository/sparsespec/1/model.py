"""The model of Triton's Python backend; its code is in the package sparsespec."""

import triton_python_backend_utils

from sparsespec.runtime.serving.triton.model import TritonModel


class TritonPythonModel(TritonModel):
    """Answers prompts with an engine; config.pbtxt names it."""

    def __init__(self) -> None:
        super().__init__(triton_python_backend_utils)
