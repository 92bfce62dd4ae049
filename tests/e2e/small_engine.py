"""An engine of a few megabytes that answers every question with the same words. Run in a pod by `small_kuberay`.

Standard library only. It speaks the wire of vLLM under any path that ends in `/v1/...`, and answers the probes of engine pods.
"""
# ruff: noqa: T201  (a pod's output is its log)

import json
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT = 8000
WORDS = ("it", " is", " said", " that", " nobody", " knows", " for", " sure")
GAP_SECONDS = 0.02
WEIGHTS = bytearray(b"w" * (48 << 20))
"""What makes it need more memory than the least that a pod can be given."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._whole({"object": "list", "data": []} if self.path.endswith("/models") else {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        usage = {"prompt_tokens": 8, "completion_tokens": len(WORDS), "total_tokens": 8 + len(WORDS)}
        if body.get("stream"):
            self._stream(body, usage)
            return
        time.sleep(GAP_SECONDS * len(WORDS))
        text = "".join(WORDS)
        chat = self.path.endswith("/chat/completions")
        choice = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        self._whole({**self._head(body), "choices": [{"index": 0, "finish_reason": "stop", **choice}], "usage": usage})

    def log_message(self, *_: object) -> None:
        """Not a line a request."""

    def _head(self, body: dict) -> dict:
        return {
            "id": "cmpl-1",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": body.get("model", ""),
        }

    def _whole(self, document: dict) -> None:
        data = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, body: dict, usage: dict) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        head = {**self._head(body), "object": "chat.completion.chunk"}

        def event(text: str) -> None:
            data = f"data: {text}\n\n".encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            self.wfile.flush()

        for number, word in enumerate(WORDS):
            time.sleep(GAP_SECONDS)
            delta = {"content": word, **({} if number else {"role": "assistant"})}
            event(json.dumps({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}))
        event(json.dumps({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}))
        if (body.get("stream_options") or {}).get("include_usage"):
            event(json.dumps({**head, "choices": [], "usage": usage}))
        event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")


if __name__ == "__main__":
    print(f"{len(WEIGHTS)} bytes of weights", flush=True)
    ThreadingHTTPServer(("", PORT), Handler).serve_forever()
