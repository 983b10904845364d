"""A small server of the Hub's interface on loopback: repositories are folders."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_API = re.compile(
    r"/api/(datasets|models)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+))?(?:/(.*))?"
)
_FILE = re.compile(r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass
class HubServer:
    """Serves ``folder/datasets/owner/name`` and ``folder/models/owner/name``, any revision.

    Attributes:
        endpoint: the value of HF_ENDPOINT.
        requests: what was asked for, "GET /api/..." and so on.
    """

    folder: Path
    endpoint: str = ""
    requests: list[str] = field(default_factory=list)

    def repository(self, kind: str, name: str) -> Path:
        """Return the folder of a repository."""
        return self.folder / kind / name

    def environment(self, cache: Path) -> dict[str, str]:
        """Return the variables of a process that asks this server and caches below ``cache``."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(cache),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }


@contextlib.contextmanager
def hub_server(folder: Path) -> Iterator[HubServer]:
    """Serve the repositories in a folder while the block runs."""
    hub = HubServer(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer()

        def do_HEAD(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

        def log_message(self, format: str, *args: object) -> None:
            pass

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            hub.requests.append(f"{self.command} {self.path}")
            path = unquote(urlsplit(self.path).path)
            api, file = _API.fullmatch(path), _FILE.fullmatch(path)
            if api is not None:
                self._api(*api.groups(), body=body)
            elif file is not None:
                self._file(hub.repository(file[1] or "models", file[2]), file[4])
            else:
                self._send(404, b"{}")

        def _api(
            self, kind: str, name: str, what: str, revision: str, rest: str, *, body: bytes
        ) -> None:
            repository = hub.repository(kind, name)
            if not repository.is_dir():
                self._send(
                    404, b'{"error":"Repository not found"}', {"X-Error-Code": "RepoNotFound"}
                )
                return
            files = [f for f in sorted(repository.rglob("*")) if f.is_file()]
            if what == "tree":
                folder = repository / (rest or "")
                recursive = "recursive=true" in self.path.lower()
                entries = sorted(folder.rglob("*") if recursive else folder.glob("*"))
                self._json([_entry(entry, repository) for entry in entries])
            elif what == "paths-info":
                names = json.loads(body)["paths"] if body[:1] == b"{" else _form(body)
                paths = [repository / name for name in names]
                self._json([_entry(path, repository) for path in paths if path.exists()])
            else:
                siblings = [{"rfilename": str(f.relative_to(repository))} for f in files]
                info = {"id": name, "sha": COMMIT, "siblings": siblings, "private": False}
                self._json({**info, "gated": False, "disabled": False, "tags": [], "downloads": 0})

        def _file(self, repository: Path, name: str) -> None:
            file = repository / name
            if not file.is_file():
                self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
                return
            data = file.read_bytes()
            headers = {"ETag": f'"{_oid(data)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
            if span is None:
                self._send(200, data, headers)
                return
            start, end = int(span[1]), int(span[2] or len(data) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
            self._send(206, data[start : end + 1], headers)

        def _json(self, value: object) -> None:
            self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def _oid(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=20).hexdigest()


def _entry(file: Path, repository: Path) -> dict[str, object]:
    name = str(file.relative_to(repository))
    if file.is_dir():
        return {"type": "directory", "path": name, "size": 0, "oid": _oid(name.encode())}
    data = file.read_bytes()
    return {"type": "file", "path": name, "size": len(data), "oid": _oid(data)}


def _form(body: bytes) -> list[str]:
    pairs = (part.split("=", 1) for part in body.decode().split("&"))
    return [unquote(value.replace("+", " ")) for name, value in pairs if name == "paths"]
