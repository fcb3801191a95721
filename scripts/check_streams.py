"""A table of generated streams, codec by container by oddity, read by us and compared with FFmpeg's frames and times.

    python scripts/check_streams.py [FOLDER]

The files are written to FOLDER, or to a temporary folder. The exit code is 1 if one of them is read wrongly.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from streams import check, streams


def main(folder: Path) -> int:
    """Write and check all streams; returns how many are wrong."""
    folder.mkdir(parents=True, exist_ok=True)
    wrong = unmade = 0
    print(f"{'oddity':18}{'codec':12}{'file':6}{'frames':>7}  result")
    for stream in streams():
        try:
            path = stream.write(folder)
        except Exception as error:
            unmade += 1
            result, frames = f"cannot be made here ({' '.join(str(error).split())[:70]})", 0
        else:
            try:
                outcome = check(stream, path)
            except Exception as error:
                outcome, result, frames = None, f"WRONG: {type(error).__name__}: {error}", 0
            if outcome is not None:
                frames = outcome.frames
                result = f"WRONG: {outcome.wrong}" if outcome.wrong else outcome.error or "right"
            wrong += result.startswith("WRONG")
        print(f"{stream.oddity:18}{stream.codec:12}{stream.suffix:6}{frames:7}  {result}", flush=True)
    count = len(streams())
    print(f"{count - unmade} streams, {wrong} wrong; {unmade} cannot be made with this FFmpeg")
    return wrong


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(main(Path(sys.argv[1])) > 0)
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(main(Path(temporary)) > 0)
