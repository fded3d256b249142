"""Stand-in for the two hosts that Claude Code talks to, its token endpoint and its API, for scripts/race-real.sh.

    race-real.py PORT CERTIFICATE KEY

Refresh tokens rotate as the real ones do: each is good for one refresh, and whoever sends a used one gets `invalid_grant`. An access
token is good from the first refresh on: `at-0`, with which a race begins, never is. GET /race prints what has been counted;
`?refresh=SECONDS&answer=SECONDS` begins to count anew, with these durations.
"""

import json
import ssl
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

lock = threading.Lock()
counts = {}
times = {}


def reset(refresh, answer):
    times.update(refresh=float(refresh), answer=float(answer))
    counts.update(posts=0, invalid_grant=0, granted=0, refused=0, answered=0)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        url = urlsplit(self.path)
        if url.path != "/race":
            return self.reply(404, {"error": "not here"})
        with lock:
            if url.query:
                reset(**dict(parse_qsl(url.query)))
            self.reply(200, counts)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        path = urlsplit(self.path).path
        if path == "/v1/oauth/token":
            self.refresh(body)
        elif path == "/v1/messages":
            self.answer(json.loads(body))
        else:
            self.reply(404, {"error": "not here"})

    def refresh(self, body):
        try:
            body = json.loads(body)
        except ValueError:
            body = dict(parse_qsl(body.decode()))
        with lock:
            counts["posts"] += 1
            is_good = body.get("refresh_token") == f"rt-{counts['granted']}"
            counts["granted" if is_good else "invalid_grant"] += 1
            number = counts["granted"]
        time.sleep(times["refresh"])
        if not is_good:
            return self.reply(400, {"error": "invalid_grant", "error_description": "Refresh token not found or invalid"})
        self.reply(200, {
            "token_type": "Bearer", "access_token": f"at-{number}", "refresh_token": f"rt-{number}", "expires_in": 28800,
            "scope": "user:inference user:profile",
        })

    def answer(self, request):
        token = self.headers.get("authorization", "").removeprefix("Bearer at-")
        with lock:
            is_good = token.isdigit() and 0 < int(token) <= counts["granted"]
            counts["answered" if is_good else "refused"] += 1
        if not is_good:
            why = {"type": "authentication_error", "message": "OAuth token has expired."}
            return self.reply(401, {"type": "error", "error": why})
        time.sleep(times["answer"])
        message = {"id": "msg_1", "type": "message", "role": "assistant", "model": request.get("model"), "content": [],
                   "stop_reason": None, "stop_sequence": None, "usage": {"input_tokens": 3, "output_tokens": 1}}
        if not request.get("stream"):
            return self.reply(200, {**message, "content": [{"type": "text", "text": "hello"}], "stop_reason": "end_turn"})
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True
        for kind, event in [
            ("message_start", {"message": message}),
            ("content_block_start", {"index": 0, "content_block": {"type": "text", "text": ""}}),
            ("content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": "hello"}}),
            ("content_block_stop", {"index": 0}),
            ("message_delta", {"delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": {"output_tokens": 3}}),
            ("message_stop", {}),
        ]:
            self.wfile.write(f"event: {kind}\ndata: {json.dumps({'type': kind, **event})}\n\n".encode())


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def finish_request(self, request, client_address):
        # The handshake in the connection's own thread.
        with context.wrap_socket(request, server_side=True) as wrapped:
            super().finish_request(wrapped, client_address)

    def handle_error(self, *_):
        pass  # a claude that was ended


reset(1, 1)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[2], sys.argv[3])
Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
