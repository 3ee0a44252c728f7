"""Serve a pruned model over HTTP: texts in, labels or embeddings out.

    obert export runs/mine --format sparse
    python integrations/serving/server.py runs/mine/export/sparse --port 8000
    curl -d '{"texts": ["a quiet, moving film"]}' http://127.0.0.1:8000/

Requests that wait are computed together, texts of like length in one batch. Needs
NumPy, llvmlite, safetensors and tokenizers, and neither torch nor transformers.
"""

import argparse
import json
import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from obert_modifiers.runtime import SparseEncoder

MOST_BYTES = 4_000_000  # of a request
MOST_CHARACTERS = 64_000  # of a batch; about 16,000 tokens


class Batcher:
    """Computes what several requests ask for together."""

    def __init__(
        self, encoder: SparseEncoder, labels: Sequence[str], problem: str | None = None
    ) -> None:
        """Take a model and its classes, of which one that gives embeddings has none.

        `problem` is the configuration's `problem_type`: what its logits stand for.
        """
        self._encoder, self._labels = encoder, labels
        self._several = problem == "multi_label_classification"
        self._waiting: queue.Queue[tuple[str, Future] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def answer(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """Return an answer for each text; waits for it."""
        futures: list[Future] = [Future() for _ in texts]
        for text, future in zip(texts, futures, strict=True):
            self._waiting.put((text, future))
        return [future.result() for future in futures]

    def close(self) -> None:
        """End the thread when what waits is done."""
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (first := self._waiting.get()) is not None:
            waiting = [first]
            ended = False
            while not self._waiting.empty():
                more = self._waiting.get()
                if more is None:
                    ended = True
                    break
                waiting.append(more)
            for batch in by_length(waiting):
                self._compute(batch)
            if ended:
                return

    def _compute(self, batch: Sequence[tuple[str, Future]]) -> None:
        try:
            found = self._encoder.texts([text for text, _ in batch])
            answers = [self._answer(found, row) for row in range(len(batch))]
        except Exception as error:  # the server goes on; the request says why
            for _, future in batch:
                future.set_exception(error)
            return
        for (_, future), answer in zip(batch, answers, strict=True):
            future.set_result(answer)

    def _answer(self, found: dict[str, np.ndarray], row: int) -> dict[str, Any]:
        if not self._labels:
            hidden = found["last_hidden_state"][row]
            # What is behind a sentence's end is zero in all features.
            mean = hidden[hidden.any(axis=1)].mean(axis=0)
            return {"embedding": (mean / np.linalg.norm(mean)).tolist()}
        logits = found["logits"][row]
        if self._several:
            chances = 1.0 / (1.0 + np.exp(-logits))
            return {"scores": dict(zip(self._labels, chances.tolist(), strict=True))}
        if len(logits) == 1:  # a number, not a class
            return {"score": float(logits[0])}
        power = np.exp(logits - logits.max())
        chances = power / power.sum()
        best = int(chances.argmax())
        return {"label": self._labels[best], "score": float(chances[best])}


def by_length(waiting: Sequence[tuple[str, Future]]) -> list[list[tuple[str, Future]]]:
    """Cut texts into batches, the shortest first, none too large."""
    batches: list[list[tuple[str, Future]]] = []
    size = 0
    for one in sorted(waiting, key=lambda pair: len(pair[0])):
        size += len(one[0])
        if not batches or size > MOST_CHARACTERS:
            batches.append([])
            size = len(one[0])
        batches[-1].append(one)
    return batches


def make_server(folder: Path, host: str, port: int, threads: int | None) -> Any:
    """Load a model and return a server that is not started yet."""
    encoder = SparseEncoder.load(folder, threads=threads, tell=print)
    names, problem = encoder.outputs[0].names, None
    if names == ("logits",) and encoder.outputs[0].first:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        table, problem = config.get("id2label") or {}, config.get("problem_type")
        labels = [
            table.get(str(i), f"LABEL_{i}") for i in range(encoder.width("logits"))
        ]
    elif "last_hidden_state" in names:
        labels = []
    else:
        raise SystemExit(f"{folder} gives {names}; expected a classifier or an encoder")
    batcher = Batcher(encoder, labels, problem)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._send(200, {"path": encoder.path.name, "labels": labels})

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            if length > MOST_BYTES:
                self.close_connection = True
                self._send(413, {"error": f"a request has {MOST_BYTES} bytes at most"})
                return
            try:
                texts = json.loads(self.rfile.read(length))["texts"]
                if not isinstance(texts, list) or not all(
                    isinstance(text, str) for text in texts
                ):
                    raise ValueError
            except (ValueError, KeyError, TypeError):
                self._send(400, {"error": 'expected {"texts": ["...", ...]}'})
                return
            try:
                self._send(200, {"answers": batcher.answer(texts)})
            except (ValueError, MemoryError) as error:
                self._send(422, {"error": str(error)})

        def _send(self, status: int, body: dict[str, Any]) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer((host, port), Handler)
    server.batcher = batcher
    return server


def main(words: Sequence[str] | None = None) -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--threads", type=int, default=None)
    flags = parser.parse_args(words)
    server = make_server(flags.folder, flags.host, flags.port, flags.threads)
    print(f"http://{flags.host}:{server.server_port}/", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
        server.batcher.close()


if __name__ == "__main__":
    main()
