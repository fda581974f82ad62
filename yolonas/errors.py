"""The exceptions that users may want to catch by name. Everything else is a plain ValueError or TypeError."""

from __future__ import annotations

from collections.abc import Sequence


class CheckpointError(RuntimeError):
    """A weights file that cannot be used: the text names the file, the key where there is one, and the cure."""


class WeightsNotFoundError(CheckpointError, FileNotFoundError):
    """No file for the given model name, here or at any mirror; the text says which file to put where."""


class SourceError(ValueError):
    """A picture, video or stream that cannot be opened or read; the text names it and the reason."""


class QuantizationError(RuntimeError):
    """A quantisation that cannot be as accurate as was asked for; the text has the table of what was tried."""


class ExportError(RuntimeError):
    """A file that was written for another runtime and does not give what the network gives; it is not kept."""


class TrainingError(RuntimeError):
    """A loss or gradients that are NaN or infinite: going on would ruin the weights.

    Attributes: `pictures`, the names of the pictures that they come from, as far as that is known.
    """

    def __init__(self, message: str, pictures: Sequence[str]):
        super().__init__(message)
        self.pictures = tuple(pictures)


class UnprovenError(RuntimeError):
    """Kernels that compute something else on a GPU than on the CPU; the text says by how much, and the cure."""


def missing_package(what: str, package: str, extra: str | None) -> ImportError:
    """The error for an optional package that is not installed, with the command that installs it."""
    wanted = package if extra is None else f"'yolonas[{extra}]'"
    return ImportError(f"{what} need{'s' * (not what.endswith('s'))} the package {package}: pip install {wanted}")
