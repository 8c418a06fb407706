"""The register of pieces: a piece writes a few lines of a cell, or None where the names it needs do not exist.

Each belongs to a feature, which FEATURES in generate.py switches on or off."""

from dataclasses import dataclass
from typing import Callable

PIECES = []


@dataclass(frozen=True)
class Piece:
    """A writer of lines."""

    feature: str
    weight: float
    write: Callable
    raises: bool
    whole: bool  # a cell of its own: nothing may stand before it
    first: str | None  # its imports, which stand at the top


def piece(feature, weight=1.0, raises=False, whole=False, first=None):
    """Registers a function from `Names` to lines."""

    def register(write):
        PIECES.append(Piece(feature, weight, write, raises, whole, first))
        return write

    return register
