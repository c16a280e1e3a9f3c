"""How a model looks pictures up."""

from typing import Annotated, Literal

from pydantic import Field

from tessella.config import Settings
from tessella.generation import MAX_NEIGHBORS


class RetrievalSettings(Settings):
    """Pictures that are looked up by their captions, and shown to the transformer as codes."""

    neighbors: Annotated[int, Field(ge=0, le=MAX_NEIGHBORS)] | Literal["auto"] = "auto"
    """Examples beside each prompt (k); 0 is none. `auto` takes 3 where captions have rare words and
    held-out pictures are nearer to the pictures that their captions find than to others, and where
    the training is long enough to learn to use them (10 minutes, or 20,000 images)."""
    candidates: int = Field(4, ge=1, le=16)
    """In training each example is drawn from this many of the best."""
    dropout: float = Field(0.05, ge=0.0, le=1.0)
    """Fraction of pictures that are learned without examples, so that the model paints without."""
    caption_dropout: float = Field(0.1, ge=0.0, le=1.0)
    """Fraction of examples that are learned without their captions, as your own references come."""
