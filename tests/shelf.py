"""A hub on loopback: files by address, in the layout in which the Hugging Face hub serves them."""

from __future__ import annotations

import hashlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Shelf(ThreadingHTTPServer):
    """A hub and an authors' server on loopback: ``files`` by path; everything asked for is in ``asked``."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.cut = False
        super().__init__(("127.0.0.1", 0), ShelfHandler)
        self.url = f"http://127.0.0.1:{self.server_port}"

    def put(self, repo: str, folder: Path) -> None:
        for path in folder.iterdir():
            self.files[f"/{repo}/resolve/main/{path.name}"] = path.read_bytes()


class ShelfHandler(BaseHTTPRequestHandler):
    server: Shelf

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        content = self.server.files.get(self.path)
        if content is None:
            known = any(self.path.split("/resolve/")[0] == name.split("/resolve/")[0] for name in self.server.files)
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        if body:
            self.wfile.write(content[: len(content) // 2] if self.server.cut else content)

    def log_message(self, format: str, *args: object) -> None:
        pass
