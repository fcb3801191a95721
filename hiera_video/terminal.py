"""What a command says in a terminal: results above one progress bar, log lines, and the answer to Ctrl-C."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from hiera_video.cells import table
from hiera_video.errors import HieraVideoError
from hiera_video.files import check_output, replacing

if TYPE_CHECKING:
    from hiera_video.tasks.records import Record


#: Libraries whose log lines are not for our users: "generated new fontManager" and the like.
LIBRARIES = ("faiss", "httpx", "httpcore", "huggingface_hub", "matplotlib", "onnx_ir", "onnxscript")


class _AboveTheBar(logging.StreamHandler[TextIO]):
    """Lets a log line and a progress bar have lines of their own."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


def log_to_stderr(level: int) -> None:
    """Sends log lines to stderr, without those of libraries that are not for users.

    Args:
        level: The least level of our own lines that is shown.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[_AboveTheBar(sys.stderr)])
    logging.getLogger("hiera_video").setLevel(level)
    for name in LIBRARIES:
        logging.getLogger(name).setLevel(logging.ERROR)


def answer_interrupts() -> None:
    """Answers the first Ctrl-C at once, whatever the main thread is busy with; a second one ends the process.

    The main thread gets its KeyboardInterrupt as ever, when it comes to it.
    """
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)

    def watch(_: socket.socket = theirs) -> None:  # kept open as long as this runs
        told = False
        while number := ours.recv(1):
            if number[0] != signal.SIGINT:
                continue
            if told:
                os._exit(130)
            told = True
            if os.environ.get("RANK", "0") == "0":  # of several processes the first speaks
                os.write(2, b"\nhiera-video: stopping; what is done is kept (Ctrl-C again ends at once)\n")

    threading.Thread(target=watch, daemon=True).start()


def written(
    records: Callable[[], Iterable[Record]], style: str, output: Path | TextIO, *, unit: str | None, of_run: bool
) -> int:
    """Writes what a job gives, to a file once it is whole, and says what went wrong.

    Args:
        records: Starts the job.
        style: "table", "json", "jsonl" or "csv".
        output: Where to.
        unit: What the progress bar counts; None: there is none.
        of_run: Whether records are those of a run, which have different columns.

    Returns:
        The exit code.
    """
    try:
        if not isinstance(output, Path):
            return _write(records(), style, output, unit, of_run)
        check_output(output)
        with replacing(output) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
            return _write(records(), style, stream, unit, of_run)
    except HieraVideoError as error:
        return failed(str(error))
    except BrokenPipeError:
        raise
    except OSError as error:  # stdout is on a full disk
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return failed(f"results cannot be written: {error.strerror or error}")


def failed(message: str) -> int:
    """Says why there is nothing.

    Args:
        message: One sentence.

    Returns:
        The exit code.
    """
    print(f"hiera-video: {message}", file=sys.stderr)
    return 2


def _write(records: Iterable[Record], style: str, stream: TextIO, unit: str | None, of_run: bool) -> int:
    """Writes tables and JSON at the end, however that comes, all else as it comes. Returns the exit code."""
    from tqdm import tqdm

    endless = getattr(records, "endless", False)
    waits = style == "json" or (style == "csv" and of_run)
    code, kept, begun, ended = 0, list["Record"](), False, False
    bar = tqdm(records, unit=unit or "", disable=None if unit and not endless else True, file=sys.stderr)
    try:
        for record in bar:
            if record.error is not None:
                code = 1
            if waits or (style == "table" and getattr(record, "tabular", False)):
                kept.append(record)
                continue
            with tqdm.external_write_mode(file=stream):  # above the bar
                stream.write(_text(record, style, header=not begun))
                stream.flush()
            begun = True
        ended = True
    except KeyboardInterrupt:
        code, ended = code if endless else 130, True  # of what is endless there is no other end
    finally:
        bar.close()
        if kept or (ended and style == "json"):
            stream.write(_together(kept, style))
        stream.flush()
    return code


def _text(record: Record, style: str, *, header: bool) -> str:
    """A record that is printed as it comes, of CSV with the ``header`` or without it."""
    if style == "csv":
        return _csv(record.rows(), header=header)
    return f"{json.dumps(record.to_dict(), ensure_ascii=False) if style == 'jsonl' else record.text()}\n"


def _together(records: list[Record], style: str) -> str:
    """Records that are printed when all are there."""
    if style == "json":
        return f"{json.dumps([record.to_dict() for record in records], indent=2, ensure_ascii=False)}\n"
    if style == "csv":
        return _csv([row for record in records for row in record.rows()], header=True)
    whole = [record for record in records if record.error is None]
    lines = [record.text() for record in records if record.error is not None or len(whole) == 1]
    if len(whole) > 1:
        lines.insert(0, table([row for record in whole for row in record.rows()]))
    return "".join(f"{line}\n" for line in lines)


def _csv(rows: list[dict[str, Any]], *, header: bool) -> str:
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, fieldnames=list(dict.fromkeys(key for row in rows for key in row)))
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()
