"""Imported by every room; imports none."""

__version__ = "0.1.0"
