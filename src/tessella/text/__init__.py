"""Text: turns captions and prompts into the input of the transformer (`base.py`).

Either tokens of the run's own vocabulary (`bpe.py`), or features of a frozen, pretrained encoder
(`frozen.py`, which is imported only where one is used); `loading.py` chooses between them.

On the data's way: after the data, before the transformer.
"""

from tessella.text.base import TEXT_FILE, TextEncoder
from tessella.text.bpe import TextTokenizer
from tessella.text.loading import create_text_encoder, load_text
from tessella.text.settings import TextSettings

__all__ = [
    "TEXT_FILE",
    "TextEncoder",
    "TextSettings",
    "TextTokenizer",
    "create_text_encoder",
    "load_text",
]
