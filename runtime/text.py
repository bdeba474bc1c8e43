"""Text in and out: the engine's tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from sparsespec.builder.errors import RequestError
from sparsespec.builder.tokenizer_files import any_error, load_tokenizer
from sparsespec.runtime.detokenizer import Detokenizer
from sparsespec.runtime.text_stream import TextStream
from sparsespec.runtime.token_pieces import TokenPieces


@dataclass(frozen=True)
class ChatMessage:
    """One turn of a chat; which roles there are is up to the model's template."""

    role: str
    content: str


ChatInput = str | Sequence[ChatMessage]  # a text is one message of a user


def list_messages(chat: ChatInput) -> list[ChatMessage]:
    """The chat as messages."""
    return [ChatMessage("user", chat)] if isinstance(chat, str) else list(chat)


class TextCodec:
    """The tokenizer of an engine directory."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        self._pieces = TokenPieces(self._backend)
        self.longest_token = max(map(len, tokenizer.get_vocab()), default=1)  # characters; no token covers more text

    @staticmethod
    def load(engine_dir: Path) -> TextCodec:
        """Raises EngineError where the directory holds no usable tokenizer."""
        return TextCodec(load_tokenizer(engine_dir))

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; special tokens in it count as such. Raises RequestError for what is not Unicode text."""
        with any_error(lambda reason: RequestError(f"the tokenizer cannot encode {text!r:.60}: {reason}")):
            return list(self._tokenizer.encode(text))

    def encode_chat(self, chat: ChatInput) -> list[int]:
        """Token ids of a chat in the model's chat template, ready for the answer. Raises as `encode` does."""
        if self._tokenizer.chat_template is None:
            raise RequestError("the engine has no chat template; pass the prompt without one (--no-chat_template)")
        messages = [asdict(message) for message in list_messages(chat)]
        # A template is a program, which raises what it likes.
        with any_error(lambda reason: RequestError(f"cannot put {messages!r:.80} into the chat template: {reason}")):
            text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            return list(self._tokenizer.encode(text, add_special_tokens=False))

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids, without special tokens."""
        return self._backend.decode(token_ids, skip_special_tokens=True)

    def token_text(self, token_id: int) -> str:
        """A token by itself, for people to read: U+FFFD for bytes that are no character, a special token's name."""
        return self._pieces.text(token_id)

    def token_bytes(self, token_id: int) -> bytes:
        """What a token adds to a text, UTF-8; perhaps a part of a character. Nothing for a special token."""
        return self._pieces.utf8(token_id)

    def stream(self, stop: tuple[str, ...]) -> TextStream:
        """The text of a new answer."""
        return TextStream(Detokenizer(self.decode), stop)
