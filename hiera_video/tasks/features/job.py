"""Extract features of any number of videos and images into a folder: stopped and started again, every window once.

Inputs -> Todo -> read_ahead: windows -> FeatureExtractor.stream: rows -> Writer: files
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

from tqdm import tqdm

from hiera_video.data.reading.child_process import keep_freed_memory
from hiera_video.data.reading.decoders import check_cuda
from hiera_video.data.reading.files import is_image
from hiera_video.data.reading.reader import open_video
from hiera_video.data.windows import CROPS, Crop, Decoded, Walk, Windows, read_ahead
from hiera_video.data.windows import walk as walk_windows
from hiera_video.errors import OutputError, RequestError, UnreadableVideo
from hiera_video.files import alone
from hiera_video.models.zoo import GENERAL
from hiera_video.tasks.features.actionformer import is_actionformer, write_arrays
from hiera_video.tasks.features.colours import draw_colours
from hiera_video.tasks.features.extractor import VECTORS, FeatureExtractor, WindowFeatures, feature_names
from hiera_video.tasks.features.feature_table import (
    DTYPES,
    FORMAT,
    Writer,
    begun_in,
    open_folder,
    read_done,
    read_failures,
)
from hiera_video.tasks.features.inputs import Inputs, Todo, parse_part
from hiera_video.tasks.features.ray_engine import Cluster, Failed, rows_on_ray
from hiera_video.tasks.records import FlatRecord, Results
from hiera_video.training.devices import Precision, kept_precision, name_of
from hiera_video.visual.feature_colours import check_picture

#: Todo, and what is told of inputs that fail -> the features of each crop of each window.
Rows: TypeAlias = Callable[[Todo, Failed], Iterator[WindowFeatures]]
#: Todo, and how inputs become windows -> the windows.
Read: TypeAlias = Callable[[Todo, Walk], Generator[Decoded, None, None]]
#: The stage that is drawn where no maps were asked for.
DRAWN = "stage3"
#: Bad inputs that are named on the screen.
MAX_NAMED = 10


@dataclass(frozen=True)
class Extracted(FlatRecord):
    """What an extraction came to: inputs named, those that were there already, windows written now, and seconds.

    ``failed``: inputs that could not be read, or only in part; ``error`` says so in one sentence.
    """

    inputs: int
    before: int
    windows: int
    failed: int
    seconds: float
    error: str | None = None


def extract(
    inputs: list[str],
    *,
    output: Path,
    model: str | None = None,
    features: str = "embedding",
    window: float | None = None,
    hop: float | None = None,
    crop: Crop = "center",
    dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    format: Literal["parquet", "safetensors", "npz"] | None = None,
    layout: Literal["windows", "actionformer"] = "windows",
    part: str = "1/1",
    engine: Literal["local", "ray"] = "local",
    ray_address: str | None = None,
    batch_size: int = 8,
    num_workers: int = 2,
    time_limit: float = 60,
    device: str = "auto",
    precision: Precision = "auto",
    decoder: Literal["auto", "cuda"] = "auto",
    compile: bool = False,
    picture: Path | None = None,
) -> Results[Extracted]:
    """Extract features of videos and images, window by window.

    Args:
        inputs: Video files, image files, folders, globs, http(s) addresses, and lists of them (.txt, .csv).
        output: The folder to write to. The same command goes on where it was stopped, every window once.
        model: A name (see `hiera-video models`), a file, a folder or a hub id. Default: hiera_nano_16x64.general.
        features: embedding, statistics (of stages 1 and 2), stage1 to stage4, several with commas; all: but statistics.
        window: Seconds of one window. Default: the model's clip; of statistics alone 32 frames, 1.28 s.
        hop: Seconds from one window to the next. Default: as long as a window.
        crop: center, three along the long side, or none: the whole picture.
        dtype: Numbers are written as float32, float16 or bfloat16 (safetensors alone).
        format: Default: parquet for embeddings, safetensors where maps are asked for (or npz).
        layout: windows, or actionformer: beside them one array a video, annotations to fill in, configs of detectors.
        part: Of a job array, such as 3/16: a fixed share of the inputs, into the same folder as the others.
        engine: local, or ray: tasks and actors of Ray Data, on one machine or many (needs hiera-video[ray]).
        ray_address: Of a running cluster, such as auto. Default: Ray is started here.
        batch_size: Clips that go through the model at once.
        num_workers: Processes that decode ahead of the model.
        time_limit: Seconds that one request to a decoder may take.
        device: auto, cpu, cuda, cuda:1, mps, ...
        precision: auto is bf16 where GPU or CPU has it and the model is wide enough to gain, else fp32.
        decoder: auto, or cuda: torchcodec on an NVIDIA GPU, for videos of 1080 lines and more.
        compile: Compile the model first, which takes a minute or more: for long jobs.
        picture: Also draw the first input (.mp4 or .png): maps of the last stage asked for, or of stage3, as colours.

    Returns:
        One record, when all is done.

    Raises:
        RequestError, OutputError, WeightsError: A value cannot be, or is not the folder's; no output; no weights.
    """
    share, name, sizes = parse_part(part), model or GENERAL, (batch_size, num_workers, time_limit)
    read, cluster, extractor = _machines(output, name, decoder, engine, ray_address, sizes, device, precision, compile)
    how, facts, arrays = _how(extractor, name, features, (window, hop, crop, batch_size), dtype, format, layout, share)
    rows, draw = partial(_rows, *how, cluster, batch_size, read), partial(_draw, *how, picture)
    return Results(1, _run(*_begun(inputs, Path(output), facts, picture), facts, share, rows, arrays, draw))


def _machines(
    output: Path,
    name: str,
    decoder: str,
    engine: str,
    ray_address: str | None,
    sizes: tuple[int, int, float],
    device: str,
    precision: Precision,
    compile: bool,
) -> tuple[Read, Cluster | None, FeatureExtractor]:
    """What reads, the cluster if there is one, and the model."""
    batch_size, num_workers, time_limit = sizes
    read, kept = _reader(decoder, engine, num_workers, time_limit), kept_precision(precision, begun_in(Path(output)))
    where: dict[str, Any] = {"device": device, "precision": kept, "compile": compile}
    cluster = Cluster(name, ray_address, batch_size, time_limit, **where) if engine == "ray" else None
    return read, cluster, FeatureExtractor.from_pretrained(name, **where)


def _how(
    extractor: FeatureExtractor,
    model: str,
    features: str,
    windows: tuple[float | None, float | None, Crop, int],
    dtype: str,
    format: str | None,
    layout: str,
    share: tuple[int, int],
) -> tuple[tuple[FeatureExtractor, Walk, list[str]], dict[str, Any], bool]:
    """How inputs become windows and these features; the same as the folder keeps it; and whether arrays are written."""
    names = feature_names(extractor.model, features)
    window, hop, crop, batch_size = windows
    walk = extractor.walk(names, window=window, hop=hop, crop=crop, batch_size=batch_size)
    facts = {
        "format": FORMAT,
        "model": model,
        "weights": extractor.weights,
        "features": names,
        "window": walk.spec.span,
        "hop": walk.hop,
        "crop": walk.crop,
        "dtype": dtype,
        "files": files_of(names, format, dtype),
        "precision": str(extractor.precision).removeprefix("torch."),
        "clip": walk.spec.to_dict(),
    }
    return (extractor, walk, names), facts, is_actionformer(layout, facts, share)


def _begun(inputs: list[str], output: Path, facts: dict[str, Any], picture: Path | None) -> tuple[Inputs, Path]:
    """The inputs of an extraction and its folder, which is there and was made the same way."""
    if picture is not None:
        check_picture(Path(picture))
    named = Inputs(inputs)
    open_folder(output, facts)
    return named, output


def _run(
    named: Inputs,
    output: Path,
    facts: dict[str, Any],
    share: tuple[int, int],
    rows: Rows,
    arrays: bool,
    draw: Callable[[Inputs], None],
) -> Iterator[Extracted]:
    label = f"part-{share[0]}-of-{share[1]}"
    with alone(output, label):
        keep_freed_memory()
        began = time.monotonic()
        todo = Todo(named, *read_done(output, facts["crop"]), share)
        writer = Writer(output, facts, label)
        writer.keep_failures([row for row in read_failures(output) if todo.is_done(row["input"])])
        with _Progress(writer, todo, len(CROPS[facts["crop"]])) as progress:
            try:
                for row in rows(todo, progress.failed):
                    progress.add(row)
            except OutputError:  # A flush would repeat the error.
                raise
            except BaseException:
                writer.flush()
                raise
            writer.flush()
        if arrays and any((output / "windows").glob("*.parquet")):
            write_arrays(output)
        yield progress.summary(time.monotonic() - began)
    draw(named)


def _rows(
    extractor: FeatureExtractor,
    walk: Walk,
    features: list[str],
    cluster: Cluster | None,
    batch_size: int,
    read: Read,
    todo: Todo,
    failed: Failed,
) -> Iterator[WindowFeatures]:
    """The features of all inputs, the windows of one input in their order; ``failed`` is told of those without."""
    if cluster is not None:
        cluster = replace(cluster, precision=name_of(extractor.precision))  # or each machine might take another
        yield from rows_on_ray(todo, walk, features, cluster, failed) if len(todo) else ()
        return
    with closing(read(todo, walk)) as decoded:
        yield from extractor.stream(_readable(decoded, failed), features, batch_size)


def _reader(decoder: str, engine: str, num_workers: int, time_limit: float) -> Read:
    """What reads the inputs; raises RequestError for an unknown decoder, and for cuda where there is no GPU."""
    if decoder not in ("auto", "cuda"):
        raise RequestError(f"decoder {decoder!r} is unknown: take auto or cuda")
    if decoder == "auto":
        return partial(read_ahead, num_workers=num_workers, time_limit=time_limit)
    if engine != "local":
        raise RequestError("decoder cuda is of engine local: leave one of the two out")
    check_cuda()
    return read_on_gpu


def read_on_gpu(todo: Iterable[tuple[str, int]], how: Walk) -> Generator[Decoded, None, None]:
    """The windows of many inputs, decoded on the GPU in this process, one input after the other.

    What the GPU cannot show exactly, from whichever window on, PyAV reads; of the first such video stderr says why.

    Args:
        todo: Inputs, and the number of the first window to read of each.
        how: What windows, and which crops of them.

    Yields:
        As :func:`hiera_video.data.windows.read_ahead`.
    """
    told = False
    for name, reached in todo:
        for backend in ("auto",) if is_image(name) else ("cuda", "auto"):
            try:
                with nullcontext(name) if is_image(name) else open_video(name, backend=backend) as source:
                    for windows in walk_windows(source, how, first=reached, name=name):
                        reached += len(windows)
                        yield Decoded(name, reached, windows)
                break
            except UnreadableVideo as error:
                if backend == "auto":
                    yield Decoded(name, reached, None, str(error))
                elif not told:
                    told = True
                    why = str(error).partition(": use ")[0]
                    tqdm.write(f"{why}; it and others like it are decoded by PyAV", file=sys.stderr)


def _readable(decoded: Iterable[Decoded], failed: Failed) -> Iterator[Windows]:
    for item in decoded:
        if item.windows is not None:
            yield item.windows
        if item.error is not None:
            failed(item.input, item.reached, item.error)


def _draw(extractor: FeatureExtractor, walk: Walk, features: list[str], picture: Path | None, named: Inputs) -> None:
    """Draws the first input that can be read."""
    stage = DRAWN if features[-1] in VECTORS else features[-1]
    if picture is None:
        return
    # Not compiled: other features would be another graph.
    plain = FeatureExtractor(extractor.model, device=str(extractor.device), precision=name_of(extractor.precision))
    for name, error in named:
        try:
            if error is None:
                return draw_colours(plain, name, walk, stage, Path(picture))
        except UnreadableVideo:  # told already
            continue


def files_of(features: list[str], format: str | None, dtype: str) -> str:
    """The kind of files to write.

    Args:
        features: Names of the features.
        format: What was asked for: parquet, safetensors, npz, or None.
        dtype: float32, float16 or bfloat16.

    Returns:
        parquet, safetensors or npz.

    Raises:
        RequestError: Where such files cannot hold these features.
    """
    maps = features[-1] not in VECTORS
    files = format or ("safetensors" if maps else "parquet")
    if files not in ("parquet", "safetensors", "npz"):
        raise RequestError(f"format {files!r} is unknown: take parquet, safetensors or npz")
    if files == "parquet" and maps:
        raise RequestError("format parquet holds embeddings and statistics alone: take safetensors or npz for maps")
    if dtype not in DTYPES:
        raise RequestError(f"dtype {dtype!r} is unknown: take {', '.join(DTYPES)}")
    if dtype == "bfloat16" and files != "safetensors":
        raise RequestError(f"{files} has no bfloat16: take format safetensors, or dtype float16")
    return files


class _Progress:
    """Writes rows as they come, tells of failures, shows how far it is."""

    def __init__(self, writer: Writer, todo: Todo, num_crops: int) -> None:
        self._writer, self._todo, self._num_crops = writer, todo, num_crops
        self._window: list[WindowFeatures] = []
        self._windows, self._failed = 0, 0
        self._bar = tqdm(total=len(todo), unit="input", file=sys.stderr, disable=None)
        for name, error in todo.bad:
            self._tell(name, 0, error)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def add(self, row: WindowFeatures) -> None:
        """The crops of a window are written together."""
        self._window.append(row)
        if len(self._window) == self._num_crops:
            self._writer.add(self._window)
            self._window = []
            self._windows += 1
            if row.number == row.count - 1 and row.error is not None:
                self.failed(row.input, row.count, row.error)
            elif row.number == row.count - 1:
                self._bar.update()
            self._bar.set_postfix(windows=self._windows, failed=self._failed, refresh=False)

    def failed(self, name: str, windows: int, error: str) -> None:
        """An input of which nothing, or nothing after ``windows`` windows, could be read well."""
        self._tell(name, windows, error)
        self._bar.update()

    def _tell(self, name: str, windows: int, error: str) -> None:
        self._failed += 1
        self._writer.fail(name, windows, error)
        if self._failed <= MAX_NAMED:
            tqdm.write(error if name in error else f"{name}: {error}", file=sys.stderr)

    def summary(self, seconds: float) -> Extracted:
        """What it came to."""
        error = f"{self._failed} of {self._todo.inputs} inputs could not be read, or only in part: see failures/"
        return Extracted(
            inputs=self._todo.inputs,
            before=self._todo.before,
            windows=self._windows,
            failed=self._failed,
            seconds=round(seconds, 3),
            error=error if self._failed else None,
        )
