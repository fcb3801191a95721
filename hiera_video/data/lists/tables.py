"""Tables and lists as text: their encoding, their line breaks, and the columns that a first line names."""

from __future__ import annotations

import codecs
import csv
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hiera_video.data.reading.files import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS, extension
from hiera_video.errors import RequestError

#: Usual names of a column, those of an earlier line first. Blanks, dots and hyphens in a name are read as "_".
PATHS = (
    "path",
    "file",
    "video_path file_path filepath clip_path image_path relative_path rel_path full_path",
    "filename file_name fname video_file video_filename clip_file image_file image_filename",
    "video videos clip image files paths",
    "name video_name clip_name image_name input source location",
    "url uri video_url address",
)
#: Labels in a column of one of these names are several, with semicolons between them.
SEVERAL = "labels classes actions categories tags activities"
#: Names of classes come before their numbers.
LABELS = (
    "label",
    "labels",
    "class action category target tag activity gesture classname class_name label_name action_name category_name "
    "class_label action_label video_label",
    SEVERAL.removeprefix("labels "),
    "label_id class_id action_id category_id target_id labelid classid label_idx class_idx label_index class_index "
    "label_number class_number y ground_truth gt",
)
STARTS = ("start", "start_time time_start start_sec start_seconds start_s t_start begin")
ENDS = ("end", "end_time time_end end_sec end_seconds end_s t_end stop")
#: Words by which a first line is known to name columns.
HEADER_WORDS = set(" ".join([*PATHS, *LABELS, *STARTS, *ENDS, "id video_id clip_id youtube_id split subset"]).split())

#: The end of a video's or picture's name, wherever it stands.
MEDIA = re.compile(rf"(?:{'|'.join(map(re.escape, sorted(VIDEO_EXTENSIONS | IMAGE_EXTENSIONS)))})\b", re.IGNORECASE)
DELIMITERS = {"\t": "a tab", ",": "a comma", ";": "a semicolon", "|": "a bar", " ": "a blank"}
#: Bytes at the beginning of a file -> its encoding; UTF-32 begins as UTF-16 does.
MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


@dataclass(frozen=True)
class Header:
    """The first line of a table: its text, where it stands, its columns in lower case with "_" between words."""

    text: str
    line: int
    columns: list[str]
    delimiter: str

    def column(self, file: str | os.PathLike[str], groups: Sequence[str], what: str) -> int | None:
        """Where the column of one of these names is.

        Args:
            file: The table, for the message.
            groups: Names with blanks between them; those of an earlier group are preferred.
            what: What the column holds, for the message.

        Returns:
            The place of the column, or None where no name of any group is there.

        Raises:
            RequestError: Two columns could be meant.
        """
        for names in groups:
            places = [place for place, name in enumerate(self.columns) if name in names.split()]
            if len(places) > 1:
                both = " and ".join(repr(self.columns[place]) for place in places[:2])
                raise wrong(
                    file, self.line, self.text, f"one column of {what}, not {both}: name the right one {groups[0]}"
                )
            if places:
                return places[0]
        return None


def wrong(file: str | os.PathLike[str], line: int, text: object, expected: str) -> RequestError:
    """The error for a line that is not what it should be.

    Args:
        file: The file that was read.
        line: The number of the line, from 1 on; 0: no line in particular.
        text: What stands there.
        expected: What should stand there, in words.

    Returns:
        The error, one sentence, to be raised by the caller.
    """
    text = text if isinstance(text, str) else json.dumps(text)
    shown = repr(text if len(text) <= 80 else f"{text[:77]}...") if text else "nothing"
    where = f"{os.fspath(file)}, line {line}" if line else os.fspath(file)
    return RequestError(f"{where}: found {shown}, but expected {expected}")


def read_lines(file: str | os.PathLike[str]) -> list[str]:
    """All lines of a text file, without their ends (LF, CR LF, or CR alone).

    UTF-8, UTF-16 and UTF-32 are recognised by their marks, UTF-16 without one by its zero bytes. Bytes that are no
    UTF-8 are kept as surrogates: names of files may hold any.

    Args:
        file: The path of the file.

    Returns:
        At least one line that is not blank.

    Raises:
        RequestError: The file cannot be read, is empty, or is no text.
    """
    try:
        data = Path(file).read_bytes()
    except OSError as error:
        raise RequestError(f"{os.fspath(file)} cannot be read ({error.strerror}): check the path") from error
    encoding = next((name for mark, name in MARKS.items() if data.startswith(mark)), _without_mark(data))
    try:
        text = data.decode(encoding, "surrogateescape" if encoding == "utf-8" else "strict").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        reason = f"it begins as {encoding.upper()} but is not ({error.reason})"
        raise RequestError(f"{os.fspath(file)} is no text: {reason}; save it as UTF-8") from error
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if "\0" in text:
        number = next(number for number, line in enumerate(lines, start=1) if "\0" in line)
        raise wrong(file, number, lines[number - 1], "text without zero bytes: save the file as UTF-8")
    if not text.strip():
        raise RequestError(f"{os.fspath(file)} is empty: expected one line for each video")
    return lines


def _without_mark(data: bytes) -> str:
    """UTF-16 where every second byte of a good part is zero and no other is, else UTF-8."""
    zeros = [data[first::2].count(0) for first in (0, 1)]
    if len(data) % 2 == 0 and min(zeros) == 0 and 8 * max(zeros) >= len(data) > 0:
        return "utf-16-be" if zeros[0] else "utf-16-le"
    return "utf-8"


def header_of(lines: Sequence[str]) -> Header | None:
    """The columns that the first line of a table names.

    A header is a line of at least two words, one of which is a usual name of a column, and none of which is the name
    of a video or picture, a path with folders, or a number.

    Args:
        lines: Those of a file, as :func:`read_lines` gives them.

    Returns:
        The header, or None where the first line that is not blank is none.
    """
    line, text = next((number, text.strip("\ufeff \t")) for number, text in enumerate(lines, start=1) if text.strip())
    for delimiter in DELIMITERS:
        if delimiter not in text:
            continue
        fields = next(csv.reader([text.lstrip("# ")], delimiter=delimiter, skipinitialspace=True))
        columns = [re.sub(r"[\s.\-]+", "_", field.strip(" \"'")).lower() for field in fields]
        if set(columns) & HEADER_WORDS and not any(map(_is_value, fields)):
            return Header(text, line, columns, delimiter)
    return None


def _is_value(field: str) -> bool:
    """Whether a field is a path, an address or a number, and so no name of a column."""
    return bool(re.search(r"[/\\]|^\s*[\d.:+-]+\s*$", field) or MEDIA.search(field))


def is_media(path: str) -> bool:
    """Whether a path ends as a video or a picture.

    Args:
        path: A path, an address, or a file in a shard.

    Returns:
        Whether its extension is that of a video or picture.
    """
    return extension(path.strip()) in VIDEO_EXTENSIONS | IMAGE_EXTENSIONS


def rows_below(file: str | os.PathLike[str], lines: Sequence[str], header: Header) -> Iterator[tuple[int, list[str]]]:
    """The rows of a table; quoted fields, which may hold delimiters and line breaks, are unquoted.

    Args:
        file: The table, for messages.
        lines: Its lines.
        header: Its first line.

    Yields:
        (line, fields): where a row begins, and as many fields as the header has, without blanks around them. Empty
        lines are passed over.

    Raises:
        RequestError: A row has another number of fields, or a quote that is not closed.
    """
    # csv takes blanks between a closing quote and the delimiter for an error.
    after_quote = re.compile(rf'(?<!")" +(?={re.escape(header.delimiter)}|$)')
    texts = (after_quote.sub('"', line) + "\n" for line in lines[header.line :])
    rows = csv.reader(texts, delimiter=header.delimiter, skipinitialspace=True, strict=True)
    between = DELIMITERS[header.delimiter]
    begin = header.line + 1
    try:
        for row in rows:
            fields = [field.strip() for field in row]
            if any(fields):
                if len(fields) != len(header.columns):
                    names = ",".join(header.columns)
                    raise wrong(file, begin, ",".join(fields), f"{len(header.columns)} fields: {names}")
                yield begin, fields
            begin = header.line + rows.line_num + 1
    except csv.Error as error:
        text = lines[begin - 1] if begin <= len(lines) else str(error)
        raise wrong(file, begin, text, f"fields with {between} between them, and quotes in pairs ({error})") from None
