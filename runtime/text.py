"""Text in and out: the engine's tokenizer, and the text of one answer as its tokens come in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerFast

from sparsespec.builder.errors import RequestError
from sparsespec.builder.tokenizer_files import any_error, load_tokenizer


class TextCodec:
    """The tokenizer of an engine directory."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
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
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def stream(self, stop: tuple[str, ...]) -> TextStream:
        """The text of a new answer."""
        return TextStream(self, stop)

    def next_text(self, stream: DecodeStream, token_id: int) -> str:
        """The text that a token completes; empty while a character is incomplete."""
        return stream.step(self._tokenizer.backend_tokenizer, token_id) or ""


class TextStream:
    """One answer's text: grows token by token, ends before the first stop text.

    Text that may turn out to begin a stop text is held back until that is decided.
    """

    def __init__(self, codec: TextCodec, stop: tuple[str, ...]) -> None:
        self.text = ""  # released
        self._held = ""
        self._codec = codec
        self._stop = stop
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._token_ids: list[int] = []

    def push(self, token_id: int, may_stop: bool) -> str | None:
        """Add a token; returns the stop text that it completes, if it does and may."""
        self._token_ids.append(token_id)
        self._held += self._codec.next_text(self._decoder, token_id)
        found = [(self._held.find(stop), stop) for stop in self._stop if stop in self._held]
        if found and may_stop:
            end, stop = min(found)
            self._release(end)
            self._held = ""
            return stop
        self._release(len(self._held) - self._undecided())
        return None

    def flush(self) -> None:
        """No more tokens: release what is held, including bytes that never became a character."""
        self._release(len(self._held))
        whole = self._codec.decode(self._token_ids)
        if whole.startswith(self.text):
            self.text = whole

    def _release(self, length: int) -> None:
        self.text += self._held[:length]
        self._held = self._held[length:]

    def _undecided(self) -> int:
        """Length of the longest end of the held text that begins a stop text."""
        longest = max((len(stop) for stop in self._stop), default=1) - 1
        lengths = range(min(longest, len(self._held)), 0, -1)
        ends = [length for length in lengths if any(stop.startswith(self._held[-length:]) for stop in self._stop)]
        return ends[0] if ends else 0
