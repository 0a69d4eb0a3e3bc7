"""hrzs: hierarchically robust zero-shot vision-language models."""

__version__ = "0.1.0"
