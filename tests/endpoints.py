"""A small HTTP server that stands in for an OpenAI-compatible endpoint."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def reply(text, *, tokens=(), finish="stop"):
    """The body of a good answer. tokens: (text, logp, [(text, logp), ...]) of each."""
    listed = [
        {"token": token, "logprob": logp, "top_logprobs": [{"token": t, "logprob": v} for t, v in top]}
        for token, logp, top in tokens
    ]
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return {"choices": [choice | ({"logprobs": {"content": listed}} if tokens else {})]}


def said(text, **more):
    """A good answer. more: as `reply` has it."""
    return 200, reply(text, **more)


class Server:
    """Answers with `replies` in turn, the last one for ever: (status, body or raw bytes) and headers where there are some, a number of
    seconds to say nothing at all, or a function from what is asked to one of these.

    seen: the path and the body of each request. headers: of each. most: how many were under way at a time.
    """

    def __init__(self, *replies):
        self.replies, self.seen, self.headers, self.most, self.busy = list(replies), [], [], 0, 0
        lock, server = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    server.busy += 1
                    server.most = max(server.most, server.busy)
                    server.seen.append((self.path, body))
                    server.headers.append(dict(self.headers))
                    found = server.replies.pop(0) if len(server.replies) > 1 else server.replies[0]
                try:
                    self.answer(found(body) if callable(found) else found)
                finally:
                    with lock:
                        server.busy -= 1

            def answer(self, found):
                if isinstance(found, float):
                    time.sleep(found)
                    return
                status, answer, *more = found
                with contextlib.suppress(OSError):  # who asked is gone
                    self.send_response(status)
                    for name, value in (more[0] if more else {}).items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(answer if isinstance(answer, bytes) else json.dumps(answer).encode())

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self):
        self.http.shutdown()
        self.http.server_close()


@contextlib.contextmanager
def serving(*replies):
    """A server until the block ends."""
    server = Server(*replies)
    try:
        yield server
    finally:
        server.stop()
