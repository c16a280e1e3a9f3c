"""Retrieval: the examples that a model looks up for a prompt, and how they are found."""

from tessella.retrieval.examples import Example, ExampleMemory
from tessella.retrieval.settings import RetrievalSettings

__all__ = ["Example", "ExampleMemory", "RetrievalSettings"]
