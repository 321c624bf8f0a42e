"""Errors whose message says what was expected, what was found, where, and what to do."""

from __future__ import annotations


def one_line(error: object) -> str:
    """The words of another library's error on one line, cut short."""
    return " ".join(str(error).split())[:200]


class MindVideoError(Exception):
    """Any error a user can cause; the command line prints it and exits with 1."""


class SettingError(MindVideoError):
    """A recipe or a command-line setting is misspelt, ill-typed or contradictory."""


class DataError(MindVideoError):
    """A recording, a stimulus, a caption file or a prepared store is not what it should be."""


class ModelError(MindVideoError):
    """A model folder is incomplete, of another width, or was made for other voxels."""


class TrainingError(MindVideoError):
    """Training cannot go on, for example because a loss is not finite."""
