"""Hostile tensors and parameters of the Triton model are read, or refused by an error that says what is wrong."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random

import numpy as np

from fake_triton import FakeTensor, model_args
from hostile_campaign import campaign, result_or_error
from hostile_mutations import damaged_bytes, damaged_json
from serving_study.triton_process import MODEL, REPOSITORY
from sparsespec.runtime.serving.triton.model_config import read_model_config
from sparsespec.runtime.serving.triton.python_backend import Array
from sparsespec.runtime.serving.triton.request_reader import Envelope, read_request
from sparsespec.runtime.serving.triton.tensors import Inputs

CONFIG = (REPOSITORY / MODEL / "config.pbtxt").read_text()
DATA_TYPES = dict(re.findall(r'name: "(\w+)", data_type: TYPE_(\w+), dims: \[ -?\d \], optional', CONFIG))
NUMBERS = {
    "INT32": (np.int32, (-(2**31), -1, 0, 1, 2, 7, 2**31 - 1)),
    "UINT64": (np.uint64, (0, 1, 2**63 - 1, 2**63, 2**64 - 1)),
    "FP32": (np.float32, (float("nan"), float("inf"), -1.0, 0.0, 1e-30, 0.5, 1.0, 3e38)),
    "BOOL": (np.bool_, (False, True)),
}
CHAT = [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "so"}]
PARAMETERS = {"engine_dir": "e", "k": "4", "ratio": "0.1", "adaptive": "true", "policy": "auto", "max_requests": "9"}
TEXTS = ("", "x", "-1", "0", "nan", "1e400", "9" * 5000, "true", "auto", "\x00", "é,1")


def tensor(name: str, random: Random) -> Array:
    """As Triton lets them through: the declared type, any number of elements."""
    count = random.choice((0, 1, 1, 1, 1, 2, 5))
    if DATA_TYPES[name] == "STRING":
        texts = [damaged_json(CHAT, random, ["role"]), b"", b"plain", damaged_bytes(b"plain text", random)]
        array = np.empty((1, count), dtype=np.object_)
        array[0, :] = [random.choice(texts) for _ in range(count)]
        return array
    dtype, values = NUMBERS[DATA_TYPES[name]]
    return np.array([[random.choice(values) for _ in range(count)]], dtype=dtype).reshape(1, count)


def test_tensors() -> None:
    def attempt(random: Random) -> None:
        prompts = random.choice((["text_input"], ["messages"], ["input_ids"], []))
        others = random.sample(list(DATA_TYPES), random.randint(0, 4))
        inputs = Inputs([FakeTensor(name, tensor(name, random)) for name in [*prompts, *others]])
        result_or_error(
            lambda: read_request(inputs, Envelope("r", None, exclude_input_in_output=random.random() < 0.5))
        )

    campaign("tensors of Triton", attempt)


def test_parameters() -> None:
    def attempt(random: Random) -> None:
        changed = {random.choice(list(PARAMETERS)): random.choice(TEXTS) for _ in range(random.randint(1, 3))}
        if random.random() < 0.1:
            changed[random.choice(TEXTS)] = "1"
        args = model_args(Path("/models"), PARAMETERS | changed)
        result_or_error(lambda: read_model_config(args))

    campaign("parameters of Triton", attempt)
