"""Extracted features and the labels that their inputs have, by their folders or by a CSV file."""

from __future__ import annotations

import csv
import logging
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hiera_video.data.lists.tables import wrong
from hiera_video.errors import RequestError
from hiera_video.tasks.features.feature_table import read_facts, read_vectors

log = logging.getLogger("hiera_video")

#: What two extractions must have in common for one to test the other.
SETTINGS = ("weights", "window", "hop", "crop", "clip")


@dataclass(frozen=True, eq=False)
class Labelled:
    """Inputs of an extraction that have a label: names, their vectors float32 [N, C], each the mean of its own rows
    in ``windows``, and their labels, [N].
    """

    folder: Path
    inputs: list[str]
    vectors: NDArray[np.float32]
    windows: list[NDArray[np.float32]]
    labels: list[str]
    num_unlabelled: int


def labelled(folder: Path, given: str | dict[str, str], features: str | None = None) -> Labelled:
    """One vector for each input that has a label: the mean over its windows and crops.

    Args:
        folder: Of an extraction.
        given: "folder", or what :func:`read_labels` gives.
        features: embedding or statistics; None: embedding, or what there is.

    Returns:
        Inputs, vectors and labels.

    Raises:
        RequestError: Where no input has a label, a vector is not finite, or there are no such features.
    """
    if features is None:
        features = "statistics" if "embedding" not in read_facts(folder)["features"] else "embedding"
    table, rows = read_vectors(folder, features)
    coded = table["input"].combine_chunks().dictionary_encode()
    names: list[str] = coded.dictionary.to_pylist()
    # The rows of an input lie one after the other.
    firsts = np.unique(coded.indices.to_numpy(), return_index=True)[1]
    counts = np.diff([*firsts, len(rows)])[:, np.newaxis]
    means = (np.add.reduceat(rows, firsts, axis=0) / counts).astype(np.float32)
    if not np.isfinite(means).all():
        bad = names[int(np.argmin(np.isfinite(means).all(axis=1)))]
        raise RequestError(f"{folder} has no finite {features} of {bad}: extract again with dtype float32")
    labels = labels_of(names, given)
    keep = [number for number, label in enumerate(labels) if label]
    if not keep:
        where = "lies in a folder" if given == "folder" else "is in the file of labels"
        raise RequestError(
            f"no input of {folder} {where}, such as {names[0]}: name a CSV file with columns input,label"
        )
    if len(keep) < len(names):
        log.warning("%d of %d inputs of %s have no label and are left out", len(names) - len(keep), len(names), folder)
    inputs, of_inputs = [names[number] for number in keep], [labels[number] for number in keep]
    windows = [rows[firsts[number] : firsts[number] + counts[number, 0]] for number in keep]
    return Labelled(folder, inputs, means[keep], windows, of_inputs, len(names) - len(keep))


def labels_of(names: list[str], given: str | dict[str, str]) -> list[str]:
    """The label of each input.

    Args:
        names: Of the inputs.
        given: "folder", or what :func:`read_labels` gives: by an input's full name, or by the name of its file where
            that is unique.

    Returns:
        The labels, empty where there is none.
    """
    if isinstance(given, str):
        folders = [os.path.basename(os.path.dirname(os.path.normpath(name))) for name in names]
        return ["" if folder == ".." else folder for folder in folders]
    of_file = {os.path.basename(name): label for name, label in given.items()}
    times = Counter(os.path.basename(name) for name in given)
    times_here = Counter(os.path.basename(name) for name in names)
    unique = {file: label for file, label in of_file.items() if times[file] == 1 == times_here[file]}
    return [given[name] if name in given else unique.get(os.path.basename(name), "") for name in names]


def read_labels(file: Path, column: str = "label") -> dict[str, str]:
    """Labels, or groups, from a CSV file.

    Args:
        file: With the columns input and ``column``.
        column: The name of the second one.

    Returns:
        Label by input.

    Raises:
        RequestError: For any other file, and an input with two labels.
    """
    labels: dict[str, str] = {}
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            columns = reader.fieldnames or []
            if not {"input", column} <= set(columns):
                raise wrong(file, 1, ",".join(columns), f"the columns input,{column}")
            for row in reader:
                name, label = row["input"], (row[column] or "").strip()
                if labels.setdefault(name, label) != label:
                    raise wrong(file, reader.line_num, label, f"{labels[name]!r}, which {name} is in a line above")
    except OSError as error:
        reason = error.strerror or error
        what = "must be folder, or a CSV file" if column == "label" else "must be a CSV file"
        raise RequestError(f"{column}s are {str(file)!r}, but {what}: {reason}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise RequestError(f"{file} is no CSV file in UTF-8 ({error}): name another file of {column}s") from error
    return labels


def refuse_other_settings(folder: Path, test: Path) -> None:
    """Refuses two extractions that cannot be compared.

    Args:
        folder: One of them.
        test: The other.

    Raises:
        RequestError: Where they were made with another model or setting, which is named.
    """
    here, there = read_facts(folder), read_facts(test)
    name = next((name for name in SETTINGS if here[name] != there[name]), None)
    if name == "weights" and here["model"] != there["model"]:  # the same weights may go by two names
        name = "model"
    if name == "clip":
        name = next(name for name in here["clip"] if here["clip"][name] != there["clip"][name])
        here, there = here["clip"], there["clip"]
    if name is not None:
        both = f"{name} {there[name]}, but {folder} with {here[name]}"
        raise RequestError(f"{test} was made with {both}: extract them with the same model and settings")
