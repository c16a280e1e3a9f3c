"""Settings of the text: how captions become what the transformer reads."""

from pydantic import Field

from tessella.config import Settings

_MIN_VOCABULARY_SIZE = 256 + 3  # every byte, and padding, begin, end


class TextSettings(Settings):
    """How captions become what the transformer reads."""

    encoder: str | None = Field(default=None, min_length=1)
    """A frozen, pretrained text encoder: a local folder with its config, safetensors and tokenizer
    files, or its name on the Hugging Face hub (`clip-vit-base-patch32`). Needs tessella[text].
    Left out, the run learns its own vocabulary from the captions."""

    vocabulary_size: int = Field(default=4096, ge=_MIN_VOCABULARY_SIZE, le=65536)
    """Maximum number of tokens in the vocabulary; few captions give fewer. Ignored with an
    `encoder`."""

    max_tokens: int = Field(default=64, ge=4, le=1024)
    """Maximum number of tokens per caption, including begin and end; an `encoder` may read
    fewer."""

    min_frequency: int = Field(default=2, ge=1)
    """How often a pair of tokens must occur in the captions to become a token of its own. Ignored
    with an `encoder`."""

    lowercase: bool = True
    """Whether capitals are read as small letters, so that `A Red Star` means `a red star`. Ignored
    with an `encoder`."""
