"""Byte-level BPE tokenizers (`tokenizer.ggml.model` gpt2), built as their authors publish them in tokenizer.json.

transformers' own conversion of GGUF files drops some of the splits, so that its ids differ from the original's.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from sparsespec.builder.checkpoint.gguf_reader import GgufMetadata
from sparsespec.builder.errors import CheckpointError

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_SYMBOLS}|{_SPACES}"
_QWEN2 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_SYMBOLS}|{_SPACES}"


@dataclass(frozen=True)
class _PreTokenizer:
    """What a name under `tokenizer.ggml.pre` stands for."""

    splits: tuple[pre_tokenizers.PreTokenizer, ...]
    nfc: bool = False
    ignore_merges: bool = False  # a word that is a token is not merged from its bytes
    add_bos: bool = False  # where the file does not say


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(pattern), behavior="isolated")


# To stand last: what a pattern takes for digits is among the characters that it puts for bytes.
_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
_QWEN2_LIKE = _PreTokenizer((_split(_QWEN2), _BYTES), nfc=True)

_PRE_TOKENIZERS = {
    # Of unknown origin: llama.cpp's guess, which splits as much as any.
    "default": _PreTokenizer(
        (_split(r"[\p{P}\$\+<=>\^~\|]+"), _split(_GPT2), _split(r"\p{N}+"), _split("[0-9][0-9][0-9]"), _BYTES),
    ),
    "gpt-2": _PreTokenizer((_split(_GPT2), _BYTES)),
    "smollm": _PreTokenizer((pre_tokenizers.Digits(individual_digits=True), _split(_GPT2), _BYTES)),
    "llama-bpe": _PreTokenizer((_split(_LLAMA3), _BYTES), ignore_merges=True, add_bos=True),
    "qwen2": _QWEN2_LIKE,
    "deepseek-r1-qwen": _QWEN2_LIKE,
}


def build_bpe(file: GgufMetadata, tokens: list[str]) -> Tokenizer:
    """Without added tokens. Raises CheckpointError for another kind, or tokens and merges that do not fit together."""
    kind = _kind(file)
    tokenizer = Tokenizer(_model(file, tokens, kind.ignore_merges))
    if kind.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(kind.splits))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def adds_bos(file: GgufMetadata) -> bool:
    """Whether prompts begin with the BOS token."""
    return file.get("tokenizer.ggml.add_bos_token", _kind(file).add_bos)


def _kind(file: GgufMetadata) -> _PreTokenizer:
    if file.get("tokenizer.ggml.add_space_prefix", False):
        raise CheckpointError(f"{file.path}: tokenizer.ggml.add_space_prefix: only False is supported, found True")
    name = file.get("tokenizer.ggml.pre", "default")
    if name not in _PRE_TOKENIZERS:
        expected = ", ".join(_PRE_TOKENIZERS)
        raise CheckpointError(f"{file.path}: tokenizer.ggml.pre: expected one of {expected}, found {name!r:.200}")
    return _PRE_TOKENIZERS[name]


def _model(file: GgufMetadata, tokens: list[str], ignore_merges: bool) -> models.BPE:
    merges = []
    for merge in file.strings("tokenizer.ggml.merges"):
        left, space, right = merge.partition(" ")
        if not space:
            raise CheckpointError(f"{file.path}: tokenizer.ggml.merges: expected two tokens, found {merge!r:.60}")
        merges.append((left, right))
    try:
        return models.BPE(
            vocab={token: i for i, token in enumerate(tokens)}, merges=merges, ignore_merges=ignore_merges
        )
    except Exception as error:  # tokenizers raises a bare Exception for a merge of unknown tokens
        raise CheckpointError(
            f"{file.path}: tokenizer.ggml.merges: expected merges of known tokens: {error!s:.200}"
        ) from error
