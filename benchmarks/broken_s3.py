"""An S3 that can be broken: moto's server, and a proxy before it that refuses or delays requests.

with open_broken_s3("models") as s3:
    s3.breakage = "503"         # or "429", "slow", "silent"; "" for sound
    s3.environment              # what reaches it
"""

import contextlib
import http.client
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SLOW_SECONDS = 5.0
REFUSALS = {
    "503": ("SlowDown", "Please reduce your request rate."),
    "429": ("TooManyRequests", "Please reduce your request rate."),
}
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
}
HOP_HEADERS = ("connection", "keep-alive", "transfer-encoding", "content-length", "date", "server")


class BrokenS3(ThreadingHTTPServer):
    """The proxy before a server. breakage: how it treats requests; num_broken: how many it did."""

    daemon_threads = True

    def __init__(self, server: tuple[str, int]) -> None:
        super().__init__(("127.0.0.1", 0), _Proxy)
        self.server, self.breakage, self.num_broken = server, "", 0

    @property
    def environment(self) -> Mapping[str, str]:
        """The variables by which a process reaches it."""
        return {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.server_address[1]}", **CREDENTIALS}


class _Proxy(BaseHTTPRequestHandler):
    server: BrokenS3
    protocol_version = "HTTP/1.1"

    def handle_request(self) -> None:
        """Refuse, delay or forward."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        breakage = self.server.breakage
        self.server.num_broken += bool(breakage)
        if breakage in REFUSALS:
            self._refuse(int(breakage), *REFUSALS[breakage])
            return
        if breakage == "slow":
            time.sleep(SLOW_SECONDS)
        # An answer that never comes, until S3 is sound again.
        while self.server.breakage == "silent":
            time.sleep(0.1)
        self._forward(body)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_request

    def _forward(self, body: bytes) -> None:
        connection = http.client.HTTPConnection(*self.server.server, timeout=60)
        with contextlib.closing(connection):
            connection.request(self.command, self.path, body, dict(self.headers))
            answer = connection.getresponse()
            data = answer.read()
            length = answer.getheader("Content-Length") if self.command == "HEAD" else None
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in HOP_HEADERS:
                    self.send_header(name, value)
            self._finish(data, length)

    def _refuse(self, status: int, code: str, message: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self._finish(f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode())

    def _finish(self, data: bytes, length: str | None = None) -> None:
        self.send_header("Content-Length", length or str(len(data)))
        with contextlib.suppress(ConnectionError):  # the client has gone, as it may
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

    def log_message(self, format: str, *arguments: object) -> None:
        """Log nothing."""


@contextmanager
def open_broken_s3(bucket: str) -> Iterator[BrokenS3]:
    """Serve an S3 with an empty bucket, and let this process use it. Raises ImportError."""
    import s3fs
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line a request
    moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    proxy = BrokenS3((str(host), int(port)))
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    before = {name: os.environ.get(name) for name in proxy.environment}
    os.environ.update(proxy.environment)
    try:
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir(bucket)
        yield proxy
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        proxy.breakage = ""
        proxy.shutdown()
        proxy.server_close()
        thread.join(10)
        moto.stop()
