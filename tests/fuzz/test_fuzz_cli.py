"""Any flags: both tools end with an exit code that they document, and say why in one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from io import TextIOWrapper
from pathlib import Path
from random import Random

import pytest
import torch

from fake_builder import BuilderFaults
from hostile_campaign import campaign
from hostile_checkpoints import small_model
from hostile_engines import MODEL, install_tensorrt, write_tensorrt_engine
from hostile_mutations import ODD_FLOATS, ODD_INTEGERS, ODD_TEXTS, damaged_bytes
from sparsespec.builder import build_engine
from sparsespec.builder.build_config import BuildConfig
from sparsespec.runtime import run
from tiny_modelopt import write_tiny_modelopt
from tiny_models import tiny_hf_model, write_tiny_engine, write_tiny_hf_checkpoint

# What a build with TensorRT takes, and beyond.
TENSORRT_FLAGS: Mapping[str, tuple[str, ...]] = {
    "--backend": ("auto", "tensorrt", "torch"),
    "--gpu_memory_gb": ("1", "1e-300", "0.001", "1e6", "1e7"),
    "--dtype": ("auto", "bfloat16", "float16", "float32"),
    "--kv_cache_dtype": ("auto", "fp8"),
    "--max_batch_size": ("1", "100", "4096", "10000"),
    "--page_size": ("8", "16", "32", "64"),
    "--score_planes": ("none", "mean", "diagonal", "rows"),
    "--score_normalizer": ("draft", "exact"),
    "--aliased_io": (),
    "--no-aliased_io": (),
    "--opt_batch_size": ("1", "5", "2147483647"),
    "--builder_opt": ("0", "5", "6"),
    "--profiling_verbosity": ("layer_names_only", "detailed", "none"),
    "--timing_cache": ("cache", "folder", "pipe", "/dev/zero", "none/cache", "hf/config.json/cache"),
    "--plugin_library": ("libsparsespec_plugins.so", "folder", "none", "hf/config.json"),
}
BUILD_FLAGS = (
    *TENSORRT_FLAGS,
    "--tp_size",
    "--max_seq_len",
    "--max_num_tokens",
    "--max_draft_len",
    "--max_budget",
    "--force",
    "--no-force",
    "--json",
    "--nonsense",
)
RUN_FLAGS = (
    "--input_file",
    "--max_output_len",
    "--min_tokens",
    "--temperature",
    "--top_k",
    "--top_p",
    "--random_seed",
    "--num_return_sequences",
    "--stop",
    "--stop_token_ids",
    "--ignore_eos",
    "--no-chat_template",
    "--streaming",
    "--no-streaming",
    "--compare_plain",
    "--json",
    "--profile",
    "--profile_after",
    "--profile_steps",
    "--nvtx",
    "--drafter",
    "--k",
    "--ratio",
    "--min_budget",
    "--recent_share",
    "--moving_share",
    "--max_lookups",
    "--ranking",
    "--decay",
    "--moving_from",
    "--score_normalizer",
    "--num_sinks",
    "--max_ngram",
    "--min_ngram",
    "--min_p",
    "--repetition_penalty",
    "--presence_penalty",
    "--frequency_penalty",
    "--device",
    "--backend",
    "--plugin_library",
    "--attention",
    "--max_batch_size",
    "--max_tokens_in_paged_kv_cache",
    "--kv_cache_host_memory_bytes",
    "--chunk_size",
    "--policy",
    "--result_lag",
    "--nonsense",
)
WORDS = (
    "bfloat16",
    "float64",
    "pillar",
    "window",
    "ngram",
    "oracle",
    "average",
    "last",
    "none",
    "torch",
    "tensorrt",
    "plugins",
    "reference",
    "mean",
    "rows",
    "diagonal",
    "exact",
    "detailed",
    "unified",
    "lockstep",
    "cpu",
    "cuda",
    "cuda:7",
    "meta",
)
SWITCHES = (
    "--aliased_io",
    "--no-aliased_io",
    "--force",
    "--no-force",
    "--ignore_eos",
    "--no-chat_template",
    "--streaming",
    "--no-streaming",
    "--compare_plain",
    "--nvtx",
)
# A command line has no NUL, and of surrogates only those that stand for bytes.
TEXTS = tuple(text.replace("\ud800", "\udcff") for text in ODD_TEXTS if "\0" not in text)
BUILD = BuildConfig(dtype="float32", max_batch_size=2, max_seq_len=64, max_draft_len=4, max_budget=192)


def test_build_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a flag's value may be a path to write
    checkpoint = write_tiny_hf_checkpoint(tmp_path / "hf", tiny_hf_model(small_model()))

    def attempt(random: Random) -> None:
        places = [str(checkpoint), str(tmp_path / "engine"), str(tmp_path / "none"), "/dev/null", "", "a/../b"]
        usual = random.random() < 0.8
        source, output = (places[0], places[1]) if usual else random.choices(places, k=2)
        flags = ["--force", *_flags(BUILD_FLAGS, tmp_path, random)]
        code = _exit_code(build_engine.main, ["--checkpoint_dir", source, "--output_dir", output, *flags])
        _check_end(code, (0, 2), capsys)

    campaign("flags of build_engine", attempt)


def test_build_engine_with_tensorrt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With TensorRT, as far as anybody can see: its own flags, more often than not."""
    monkeypatch.chdir(tmp_path)  # a flag's value may be a path to write
    checkpoint = write_tiny_modelopt(tmp_path / "hf", tiny_hf_model(MODEL).to(torch.bfloat16))
    trt = install_tensorrt(tmp_path, monkeypatch)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")

    def attempt(random: Random) -> None:
        (tmp_path / "cache").write_bytes(random.randbytes(random.choice((0, 1, 1000))))
        flags = _flags(BUILD_FLAGS, tmp_path, random) if random.random() < 0.3 else []
        for name in random.sample(list(TENSORRT_FLAGS), random.choice((0, 1, 2, 3))):
            flags += [name, random.choice(TENSORRT_FLAGS[name])] if name not in SWITCHES else [name]
        trt.builder_faults = BuilderFaults(*(random.random() < 0.05 for _ in fields(BuilderFaults)))
        common = ["--checkpoint_dir", str(checkpoint), "--output_dir", str(tmp_path / "engine"), "--force"]
        code = _exit_code(build_engine.main, [*common, "--backend", random.choice(("tensorrt", "auto")), *flags])
        _check_end(code, (0, 2), capsys)

    campaign("flags of build_engine with TensorRT", attempt)


def test_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With TensorRT, as far as anybody can see; one of the engines has TensorRT's."""
    monkeypatch.chdir(tmp_path)  # a flag's value may be a path to write
    trt = install_tensorrt(tmp_path, monkeypatch)
    engines = [
        write_tiny_engine(tmp_path / "engine", small_model(vocab_size=128), BUILD, seed=0),
        write_tensorrt_engine(tmp_path / "tensorrt"),
    ]

    def attempt(random: Random) -> None:
        text = ["--input_text", random.choice(("the cat", "the cat", *ODD_TEXTS))] if random.random() < 0.9 else []
        usual = ["--engine_dir", str(random.choice(engines)), "--max_output_len", "4", "--k", "3", *text]
        _check_end(_exit_code(run.main, [*usual, *_flags(RUN_FLAGS, tmp_path, random)]), (0, 1, 2), capsys)

    campaign("flags of run", attempt)
    assert trt.runs


def test_input_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = write_tiny_engine(tmp_path / "engine", small_model(vocab_size=128), BUILD, seed=0)
    document = tmp_path / "document.txt"

    def attempt(random: Random) -> None:
        contents = (
            random.randbytes(random.choice((0, 1, 100, 10_000))),
            b"the cat\0" * random.choice((1, 5)),
            b"x" * 10 ** random.choice((1, 3, 6)),
            b"\n" * 1000,
            b"\xef\xbb\xbfthe dog",
            "é€😀".encode("utf-16"),
            damaged_bytes("the cat sat é€😀\r\n".encode(), random),
        )
        document.write_bytes(random.choice(contents))
        text = ["--input_text", "why?"] if random.random() < 0.5 else []
        flags = ["--engine_dir", str(engine), "--input_file", str(document), "--max_output_len", "2", "--k", "3", *text]
        _check_end(_exit_code(run.main, flags), (0, 2), capsys)

    campaign("input files of run", attempt)


def _flags(names: Sequence[str], folder: Path, random: Random) -> list[str]:
    flags = []
    for name in random.sample(names, random.choice((0, 1, 1, 2, 3))):
        flags.append(name)
        if name not in SWITCHES or random.random() < 0.05:
            flags.append(_value(folder, random))
    return flags


def _value(folder: Path, random: Random) -> str:
    numbers = (
        str(random.randint(-2, 70)),
        str(random.choice(ODD_INTEGERS)),
        str(random.choice(ODD_FLOATS)),
        "9" * 5000,
    )
    words = (random.choice(WORDS), random.choice(TEXTS), str(folder / "x"))
    return random.choice((*numbers, numbers[0], *words, words[0]))


def _exit_code(main: object, arguments: list[str]) -> object:
    assert callable(main)
    assert isinstance(sys.stderr, TextIOWrapper)
    sys.stderr.reconfigure(errors="backslashreplace")  # as Python does, unlike pytest
    try:
        return main(arguments)
    except SystemExit as error:  # how argparse ends
        return error.code


def _check_end(code: object, expected: tuple[int, ...], capsys: pytest.CaptureFixture[str]) -> None:
    captured = capsys.readouterr()
    assert code in expected, captured.err[-500:]
    assert "Traceback" not in captured.err
    if code == 2:
        assert "error: " in captured.err, captured.err[-500:]
