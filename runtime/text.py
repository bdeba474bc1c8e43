"""Text in and out: the engine's tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from sparsespec.builder.errors import RequestError
from sparsespec.builder.tokenizer_files import any_error, load_tokenizer
from sparsespec.runtime.detokenizer import Detokenizer
from sparsespec.runtime.text_stream import TextStream


class TextCodec:
    """The tokenizer of an engine directory."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        self.longest_token = max(map(len, tokenizer.get_vocab()), default=1)  # characters; no token covers more text

    @staticmethod
    def load(engine_dir: Path) -> TextCodec:
        """Raises EngineError where the directory holds no usable tokenizer."""
        return TextCodec(load_tokenizer(engine_dir))

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; special tokens in it count as such. Raises RequestError for what is not Unicode text."""
        with any_error(lambda reason: RequestError(f"the tokenizer cannot encode {text!r:.60}: {reason}")):
            return list(self._tokenizer.encode(text))

    def encode_chat(self, message: str) -> list[int]:
        """Token ids of a user's message in the model's chat template, ready for the answer. Raises as `encode` does."""
        if self._tokenizer.chat_template is None:
            raise RequestError("the engine has no chat template; pass the prompt without one (--no-chat_template)")
        chat = [{"role": "user", "content": message}]
        # A template is a program, which raises what it likes.
        with any_error(lambda reason: RequestError(f"cannot put {message!r:.60} into the chat template: {reason}")):
            text = self._tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            return list(self._tokenizer.encode(text, add_special_tokens=False))

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids, without special tokens."""
        return self._backend.decode(token_ids, skip_special_tokens=True)

    def stream(self, stop: tuple[str, ...]) -> TextStream:
        """The text of a new answer."""
        return TextStream(Detokenizer(self.decode), stop)
