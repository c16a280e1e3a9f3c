"""What a language model can do wrong."""

from tessella.errors import TessellaError


class LanguageModelError(TessellaError):
    """A language model that cannot be reached, or gives no usable answer."""
