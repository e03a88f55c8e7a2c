"""Text to token ids and back."""

import json
from dataclasses import astuple, dataclass
from pathlib import Path

from tokenizers import Tokenizer as HuggingFaceTokenizer
from tokenizers import decoders, models, pre_tokenizers

from lit_spectron.errors import UserError


@dataclass(frozen=True)
class SpecialTokens:
    """Which tokens frame a text. They need not differ: padding is masked by length, never by id.

    Args:
        pad: Fills batches; never looked at.
        sos: Precedes every text.
        eos: Ends every text, and starts the speech.
    """

    pad: str = "<pad>"
    sos: str = "<sos>"
    eos: str = "<eos>"


def byte_tokenizer() -> HuggingFaceTokenizer:
    """One token a byte of UTF-8: any text, no file."""
    special = list(astuple(SpecialTokens()))
    vocabulary = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = HuggingFaceTokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    return tokenizer


class Tokenizer:
    """A Hugging Face `tokenizer.json` and its special tokens.

    Args:
        source: Path of a ``tokenizer.json``, or its content, or None for one token a byte.
        special: Names of its special tokens.
    """

    def __init__(self, source: str | None = None, special: SpecialTokens = SpecialTokens()):
        self._tokenizer = self._load(source)
        self.special = special
        self.pad_id, self.sos_id, self.eos_id = map(self._special, (special.pad, special.sos, special.eos))

    @staticmethod
    def _load(source: str | None) -> HuggingFaceTokenizer:
        if source is None:
            return byte_tokenizer()
        if source.lstrip().startswith("{"):
            return HuggingFaceTokenizer.from_str(source)
        if not Path(source).is_file():
            raise UserError(f"tokenizer: no such file: {source}")
        content = Path(source).read_text(encoding="utf-8")
        try:
            json.loads(content)
            return HuggingFaceTokenizer.from_str(content)
        except Exception as error:  # the tokenizers library raises bare Exception
            raise UserError(f"tokenizer: {source} is no Hugging Face tokenizer.json: {error}") from error

    def _special(self, token: str) -> int:
        index = self._tokenizer.token_to_id(token)
        if index is None:
            raise UserError(f"tokenizer: has no {token} token")
        return index

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``, with no special token added."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        """Text of ``ids``, special tokens left out."""
        return self._tokenizer.decode(ids, skip_special_tokens=True).strip()

    def to_json(self) -> str:
        """The content of its ``tokenizer.json``."""
        return self._tokenizer.to_str()
