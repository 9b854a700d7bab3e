"""A small server that plays the Hugging Face hub: the few routes that `huggingface_hub` and `datasets` ask of it.

with LocalHub({"me/rows": {"train.jsonl": b'{"prompt": "hi"}\\n'}}, cards={"me/rows": {"license": "mit"}}) as hub:
    ... a process with HF_ENDPOINT=hub.url (the libraries read it when they are imported)
"""

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

COMMIT = "0" * 40
ROUTE = re.compile(
    r"/(?:api/)?datasets/(?P<name>[^/]+/[^/]+)(?:/(?P<what>revision|tree|paths-info|resolve)/(?P<rest>.*))?"
)


class LocalHub:
    """Serves data sets, each a mapping of file names to their bytes.

    Args:
        data_sets: hub id -> file name -> content.
        cards: hub id -> the front matter of its card.
        gated: hub ids that are refused without a token.

    Attributes:
        url: what HF_ENDPOINT is to be.
        asked: the paths asked for, for tests.
    """

    def __init__(
        self,
        data_sets: Mapping[str, Mapping[str, bytes]],
        cards: Mapping[str, dict] | None = None,
        gated: frozenset[str] = frozenset(),
    ) -> None:
        self.data_sets, self.cards, self.gated = data_sets, cards or {}, gated
        self.asked: list[str] = []

    def __enter__(self) -> "LocalHub":
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def environment(self, cache: Path) -> dict[str, str]:
        """The variables of a process that asks this hub and keeps what it reads in `cache`."""
        names = {"HF_ENDPOINT": self.url, "HF_HOME": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1"}
        return {**names, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}


class _Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self._answer([])

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self._answer([unquote(path) for path in re.findall(r"paths=([^&]+)", body.decode())] or _paths_in(body))

    def _answer(self, paths: list[str]) -> None:
        path = unquote(urlparse(self.path).path)
        self.hub.asked.append(path)
        match = ROUTE.fullmatch(path)
        files = self.hub.data_sets.get(match["name"]) if match else None
        if files is None:
            self._send(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
        elif match["name"] in self.hub.gated and not self.headers.get("authorization"):
            self._send(401, b'{"error": "gated"}', {"X-Error-Code": "GatedRepo"})
        elif match["what"] == "resolve":
            self._send_file(files, match["rest"].partition("/")[2])
        elif match["what"] in ("tree", "paths-info"):
            named = paths if match["what"] == "paths-info" else list(files)
            self._send_json([_entry(name, files[name]) for name in named if name in files])
        else:
            self._send_json(
                {
                    "id": match["name"], "sha": COMMIT, "private": False, "tags": [], "downloads": 0, "likes": 0,
                    "siblings": [{"rfilename": name} for name in files], "cardData": self.hub.cards.get(match["name"]),
                }
            )  # fmt: skip

    def _send_file(self, files: Mapping[str, bytes], name: str) -> None:
        if name not in files:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        content, status, headers = files[name], 200, {"ETag": f'"{_digest(files[name])}"', "X-Repo-Commit": COMMIT}
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", "")):
            start, end = int(wanted[1]), min(int(wanted[2] or len(content) - 1), len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            content, status = content[start : end + 1], 206
        self._send(status, content, headers | {"Accept-Ranges": "bytes"})

    def _send_json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def _paths_in(body: bytes) -> list[str]:
    try:
        return list(json.loads(body)["paths"])
    except (ValueError, LookupError, TypeError):
        return []


def _entry(name: str, content: bytes) -> dict:
    return {"type": "file", "oid": _digest(content), "size": len(content), "path": name}
