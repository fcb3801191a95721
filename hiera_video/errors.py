"""The error tree: every message is one sentence that names what is wrong, where, and the remedy.

HieraVideoError
├── RequestError (ValueError)      the request itself is wrong: an unknown option, value or device; exit code 2
│   ├── UnknownModel               a model or checkpoint name that does not exist; names the nearest ones
│   └── SizeError                  a clip size that mask units do not divide; names the nearest that they do
├── WeightsError (ValueError)      a checkpoint that is unsafe, damaged, unreachable or of another architecture
├── TrainingStopped (ValueError)   nothing more can be learned: the loss is not finite, or too many videos are bad
├── UnreadableVideo (OSError)      a video or image of which nothing can be read; exit code 1
└── OutputError (OSError)          a place that cannot be written; exit code 2
"""

from __future__ import annotations


class HieraVideoError(Exception):
    """Base of every error that this package raises on purpose."""


class RequestError(HieraVideoError, ValueError):
    """The request itself is wrong."""


class UnknownModel(RequestError):
    """No model or checkpoint has this name."""


class SizeError(RequestError):
    """A clip's frames, height or width are not multiples of what the mask units need."""


class WeightsError(HieraVideoError, ValueError):
    """A checkpoint cannot be had, cannot be trusted, or does not fit."""


class TrainingStopped(HieraVideoError, ValueError):
    """A run stopped itself; its last checkpoint is whole."""


class UnreadableVideo(HieraVideoError, OSError):
    """Nothing can be read from this file."""


class OutputError(HieraVideoError, OSError):
    """The output cannot be written."""
