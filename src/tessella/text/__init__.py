"""Text: captions and prompts become what the transformer reads (`base.py`).

Tokens of the run's own vocabulary (`bpe.py`), or features of an encoder that others have trained
(`frozen.py`); `kinds.py` tells the two apart.

On the data's way: after the data, before the transformer.
"""

from tessella.text.base import TEXT_FILE, TextEncoder
from tessella.text.bpe import TextSettings, TextTokenizer
from tessella.text.frozen import FrozenTextEncoder
from tessella.text.loading import create_text_encoder, load_text

__all__ = [
    "TEXT_FILE",
    "FrozenTextEncoder",
    "TextEncoder",
    "TextSettings",
    "TextTokenizer",
    "create_text_encoder",
    "load_text",
]
