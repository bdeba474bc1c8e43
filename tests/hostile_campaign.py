"""How many inputs each target gets, and what must come of every one: a result, or an error that says what is wrong."""

from __future__ import annotations

import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import TypeVar

from sparsespec.builder.errors import InputError

ResultT = TypeVar("ResultT")

PLANNED = {
    "gguf bytes": 1500,
    "gguf parts": 2500,
    "gguf metadata": 2500,
    "gguf sentencepiece": 500,
    "safetensors of Hugging Face": 2000,
    "safetensors of a shard": 1000,
    "safetensors of a rank": 1000,
    "safetensors of an engine": 2000,
    "safetensors of ModelOpt": 2000,
    "safetensors of an FP8 engine": 2000,
    "scales of ModelOpt": 1000,
    "config.json of Hugging Face": 3500,
    "config.json of TensorRT-LLM": 2000,
    "config.json of ModelOpt": 2000,
    "hf_quant_config.json": 1000,
    "generation_config.json": 500,
    "model.safetensors.index.json": 1000,
    "tokenizer files": 700,
    "config.json of an engine": 3000,
    "tensorrt section of an engine": 1000,
    "config.json of a TensorRT engine": 1000,
    "tokenizer of an engine": 600,
    "files of an engine": 300,
    "files of a TensorRT engine": 300,
    "files of a checkpoint": 300,
    "sampling parameters": 4000,
    "prompts": 2000,
    "requests beside a running one": 150,
    "bodies of /completions": 2000,
    "bodies of /chat/completions": 2000,
    "tensors of Triton": 2000,
    "parameters of Triton": 1000,
    "flags of build_engine": 400,
    "flags of build_engine with TensorRT": 400,
    "flags of run": 400,
    "input files of run": 200,
}
LONGEST_MESSAGE = 600  # characters, beside paths
LONGEST_SECONDS = 20  # far beyond what any input takes: it tells a hang from work


class Hang(BaseException):
    """Not an Exception, so that nothing on the way takes it for an error of its own."""


def campaign(target: str, attempt: Callable[[Random], object]) -> None:
    """Try as many inputs as planned. A failure names the target and the number, from which the input is made again."""
    for number in range(PLANNED[target]):
        with _blaming(f"{target}: input {number}"), _watched():
            attempt(seeded(target, number))


def seeded(target: str, number: int) -> Random:
    """The generator of one input."""
    return Random(f"{target} {number}")


def result_or_error(call: Callable[[], ResultT], where: str = "") -> ResultT | InputError:
    """What `call` gives, or the error that it is meant to raise, checked to be readable; `where` is a long path."""
    try:
        return call()
    except InputError as error:
        message = str(error)
        shortened = message.replace(where, "") if where else message
        # Not `assert`: `python -O` would leave it out here.
        if not 0 < len(shortened) <= LONGEST_MESSAGE:
            raise AssertionError(f"a message of {len(shortened)} characters: {shortened[:200]}") from error
        return error


@contextmanager
def _blaming(place: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic of a library in Rust is no Exception
        trace = "".join(traceback.format_exception(error))
        raise AssertionError(f"{place}: {type(error).__name__}: {error!s:.300}\n{trace[-3000:]}") from None


@contextmanager
def _watched() -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, _give_up)
    signal.alarm(LONGEST_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _give_up(*_: object) -> None:
    raise Hang(f"still busy after {LONGEST_SECONDS} s")
