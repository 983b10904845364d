"""A small server of the Hugging Face Hub's interface, on loopback: model folders by name."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serving(repositories: dict[str, Path]) -> Iterator[tuple[str, list[str]]]:
    """Serve folders by "owner/name"; yield the address, and a list that fills with requests."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def _answer(self, *, with_body: bool) -> None:
            asked.append(f"{self.command} {self.path}")
            path = self.path.partition("?")[0].removeprefix("/api/models")
            name = "/".join(path.split("/")[1:3])
            folder, rest = repositories.get(name), path.split("/")[3:]
            body, headers, status = b"", {}, 404
            if folder is None:
                headers["X-Error-Code"] = "RepoNotFound"
            elif rest[:2] in (["tree", "main"], ["tree", COMMIT]):
                body = json.dumps(
                    [
                        {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "0"}
                        for f in sorted(folder.iterdir())
                    ]
                ).encode()
                status = 200
            elif rest[:1] != ["resolve"] and rest[1:] in ([], ["main"], [COMMIT]):
                names = [{"rfilename": file.name} for file in sorted(folder.iterdir())]
                body = json.dumps({"id": name, "sha": COMMIT, "siblings": names}).encode()
                status = 200
            elif rest[:1] == ["resolve"] and rest[1] in ("main", COMMIT):
                file = folder.joinpath(*rest[2:])
                headers["X-Repo-Commit"] = COMMIT
                if file.is_file():
                    body, status = file.read_bytes(), 200
                    headers["ETag"] = f'"{hashlib.sha1(body).hexdigest()}"'  # noqa: S324
                else:
                    headers["X-Error-Code"] = "EntryNotFound"
            else:
                headers["X-Error-Code"] = "RevisionNotFound"
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Stay silent."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
