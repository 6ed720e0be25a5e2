"""A small HTTP server that stands in for an OpenAI-compatible endpoint."""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def reply(text, *, tokens=(), finish="stop"):
    """The body of a good answer. tokens: (text, logp, [(text, logp), ...]) of each."""
    listed = [
        {"token": token, "logprob": logp, "top_logprobs": [{"token": t, "logprob": v} for t, v in top]}
        for token, logp, top in tokens
    ]
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return {"choices": [choice | ({"logprobs": {"content": listed}} if tokens else {})]}


class Asked(list):
    """The requests that came: (headers, body) of each; url: where the server listens."""

    url: str = ""


@contextmanager
def serving(answer):
    """Serve until the block ends. answer(number, body) -> (status, body or raw bytes, headers), or seconds to say nothing at all."""
    asked, lock = Asked(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                asked.append((dict(self.headers), body))
                number = len(asked)
            found = answer(number, body)
            if isinstance(found, float):
                time.sleep(found)
                return
            status, said, headers = found
            raw = said if isinstance(said, bytes) else json.dumps(said).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(raw)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *rest):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    asked.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield asked
    finally:
        server.shutdown()
        server.server_close()
