"""Checkpoint files from elsewhere: the Hugging Face hub, and the authors' own server with a cache beside the hub's.

Everything fetched is held to a checksum: the hub's own digest where it gives one; for the authors' files the one
in the table of checkpoints, or else the one recorded in the cache at the first download.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from hiera_video.errors import WeightsError

#: Environment variable that replaces everything before the file name in the authors' addresses (mirrors, tests).
MIRROR = "HIERA_VIDEO_WEIGHTS_URL"

#: Seconds to wait for a connection, and for each piece of a download.
TIMEOUT = 10

#: Licence identifiers of the hub, as people write them.
LICENSES = {"cc-by-nc-4.0": "CC BY-NC 4.0: no commercial use", "apache-2.0": "Apache 2.0"}


@dataclass(frozen=True, kw_only=True)
class Hub:
    """Where to look on the hub.

    Args:
        revision: A repository's branch, tag or commit. Default: the main branch.
        cache_dir: Where downloads are kept. Default: the hub's cache.
        local_files_only: Whether to look into the cache alone.
    """

    revision: str | None = None
    cache_dir: str | Path | None = None
    local_files_only: bool = False


class UnavailableError(WeightsError):
    """This source does not have the file, or cannot be reached; another one may."""


def hub_file(repo: str, names: tuple[str, ...], hub: Hub, *, license: str | None = None) -> Path:
    """Fetches a file from the hub into the hub's own cache.

    ``HF_HUB_OFFLINE``, ``HF_ENDPOINT``, ``HF_HOME`` count as everywhere on the hub. Without a connection only the
    cache is looked at, at once.

    Args:
        repo: The repository, ``owner/name``.
        names: File names, of which the first that the repository has is fetched.
        hub: Where to look.
        license: What to say on stderr when the file is downloaded.

    Returns:
        The file.

    Raises:
        UnavailableError: The repository has no such file, or cannot be reached.
        WeightsError: The file's digest is not the hub's.
    """
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    offline = hub.local_files_only or constants.HF_HUB_OFFLINE
    # The hub's client would retry for half a minute where there is no network at all.
    unreachable = not offline and not _reachable(constants.ENDPOINT)
    for name in names:
        cached = isinstance(try_to_load_from_cache(repo, name, cache_dir=hub.cache_dir, revision=hub.revision), str)
        try:
            path = hf_hub_download(
                repo,
                name,
                revision=hub.revision,
                cache_dir=hub.cache_dir,
                local_files_only=offline or unreachable,
                endpoint=constants.ENDPOINT,
            )
        except EntryNotFoundError as error:
            if isinstance(error, LocalEntryNotFoundError) and not (offline or unreachable):
                raise UnavailableError(f"{constants.ENDPOINT} did not answer for {repo}") from error
            continue
        except Exception as error:  # the hub's client raises its own errors, httpx's and (older) requests'
            lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            raise UnavailableError(f"{repo} on {constants.ENDPOINT}: {lines[0].rstrip('. ')}") from error
        _hold_to_hub_digest(Path(path))
        if license and not cached:
            _say_license(repo, license)
        return Path(path)
    if unreachable:
        raise UnavailableError(f"no connection to {constants.ENDPOINT}")
    if offline:
        raise UnavailableError(f"{repo} is not in the hub's cache, and offline mode is on")
    raise UnavailableError(f"{repo} on {constants.ENDPOINT} has no {' or '.join(names)}")


def _reachable(endpoint: str) -> bool:
    """Whether the hub's host takes a connection; where a proxy stands between, that is for the proxy to say."""
    if urllib.request.getproxies().keys() & {"http", "https", "all"}:
        return True
    parts = urlsplit(endpoint)
    try:
        socket.create_connection(
            (parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)), timeout=TIMEOUT
        ).close()
    except OSError:
        return False
    return True


def _hold_to_hub_digest(path: Path) -> None:
    """Large files lie in the hub's cache under their SHA-256; small ones (a git hash) are checked by size alone."""
    blob = path.resolve()
    if re.fullmatch(r"[0-9a-f]{64}", blob.name) and (digest := sha256_of(blob)) != blob.name:
        raise WeightsError(
            f"{path} is damaged: its SHA-256 is {digest[:12]}..., the hub's {blob.name[:12]}...; delete {blob}"
        )


def author_file(url: str, hub: Hub, *, sha256: str | None = None, license: str | None = None) -> Path:
    """Fetches a file from the authors' server, with a progress bar, where it is not in the cache yet.

    Args:
        url: The file's address.
        hub: Downloads are kept in a folder ``hiera_video`` inside its ``cache_dir``. Default: beside the hub's cache.
        sha256: The file's checksum. Default: the one that ``FILE.sha256`` beside it recorded at the first download.
        license: What to say on stderr when the file is downloaded.

    Returns:
        The file.

    Raises:
        UnavailableError: There is no connection.
        WeightsError: The file is not what it was.
    """
    from huggingface_hub import constants

    folder = (Path(hub.cache_dir) if hub.cache_dir else Path(constants.HF_HUB_CACHE).parent) / "hiera_video"
    path = folder / url.rsplit("/", 1)[-1]
    record = path.with_name(path.name + ".sha256")
    if mirror := os.environ.get(MIRROR):
        url = f"{mirror.rstrip('/')}/{path.name}"
    expected = sha256 or (record.read_text().strip() if record.is_file() else None)
    if path.is_file():
        digest = sha256_of(path)
        if expected and digest != expected:
            raise WeightsError(
                f"{path} has changed: its SHA-256 is {digest[:12]}..., not {expected[:12]}...; "
                f"delete it to fetch it again"
            )
    elif hub.local_files_only or constants.HF_HUB_OFFLINE:
        raise UnavailableError(f"{path.name} is not in {folder}, and offline mode is on")
    else:
        digest = _download(url, path, expected)
        if license:
            _say_license(path.name, license)
    if not record.is_file():
        record.write_text(digest + "\n")
    return path


def _download(url: str, path: Path, expected: str | None) -> str:
    """Writes ``url`` to ``path`` under a temporary name, renames it when whole and right; returns its SHA-256."""
    from tqdm import tqdm

    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    digest = hashlib.sha256()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response, temporary.open("wb") as file:
            length = int(response.headers.get("Content-Length") or 0)
            done = 0
            with tqdm(total=length or None, unit="B", unit_scale=True, desc=path.name, file=sys.stderr) as bar:
                while piece := response.read(1 << 20):
                    file.write(piece)
                    digest.update(piece)
                    done += len(piece)
                    bar.update(len(piece))
        if length and done != length:
            raise UnavailableError(f"{url} broke off after {done} of {length} bytes")
        if expected and digest.hexdigest() != expected:
            raise WeightsError(
                f"{url} is not what it was: its SHA-256 is {digest.hexdigest()[:12]}..., not {expected[:12]}...; "
                f"it was not kept"
            )
        temporary.replace(path)
    except OSError as error:
        raise UnavailableError(f"{url}: {getattr(error, 'reason', None) or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return digest.hexdigest()


def sha256_of(path: Path) -> str:
    """Computes a file's SHA-256, reading it in pieces.

    Args:
        path: The file.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _say_license(what: str, license: str) -> None:
    sys.stderr.write(f"{what}: these weights are licensed under {LICENSES.get(license, license)}\n")
