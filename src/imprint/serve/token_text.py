"""A single token as text and as bytes: some hold a part of a character only."""

from __future__ import annotations

import json
import re
from functools import lru_cache

from imprint.render.tokens import Encoder

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "\u2581"


class TokenNames:
    """The text and the bytes of each token of a tokenizer."""

    def __init__(self, encoder: Encoder):
        self.encoder = encoder
        decoder = json.loads(encoder.backend.to_str())["decoder"] if encoder.backend is not None else None
        kinds = (
            {decoder["type"], *(part["type"] for part in decoder.get("decoders", ()))} if decoder else set()
        )
        self.letters = _byte_letters() if "ByteLevel" in kinds else None
        self.bytes_of = lru_cache(maxsize=1 << 17)(self._bytes_of)
        self.text_of = lru_cache(maxsize=1 << 17)(self._text_of)

    def _bytes_of(self, token: int) -> bytes:
        if token in self.encoder.added:
            return self.encoder.added[token].encode()
        piece = self.encoder.tokenizer.convert_ids_to_tokens(token)
        if piece is None:
            return b""
        if self.letters is not None:
            if all(letter in self.letters for letter in piece):
                return bytes(self.letters[letter] for letter in piece)
            return str(piece).encode()
        if found := _BYTE.fullmatch(piece):
            return bytes([int(found[1], 16)])
        if _SPACE in piece:
            return str(piece).replace(_SPACE, " ").encode()
        return self.encoder.decode([token]).encode()

    def _text_of(self, token: int) -> str:
        """The token's text; for a part of a character its bytes, as OpenAI writes them: `bytes:\\xe2\\x80`."""
        data = self.bytes_of(token)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _byte_letters() -> dict[str, int]:
    """The letters that stand for bytes in byte-level vocabularies (GPT-2): printable ones for themselves, others
    for those from 256 on, in order."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}
