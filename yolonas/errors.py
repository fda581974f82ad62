"""The exceptions that users may want to catch by name. Everything else is a plain ValueError or TypeError."""

from __future__ import annotations


class CheckpointError(RuntimeError):
    """A weights file that cannot be used: the text names the file, the key where there is one, and the cure."""


class WeightsNotFoundError(CheckpointError, FileNotFoundError):
    """No file for the given model name, here or at any mirror; the text says which file to put where."""


class SourceError(ValueError):
    """A picture, video or stream that cannot be opened or read; the text names it and the reason."""


class QuantizationError(RuntimeError):
    """A quantisation that cannot be as accurate as was asked for; the text has the table of what was tried."""
