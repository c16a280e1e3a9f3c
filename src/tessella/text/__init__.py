"""Text: captions and prompts become tokens (`bpe.py`).

On the data's way: after the data, before the transformer.
"""

from tessella.text.bpe import TextSettings, TextTokenizer

__all__ = ["TextSettings", "TextTokenizer"]
