"""Text as numbers: `ByteTokenizer`, whose tokens are bytes, and `BPETokenizer`, whose tokens are learned pieces of words.

Byte-pair encoding (Sennrich et al., 2016) is the library `tokenizers`'s, in its byte-level form, so that every text can be written
and comes back as it was: pip install 'flame-jit[text]'.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any

import numpy as np

from flame.errors import MissingTargetError
from flame.functions.elementwise import PUBLIC
from flame.tensor import Tensor


class ByteTokenizer:
    """Tokens 0 to 255 are the bytes of UTF-8; special tokens follow. No training, no file, any text."""

    def __init__(self, special: Sequence[str] = ()) -> None:
        self.special = {name: 256 + i for i, name in enumerate(special)}
        self._names = {i: name for name, i in self.special.items()}

    @property
    def vocab_size(self) -> int:
        return 256 + len(self.special)

    def encode(self, text: str) -> Tensor:
        """The text's bytes, int64 [n]."""
        return PUBLIC["tensor"](np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int64))

    def decode(self, tokens: Any) -> str:
        """Text of tokens; special ones are left out, and bytes that are no text become the replacement character.

        Raises ValueError for a number that is no token.
        """
        numbers = _numbers(tokens)
        wrong = next((n for n in numbers if not 0 <= n < self.vocab_size), None)
        if wrong is not None:
            raise ValueError(f"decode(): {wrong} is no token: there are {self.vocab_size}")
        return bytes(n for n in numbers if n < 256).decode("utf-8", errors="replace")


class BPETokenizer:
    """Pieces of words, learned by `BPETokenizer.train` or read from a file that `save` (or the library) wrote."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @classmethod
    def train(cls, texts: str | Iterable[str], vocab_size: int, special: Sequence[str] = ()) -> BPETokenizer:
        """Learn at most `vocab_size` tokens: the 256 bytes, the special ones, and pieces by how often they occur.

        Raises ValueError where there is no room for the first two, MissingTargetError where the library is missing.
        """
        if vocab_size < 256 + len(special):
            raise ValueError(f"vocab_size={vocab_size}: expected at least {256 + len(special)}, for bytes and special tokens")
        library = _library()
        made = library.Tokenizer(library.models.BPE())
        made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = library.decoders.ByteLevel()
        alphabet = library.pre_tokenizers.ByteLevel.alphabet()
        trainer = library.trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
        )
        made.train_from_iterator([texts] if isinstance(texts, str) else texts, trainer)
        return cls(made)

    @classmethod
    def load(cls, path: str | os.PathLike) -> BPETokenizer:
        """Read a tokenizer.json. Raises ValueError where it is none."""
        library = _library()
        try:
            return cls(library.Tokenizer.from_file(os.fspath(path)))
        except Exception as error:  # the library raises plain Exceptions
            raise ValueError(f"{os.fspath(path)} is no tokenizer: {error}") from error

    def save(self, path: str | os.PathLike) -> None:
        """Write it as a tokenizer.json."""
        self._tokenizer.save(os.fspath(path))

    @property
    def vocab_size(self) -> int:
        return self._tokenizer.get_vocab_size()

    @property
    def special(self) -> dict[str, int]:
        return {t.content: i for i, t in self._tokenizer.get_added_tokens_decoder().items()}

    def encode(self, text: str) -> Tensor:
        """The text's tokens, int64 [n]."""
        return PUBLIC["tensor"](np.array(self._tokenizer.encode(text).ids, np.int64))

    def decode(self, tokens: Any) -> str:
        """Text of tokens, without special ones."""
        return self._tokenizer.decode(_numbers(tokens))


def _numbers(tokens: Any) -> list[int]:
    return [int(n) for n in (tokens.tolist() if isinstance(tokens, Tensor) else tokens)]


def _library() -> Any:
    try:
        return import_module("tokenizers")
    except ModuleNotFoundError as missing:
        raise MissingTargetError("byte-pair encoding is done by tokenizers: pip install 'flame-jit[text]'") from missing
