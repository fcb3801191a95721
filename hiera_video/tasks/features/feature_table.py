"""What an extraction writes, and reads back: shards of windows, each whole or absent, and a table of failures.

extraction.json      how the features were made
windows/*.parquet    a row for each crop of each window, with its embedding and statistics
maps/*.safetensors   tensors of the rows of the shard of the same name: "stage3.12" is row 12's (or *.npz)
failures/*.parquet   what could not be read
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hiera_video.data.windows import CROPS
from hiera_video.errors import OutputError, RequestError
from hiera_video.files import replacing
from hiera_video.tasks.features.extractor import VECTORS, WindowFeatures

FORMAT = "hiera-video features 1"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
#: The columns of each table of windows with their types, as pyarrow calls them.
COLUMNS = {"input": "string", "window": "int32", "windows": "int32", "crop": "string", "start": "double"}
COLUMNS |= {"end": "double", "box": "floats", "height": "int32", "width": "int32", "padded": "bool"}
COLUMNS |= {"error": "string", "model": "string"}
#: A shard is written when it has so many rows, bytes of features, or seconds of work.
MAX_ROWS, MAX_BYTES, MAX_SECONDS = 4096, 256 * 2**20, 30.0


def key_of(name: str) -> int:
    """A number that stands for an input: millions of them are kept in memory.

    Args:
        name: Of the input.

    Returns:
        64 bits of its hash.
    """
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big")


def open_folder(folder: Path, facts: dict[str, Any]) -> None:
    """Makes an extraction's folder, or compares the one that is there.

    Args:
        folder: The folder.
        facts: How the features are made.

    Raises:
        RequestError: Where the folder was made otherwise (the field is named), or holds something else.
        OutputError: Where it cannot be written.
    """
    path = folder / "extraction.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            if any(entry.name[0] != "." for entry in folder.iterdir()):
                raise RequestError(f"{folder} is not empty and holds no extraction: name another folder as output")
            with replacing(path) as temporary:
                temporary.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"{folder} cannot be written: {error.strerror or error}") from error
    there = read_facts(folder)
    for name, here in facts.items():
        if there.get(name) != here and name != "model":  # the same weights may go by another name
            remedy = "name another folder as output"
            if there.get("model") != facts["model"]:
                remedy += f", or go on with --model {there.get('model')}"
            raise RequestError(f"{folder} was made with {name} {there.get(name)}, not {here}: {remedy}")


def begun_in(folder: Path) -> str | None:
    """The dtype that an extraction computes in.

    Args:
        folder: Its folder, which need not be there.

    Returns:
        "float32" or another; None where nothing was begun.

    Raises:
        RequestError: The folder's facts cannot be read.
    """
    return read_facts(folder).get("precision") if (folder / "extraction.json").exists() else None


def read_facts(folder: Path) -> dict[str, Any]:
    """How an extraction was made.

    Args:
        folder: Its folder.

    Returns:
        What ``extraction.json`` holds.

    Raises:
        RequestError: Where the folder holds no extraction.
    """
    try:
        facts = json.loads((folder / "extraction.json").read_text(encoding="utf-8"))
        if facts["format"] != FORMAT:
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError):
        raise RequestError(f"{folder} holds no features: name the output folder of hiera-video extract") from None
    return dict(facts)


def read_done(folder: Path, crop: str) -> tuple[NDArray[np.uint64], dict[int, int]]:
    """Which inputs are done, and how far the others are.

    Args:
        folder: Of the extraction.
        crop: The extraction's: center, three or none.

    Returns:
        The keys of the inputs whose windows are all there, uint64 and sorted; and by the key of each other input that
        was begun, how many of its windows are there.
    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    done: list[int] = []
    begun: dict[int, tuple[int, int]] = {}
    for path in sorted((folder / "windows").glob("*.parquet")):
        table = pq.read_table(path, columns=["input", "windows"], partitioning=None)
        table = table.set_column(0, "input", pc.cast(table["input"], "string"))
        counts = table.group_by("input").aggregate([("windows", "count"), ("windows", "max")]).to_pydict()
        for name, rows, total in zip(counts["input"], counts["windows_count"], counts["windows_max"], strict=True):
            key = key_of(name)
            windows = rows // len(CROPS[crop]) + begun.pop(key, (0, 0))[0]  # type: ignore[index]
            if windows >= total:
                done.append(key)
            else:
                begun[key] = windows, total
    return np.sort(np.array(done, dtype=np.uint64)), {key: windows for key, (windows, _) in begun.items()}


class Writer:
    """Keeps rows and failures, and writes them as shards; what :meth:`flush` has written survives anything.

    Args:
        folder: Of the extraction.
        facts: How it is made.
        label: The beginning of its shards' names; no other run writes under it.
    """

    def __init__(self, folder: Path, facts: dict[str, Any], label: str) -> None:
        self._folder, self._facts, self._label = folder, facts, label
        self._files, self._dtype = facts["files"], DTYPES[facts["dtype"]]
        self._maps = [name for name in facts["features"] if name not in VECTORS]
        self._rows: list[dict[str, Any]] = []
        self._tensors: dict[str, NDArray[np.float32]] = {}
        self._bytes, self._since = 0, time.monotonic()
        self._failures: list[dict[str, Any]] = []
        self._new_failures = False
        for left in [*folder.glob(f"windows/.{label}-*"), *folder.glob(f"maps/.{label}-*")]:
            left.unlink()  # half a file of a run that was killed
        shards = [int(path.stem.rpartition("-")[2]) for path in (folder / "windows").glob(f"{label}-*.parquet")]
        self._number = max(shards, default=-1) + 1

    def add(self, features: Sequence[WindowFeatures]) -> None:
        """Rows of whole windows: a shard ends between two calls.

        Args:
            features: All crops of a window.
        """
        for feature in features:
            row = {name: value for name, value in vars(feature).items() if name in COLUMNS}
            row |= {"window": feature.number, "windows": feature.count, "box": feature.box.tolist()}
            row |= {"height": feature.picture[0], "width": feature.picture[1], "model": self._facts["model"]}
            tensors = dict(feature.maps)
            vectors = {name: vector for name in VECTORS if (vector := getattr(feature, name)) is not None}
            if self._files == "parquet":
                row |= vectors
                self._bytes += sum(vector.nbytes for vector in vectors.values())
            else:
                tensors |= vectors
            row |= {f"{name}_times": times.tolist() for name, times in feature.times.items()}
            for name, tensor in tensors.items():
                self._tensors[f"{name}.{len(self._rows)}"] = tensor
                self._bytes += tensor.nbytes
            self._rows.append(row)
        if len(self._rows) >= MAX_ROWS or self._bytes >= MAX_BYTES or time.monotonic() - self._since > MAX_SECONDS:
            self.flush()

    def fail(self, name: str, windows: int, error: str) -> None:
        """An input that could not be read, or only in part.

        Args:
            name: Of the input.
            windows: How many of its windows could be read.
            error: Why not more, one sentence.
        """
        self._failures.append({"input": name, "windows": windows, "error": error})
        self._new_failures = True

    def flush(self) -> None:
        """Writes what is waiting.

        Raises:
            OutputError: Where it cannot be written; nothing is then lost but what was waiting.
        """
        self._since = time.monotonic()
        name = f"{self._label}-{self._number:06d}"
        if self._rows:
            if self._tensors:
                file = f"maps/{name}.{self._files}"
                self._write_tensors(self._place(file))
                for number, row in enumerate(self._rows):
                    row |= {"file": file, "row": number}
            self._write_table(self._place(f"windows/{name}.parquet"))
            self._rows, self._tensors, self._bytes = [], {}, 0
            self._number += 1
        if self._new_failures:
            self._write_failures()
            self._new_failures = False

    def keep_failures(self, failures: list[dict[str, Any]]) -> None:
        """Failures of an earlier run that still hold, since their inputs are not read again.

        Args:
            failures: As :func:`read_failures` gives them.
        """
        self._failures = failures + self._failures
        self._new_failures = True

    def _place(self, name: str) -> Path:
        path = self._folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{path.parent} cannot be written: {error.strerror or error}") from error
        return path

    def _write_tensors(self, path: Path) -> None:
        from safetensors.torch import save_file

        with replacing(path) as temporary:
            if self._files == "npz":
                kind = np.float16 if self._dtype == torch.float16 else np.float32
                with temporary.open("wb") as stream:
                    np.savez(stream, **{name: tensor.astype(kind) for name, tensor in self._tensors.items()})  # type: ignore[arg-type]
            else:
                tensors = {name: torch.from_numpy(values).to(self._dtype) for name, values in self._tensors.items()}
                save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)

    def _write_table(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        types = COLUMNS | {f"{name}_times": "floats" for name in self._maps} | {"file": "string", "row": "int32"}
        table = _table(self._rows, {name: kind for name, kind in types.items() if name in self._rows[0]})
        for name in set(VECTORS) & set(self._rows[0]):
            values = np.stack([row[name] for row in self._rows])
            values = values.astype(np.float16 if self._dtype == torch.float16 else np.float32)
            offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
            vectors = pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.ravel()))
            table = table.append_column(name, vectors)
        with replacing(path) as temporary:
            pq.write_table(table, temporary)

    def _write_failures(self) -> None:
        import pyarrow.parquet as pq

        table = _table(self._failures, {"input": "string", "windows": "int64", "error": "string"})
        with replacing(self._place(f"failures/{self._label}.parquet")) as temporary:
            pq.write_table(table, temporary)


def _table(rows: list[dict[str, Any]], types: dict[str, str]) -> Any:
    """A pyarrow table of rows; "floats" are lists of numbers."""
    import pyarrow as pa

    schema = pa.schema([(name, pa.list_(pa.float64()) if kind == "floats" else kind) for name, kind in types.items()])
    return pa.Table.from_pylist(rows, schema)


def read_failures(folder: Path) -> list[dict[str, Any]]:
    """The inputs that could not be read, or only in part.

    Args:
        folder: Of the extraction.

    Returns:
        ``{"input", "windows", "error"}`` of each.
    """
    import pyarrow.parquet as pq

    files = sorted((folder / "failures").glob("*.parquet"))
    return [row for path in files for row in pq.read_table(path, partitioning=None).to_pylist()]


def read_vectors(folder: Path, name: str = "embedding") -> tuple[Any, NDArray[np.float32]]:
    """All rows of an extraction, sorted by input, window and crop.

    Args:
        folder: Of the extraction.
        name: embedding or statistics.

    Returns:
        A pyarrow table without vectors, and the vectors of that name, float32 [N, C].

    Raises:
        RequestError: Where ``folder`` holds no features, or none of that name.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    facts = read_facts(folder)
    if name not in facts["features"]:
        raise RequestError(f"{folder} holds {', '.join(facts['features'])} but no {name}: extract it as well")
    tables, arrays = [], []
    for path in sorted((folder / "windows").glob("*.parquet")):
        table = pq.read_table(path, partitioning=None)
        if name in table.column_names:
            column = table[name].combine_chunks()
            arrays.append(column.flatten().to_numpy(zero_copy_only=False).reshape(len(table), -1).astype(np.float32))
            table = table.drop_columns([vector for vector in VECTORS if vector in table.column_names])
        else:
            arrays.append(_vectors_in(folder / table["file"][0].as_py(), name, len(table)))
        tables.append(table)
    if not tables:
        raise RequestError(f"{folder} holds no window: every input failed, or the extraction has not begun")
    table = pa.concat_tables(tables)
    order = np.lexsort([np.array(table[key].to_pylist()) for key in ("crop", "window", "input")])
    return table.take(pa.array(order)), np.concatenate(arrays)[order]


def _vectors_in(path: Path, name: str, count: int) -> NDArray[np.float32]:
    names = [f"{name}.{row}" for row in range(count)]
    if path.suffix == ".npz":
        with np.load(path) as file:
            return np.stack([file[key].astype(np.float32) for key in names])
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return torch.stack([file.get_tensor(key).float() for key in names]).numpy()
