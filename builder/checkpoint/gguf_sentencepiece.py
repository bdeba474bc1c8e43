"""SentencePiece BPE tokenizers (`tokenizer.ggml.model` llama): Llama 2, Mistral and their kin."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, normalizers

from sparsespec.builder.checkpoint.gguf_reader import GgufMetadata
from sparsespec.builder.errors import CheckpointError

_SPACE = "▁"
_UNKNOWN, _BYTE = 2, 6
# A token is cut everywhere to find its merges, which takes the square of its length.
_LONGEST_TOKEN = 1000


def build_sentencepiece(file: GgufMetadata, tokens: list[str], kinds: list[int]) -> Tokenizer:
    """Without added tokens. Raises CheckpointError for options that are not supported or parts that do not fit."""
    if file.get("tokenizer.ggml.remove_extra_whitespaces", False):
        raise CheckpointError(f"{file.path}: tokenizer.ggml.remove_extra_whitespaces: only False is supported")
    scores = file.floats("tokenizer.ggml.scores")
    if len(scores) != len(tokens):
        raise CheckpointError(f"{file.path}: tokenizer.ggml.scores: expected {len(tokens)}, found {len(scores)}")
    longest = max(map(len, tokens), default=0)
    if longest > _LONGEST_TOKEN:
        expected = f"tokens of at most {_LONGEST_TOKEN} characters"
        raise CheckpointError(f"{file.path}: tokenizer.ggml.tokens: expected {expected}, found one of {longest}")
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=_merges(tokens, kinds, scores),
            unk_token=next((token for token, kind in zip(tokens, kinds, strict=True) if kind == _UNKNOWN), None),
            fuse_unk=True,
            byte_fallback=_BYTE in kinds,
        )
    )
    # At the beginning of a text and after every special token, as the original does.
    prefix = file.get("tokenizer.ggml.add_space_prefix", True)
    spaces: list[normalizers.Normalizer] = [normalizers.Prepend(_SPACE)] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*spaces, normalizers.Replace(" ", _SPACE)])
    strip: list[decoders.Decoder] = [decoders.Strip(" ", left=1)] if prefix else []
    parts = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*parts, *strip])
    return tokenizer


def _merges(tokens: list[str], kinds: list[int], scores: list[float]) -> list[tuple[str, str]]:
    """SentencePiece joins whatever two neighbours make the token of the highest score; the file keeps no merges."""
    normal = {token: score for token, kind, score in zip(tokens, kinds, scores, strict=True) if kind == 1}
    merges = [
        (score, token[:cut], token[cut:])
        for token, score in normal.items()
        for cut in range(1, len(token))
        if token[:cut] in normal and token[cut:] in normal
    ]
    return [(left, right) for _, left, right in sorted(merges, key=lambda merge: -merge[0])]
