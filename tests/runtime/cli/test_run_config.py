from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sparsespec.builder.errors import InputError
from sparsespec.runtime.cli.prompts import read_prompts
from sparsespec.runtime.cli.run_config import RunConfig
from sparsespec.runtime.sampling_params import SamplingParams

ONE = RunConfig(Path("engine"), input_text=("hello",))


def test_every_decoding_flag_reaches_the_sampling_params() -> None:
    config = RunConfig(
        Path("engine"),
        input_text=("a",),
        max_output_len=7,
        min_tokens=2,
        temperature=0.5,
        top_k=3,
        top_p=0.25,
        min_p=0.125,
        repetition_penalty=1.5,
        presence_penalty=-0.5,
        frequency_penalty=0.75,
        random_seed=11,
        num_return_sequences=4,
        stop=("x",),
        stop_token_ids=(5,),
        ignore_eos=True,
    )
    assert config.sampling_params() == SamplingParams(
        max_tokens=7,
        min_tokens=2,
        temperature=0.5,
        top_k=3,
        top_p=0.25,
        min_p=0.125,
        repetition_penalty=1.5,
        presence_penalty=-0.5,
        frequency_penalty=0.75,
        seed=11,
        stop=("x",),
        stop_token_ids=(5,),
        ignore_eos=True,
        n=4,
    )


def test_defaults_are_greedy_and_change_nothing() -> None:
    assert ONE.sampling_params() == SamplingParams(temperature=0.0)


def test_one_answer_streams_unless_told_otherwise() -> None:
    assert ONE.streams
    assert not replace(ONE, streaming=False).streams
    assert not replace(ONE, num_return_sequences=2).streams
    assert not replace(ONE, input_text=("a", "b")).streams
    assert RunConfig(Path("engine"), input_file=Path("document")).streams


def test_questions_follow_the_document_after_a_blank_line(tmp_path: Path) -> None:
    path = tmp_path / "document.txt"
    path.write_text("first\n\nlast é\n\n", encoding="utf-8")
    config = RunConfig(Path("engine"), input_text=("who?", "why?"), input_file=path)
    assert read_prompts(config) == ("first\n\nlast é\n\nwho?", "first\n\nlast é\n\nwhy?")
    assert read_prompts(replace(config, input_text=())) == ("first\n\nlast é\n\n",)
    assert read_prompts(ONE) == ("hello",)


def test_line_ends_of_any_system_are_one(tmp_path: Path) -> None:
    path = tmp_path / "document.txt"
    path.write_bytes(b"\xef\xbb\xbfa\r\nb\rc\n")
    assert read_prompts(RunConfig(Path("engine"), input_file=path)) == ("a\nb\nc\n",)


def test_a_document_without_end_is_not_read_to_it() -> None:
    with pytest.raises(InputError, match="/dev/zero: expected at most 67108864 bytes of text, found more"):
        read_prompts(RunConfig(Path("engine"), input_file=Path("/dev/zero")))


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(InputError, match="expected UTF-8 text, found"):
        RunConfig(Path("engine"), input_text=(b"caf\xe9".decode("utf-8", "surrogateescape"),))
