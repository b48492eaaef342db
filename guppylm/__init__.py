"""GuppyLM: a small fish of a language model, built from scratch."""

__version__ = "0.1.0"
