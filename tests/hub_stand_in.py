"""A hub on the loopback device that serves model folders the way huggingface_hub asks for them."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import close_session, constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class StandIn:
    """What the hub serves (`owner/name` -> folder), what it refuses as gated, and which files were fetched."""

    models: dict[str, Path]
    gated: tuple[str, ...] = ()
    extra_names: tuple[str, ...] = ()
    """File names listed beside the real ones, for hostile listings."""
    broken: tuple[str, ...] = ()
    """Files that are listed and not there."""
    fetched: list[str] = field(default_factory=list)
    url: str = ""


@contextmanager
def serving(stand_in: StandIn) -> Iterator[StandIn]:
    """Serve on a free port of 127.0.0.1; `url` is what HF_ENDPOINT must be."""

    class Answer(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, with_body: bool) -> None:
            parts = self.path.split("?")[0].strip("/").split("/")
            is_listing = parts[:2] == ["api", "models"]
            model = "/".join(parts[2:4] if is_listing else parts[:2])
            if model in stand_in.gated:
                self.refuse(403, "GatedRepo")
            elif model not in stand_in.models:
                self.refuse(404, "RepoNotFound")
            elif is_listing:
                self.send(json.dumps(self.listing(model)).encode(), "application/json", with_body)
            else:
                self.send_file(stand_in.models[model], "/".join(parts[4:]), with_body)

        def listing(self, model: str) -> dict:
            folder = stand_in.models[model]
            files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
            siblings = [{"rfilename": p.relative_to(folder).as_posix(), "size": p.stat().st_size} for p in files]
            siblings += [{"rfilename": name, "size": 1} for name in stand_in.extra_names]
            return {"id": model, "sha": COMMIT, "private": False, "tags": [], "downloads": 0, "siblings": siblings}

        def send_file(self, folder: Path, name: str, with_body: bool) -> None:
            if name in stand_in.broken or not (folder / name).is_file():
                self.refuse(404, "EntryNotFound")
            else:
                if with_body:
                    stand_in.fetched.append(name)
                self.send((folder / name).read_bytes(), "application/octet-stream", with_body)

        def send(self, body: bytes, kind: str, with_body: bool) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def refuse(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", f"{code} for {self.path}")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing on stderr."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    stand_in.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield stand_in
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        close_session()  # a connection of this process that is kept open would still be answered


def ask_here(url: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process, which read the hub's address long ago, ask the hub at `url` and keep files under `home`."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
