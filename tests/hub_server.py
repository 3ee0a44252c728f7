"""A small stand-in of the Hugging Face hub's HTTP interface, on the loopback address.

It knows what an upload asks for: making a repository, how each file is to come, Git
LFS's batch and its storage, and the commit. Everything else is 404.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from huggingface_hub import ModelCard

TOKEN = "hf_" + "NeverWriteThisDown" * 2
OWNER = "somebody"


@dataclass
class Hub:
    """What the stand-in holds, and how it behaves."""

    url: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)  # method and path of each request
    stored: dict[str, bytes] = field(default_factory=dict)  # of Git LFS, by its digest
    refused: str | None = None  # requests whose path has this are not allowed
    echoes: bool = False  # a refusal repeats what was sent, which no server should
    large: str = ".safetensors"  # how the names of files end that LFS stores


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        self._answer(404, {"error": "not here"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        hub, path = self.hub, self.path.partition("?")[0]
        hub.asked.append(f"POST {path}")
        sent = self.headers.get("Authorization", "")
        if sent != f"Bearer {TOKEN}":
            return self._answer(401, {"error": "Invalid credentials"})
        if hub.refused is not None and hub.refused in path:
            said = f"Not allowed{f' for {sent}' if hub.echoes else ''}"
            return self._answer(403, {"error": said})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            ModelCard(json.loads(body)["content"])
            return self._answer(200, {"errors": [], "warnings": []})
        for pattern, answer in (
            (r"/api/models/(.+)/preupload/main", self._modes),
            (r"/(.+)\.git/info/lfs/objects/batch", self._batch),
            (r"/api/models/(.+)/commit/main", self._commit),
        ):
            found = re.fullmatch(pattern, path)
            if found and found[1] in hub.repositories:
                return answer(found[1], body)
        return self._answer(404, {"error": "not here"})

    def do_PUT(self) -> None:
        """Take a large file; the address that the batch gave is the permission."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        digest = self.path.rpartition("/")[2]
        self.hub.asked.append("PUT")
        right = hashlib.sha256(body).hexdigest() == digest
        right = right and "Authorization" not in self.headers
        if right:
            self.hub.stored[digest] = body
        self._answer(200 if right else 400, {})

    def _create(self, asked: dict) -> None:
        name = f"{asked.get('organization') or OWNER}/{asked['name']}"
        new = name not in self.hub.repositories
        self.hub.repositories.setdefault(name, {})
        private = asked.get("private") or asked.get("visibility") == "private"
        self.hub.private.setdefault(name, bool(private))
        self._answer(200 if new else 409, {"url": f"{self.hub.url}/{name}"})

    def _modes(self, name: str, body: bytes) -> None:
        modes = []
        for one in json.loads(body)["files"]:
            mode = "lfs" if one["path"].endswith(self.hub.large) else "regular"
            modes.append({
                "path": one["path"],
                "uploadMode": mode,
                "shouldIgnore": False,
            })
        self._answer(200, {"files": modes})

    def _batch(self, name: str, body: bytes) -> None:
        objects = [
            one
            | {"actions": {"upload": {"href": f"{self.hub.url}/storage/{one['oid']}"}}}
            for one in json.loads(body)["objects"]
        ]
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _commit(self, name: str, body: bytes) -> None:
        files = self.hub.repositories[name]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.stored[value["oid"]]
        found = {"commitUrl": f"{self.hub.url}/{name}/commit/abc", "commitOid": "abc"}
        self._answer(200, found | {"success": True})

    def _answer(self, status: int, content: dict) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if "error" in content:
            self.send_header("X-Error-Message", content["error"])
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Serve an empty hub, for a while."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
