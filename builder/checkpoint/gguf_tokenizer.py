"""The tokenizer that a GGUF file describes, built from its parts."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from sparsespec.builder.checkpoint.gguf_bpe import adds_bos, build_bpe
from sparsespec.builder.checkpoint.gguf_reader import GgufMetadata
from sparsespec.builder.checkpoint.gguf_sentencepiece import build_sentencepiece
from sparsespec.builder.errors import CheckpointError

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4


def build_tokenizer(file: GgufMetadata) -> PreTrainedTokenizerFast:
    """A tokenizer with the file's special tokens and chat template.

    Raises CheckpointError for a kind of tokenizer that is not supported, or parts that do not fit together.
    """
    tokens = file.strings("tokenizer.ggml.tokens")
    kinds = file.integers("tokenizer.ggml.token_type")
    if len(kinds) != len(tokens):
        raise CheckpointError(f"{file.path}: tokenizer.ggml.token_type: expected {len(tokens)}, found {len(kinds)}")
    tokenizer, add_bos = _bare(file, tokens, kinds)
    tokenizer.add_tokens(_added(tokens, kinds))
    bos = _token(file, tokens, "bos")
    if add_bos:
        tokenizer.post_processor = _bos_first(file, tokenizer, bos)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=_token(file, tokens, "eos"),
        bos_token=bos,
        pad_token=_token(file, tokens, "padding"),
        chat_template=file.get("tokenizer.chat_template", "") or None,
    )


def _bare(file: GgufMetadata, tokens: list[str], kinds: list[int]) -> tuple[Tokenizer, bool]:
    """The tokenizer without added tokens, and whether prompts begin with BOS."""
    if file.get("tokenizer.ggml.add_eos_token", False):
        raise CheckpointError(f"{file.path}: tokenizer.ggml.add_eos_token: only False is supported, found True")
    model = file.get("tokenizer.ggml.model", "")
    if model == "gpt2":
        return build_bpe(file, tokens), adds_bos(file)
    if model == "llama":
        return build_sentencepiece(file, tokens, kinds), file.get("tokenizer.ggml.add_bos_token", True)
    raise CheckpointError(f"{file.path}: tokenizer.ggml.model: expected one of gpt2, llama, found {model!r:.200}")


def _bos_first(file: GgufMetadata, tokenizer: Tokenizer, bos: str | None) -> processors.TemplateProcessing:
    if bos is None:
        raise CheckpointError(f"{file.path}: tokenizer.ggml.bos_token_id: expected the id of a token, found nothing")
    return processors.TemplateProcessing(single=[bos, "$A"], special_tokens=[(bos, tokenizer.token_to_id(bos))])


def _added(tokens: list[str], kinds: list[int]) -> list[AddedToken]:
    return [
        AddedToken(token, special=kind != _USER_DEFINED, normalized=False)
        for token, kind in zip(tokens, kinds, strict=True)
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
    ]


def _token(file: GgufMetadata, tokens: list[str], role: str) -> str | None:
    key = f"tokenizer.ggml.{role}_token_id"
    token = file.get(key, -1)
    if token < 0:
        return None
    if token >= len(tokens):
        raise CheckpointError(f"{file.path}: {key}: expected an id below {len(tokens)}, found {token}")
    return tokens[token]
