"""The errors that this package raises on purpose: each message is one sentence with what is wrong and the remedy.

HieraVideoError
├── RequestError (ValueError)
│   ├── UnknownModel
│   └── SizeError
├── WeightsError (ValueError)
├── TrainingStopped (ValueError)
├── UnreadableVideo (OSError)
└── OutputError (OSError)

Below each first line stands what to do; ``docs/reference/errors.md`` is made of it.
"""

from __future__ import annotations


class HieraVideoError(Exception):
    """Base of every error that this package raises on purpose.

    Catch it to handle all of them; anything else that reaches you is a fault of ours, and worth a report. The command
    line prints the message, without a traceback, and ends with exit code 2.
    """


class RequestError(HieraVideoError, ValueError):
    """The request itself is wrong: an option, a field, a value or a file that does not exist, or does not fit.

    The message names the option or field, the value, and what is expected, or the nearest name there is. Nothing has
    been written.
    """


class UnknownModel(RequestError):
    """No model or checkpoint has this name.

    Take one of the nearest names in the message, or one that ``hiera-video models`` lists. A file or folder of weights
    is named by its path, and must exist.
    """


class SizeError(RequestError):
    """A clip's frames, height or width are not multiples of what the mask units need.

    Take one of the nearest sizes in the message: in video models frames are even, height and width multiples of 32.
    """


class WeightsError(HieraVideoError, ValueError):
    """A checkpoint cannot be reached, is damaged, holds code, or belongs to another architecture.

    If it could not be fetched, look at the network, or put the file there by hand. A damaged file is deleted and
    fetched again. A pickle with code in it is never run: ask its authors for safetensors. If tensors do not fit, name
    the architecture that they were made with.
    """


class TrainingStopped(HieraVideoError, ValueError):
    """A run stopped itself: its loss was not finite or exploded, or too many videos could not be read.

    Its last checkpoint is whole. Lower ``optim.lr`` or set ``optim.clip_norm`` where the loss is the reason, and look
    at the videos that the message names. Where bad videos are the reason, repair or leave out the listed ones, or
    raise ``data.max_bad_share``. The same command then goes on from the last checkpoint.
    """


class UnreadableVideo(HieraVideoError, OSError):
    """Nothing can be read from this file: it is missing, empty, no video, or damaged from its beginning.

    On the command line the other inputs are answered all the same, the sentence stands in the answer's ``error``, and
    the exit code is 1. See whether the file plays elsewhere; ``ffmpeg -i FILE -c copy NEW.mp4`` repairs some indexes.
    """


class OutputError(HieraVideoError, OSError):
    """The output cannot be written: its folder is missing, it is no file, there is no permission, or the disk is full.

    Name another place, or make the folder; what was finished before is whole.
    """
