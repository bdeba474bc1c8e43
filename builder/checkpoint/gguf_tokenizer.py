"""The tokenizer that a GGUF file describes, built from its parts.

transformers' own conversion drops the split into single digits, so that its ids differ from the original's on digits
after white space.
"""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sparsespec.builder.checkpoint.gguf_reader import GgufMetadata
from sparsespec.builder.errors import CheckpointError

_CONTROL, _USER_DEFINED = 3, 4


def build_tokenizer(file: GgufMetadata) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with the file's special tokens and chat template.

    Raises CheckpointError for another kind of tokenizer, or tokens and merges that do not fit together.
    """
    _refuse_unsupported(file)
    tokens = file.strings("tokenizer.ggml.tokens")
    tokenizer = Tokenizer(_model(file, tokens))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = file.integers("tokenizer.ggml.token_type")
    if len(kinds) != len(tokens):
        raise CheckpointError(f"{file.path}: tokenizer.ggml.token_type: expected {len(tokens)}, found {len(kinds)}")
    tokenizer.add_special_tokens(_added(tokens, kinds, _CONTROL))
    tokenizer.add_tokens(_added(tokens, kinds, _USER_DEFINED))
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        eos_token=_token(file, tokens, "eos"),
        bos_token=_token(file, tokens, "bos"),
        pad_token=_token(file, tokens, "padding"),
        chat_template=file.get("tokenizer.chat_template", "") or None,
    )


def _refuse_unsupported(file: GgufMetadata) -> None:
    expectations: tuple[tuple[str, object, object], ...] = (
        ("tokenizer.ggml.model", file.get("tokenizer.ggml.model", ""), "gpt2"),
        ("tokenizer.ggml.pre", file.get("tokenizer.ggml.pre", ""), "smollm"),
        ("tokenizer.ggml.add_bos_token", file.get("tokenizer.ggml.add_bos_token", False), False),
        ("tokenizer.ggml.add_space_prefix", file.get("tokenizer.ggml.add_space_prefix", False), False),
    )
    for key, found, expected in expectations:
        if found != expected:
            raise CheckpointError(f"{file.path}: {key}: only {expected!r} is supported, found {found!r}")


def _model(file: GgufMetadata, tokens: list[str]) -> models.BPE:
    merges = []
    for merge in file.strings("tokenizer.ggml.merges"):
        left, space, right = merge.partition(" ")
        if not space:
            raise CheckpointError(f"{file.path}: tokenizer.ggml.merges: expected two tokens, found {merge!r:.60}")
        merges.append((left, right))
    try:
        return models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges, ignore_merges=False)
    except Exception as error:  # tokenizers raises a bare Exception for a merge of unknown tokens
        raise CheckpointError(
            f"{file.path}: tokenizer.ggml.merges: expected merges of known tokens: {error}"
        ) from error


def _added(tokens: list[str], kinds: list[int], wanted: int) -> list[AddedToken]:
    special = wanted == _CONTROL
    return [
        AddedToken(token, special=special, normalized=False)
        for token, kind in zip(tokens, kinds, strict=True)
        if kind == wanted
    ]


def _token(file: GgufMetadata, tokens: list[str], role: str) -> str | None:
    key = f"tokenizer.ggml.{role}_token_id"
    token = file.get(key, -1)
    if token < 0:
        return None
    if token >= len(tokens):
        raise CheckpointError(f"{file.path}: {key}: expected an id below {len(tokens)}, found {token}")
    return tokens[token]
