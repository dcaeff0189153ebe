"""The rating page's server: one page, its images, and answers that are saved before confirmed."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import re
import secrets
import socket
import socketserver
import threading
import traceback
from http import HTTPStatus
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from ablations.hype.dumps import KINDS, HypeDump
from ablations.hype.ratings import N_EACH, RATER_ID, Ratings, Round

MAX_BODY_BYTES = 1024
COOKIE = "hype_rater"
_COOKIE = re.compile(rf"(?:^|;)\s*{COOKIE}=({RATER_ID.pattern})\s*(?:;|$)")
_COOKIE_ATTRIBUTES = "Path=/; HttpOnly; SameSite=Strict"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_POLICY = (
    "default-src 'none'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; style-src {source}; script-src {source}"
)


class Refused(Exception):
    """A request that is answered with `status` and one line instead of what it asks for."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class HypeServer(http.server.ThreadingHTTPServer):
    """Serves `ratings` at `host` and `port` (0: a free one).

    Requests come in threads of their own; what touches the ratings is called with `lock` held.
    At a loopback address, requests that name another host are refused: a website whose name is
    made to point here (DNS rebinding) cannot read or rate. At any other address the names by which
    raters reach it are not known, and all are taken.
    """

    daemon_threads = True

    def __init__(self, ratings: Ratings, host: str = "127.0.0.1", port: int = 8765) -> None:
        self.ratings, self.lock = ratings, threading.Lock()
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)
        port = self.server_address[1]
        self.url = f"http://{_bracketed(host)}:{port}/"
        names = [f"{_bracketed(name)}:{port}" for name in _LOOPBACK]
        self.hosts = set(names) if host in _LOOPBACK else None
        if self.hosts and port == 80:
            self.hosts |= {_bracketed(name) for name in _LOOPBACK}
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(Path(__file__).parent),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
        )
        self.page = environment.get_template("page.html.j2")

    def server_bind(self) -> None:
        # http.server's own looks the host's name up, which waits where there is no network.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def state(self, rater: str | None) -> dict[str, Any]:
        """What a rater's page needs to go on; never what is real, nor anyone else's answers."""
        if rater is None or not self.ratings.raters.get(rater):
            return {"state": "welcome"}
        current = self.ratings.current(rater)
        if current is None or current.complete:
            return {"state": "between" if self.ratings.unrated(rater) else "done"}
        position, total = len(current.answers), len(current.images)
        dump = self.ratings.dumps[current.label["dump"]]
        after = position + 1 < total
        return {
            "state": "rating",
            "position": position,
            "total": total,
            "width": dump.width,
            "height": dump.height,
            "image": opaque_id(rater, current, position),
            "next": opaque_id(rater, current, position + 1) if after else None,
        }

    def start(self, rater: str | None) -> tuple[str, dict[str, Any]]:
        """Begin a round, of a new rater where there is none yet; one that is begun is gone on."""
        if rater is None or rater not in self.ratings.raters:
            rater = self.ratings.new_rater()
        current = self.ratings.current(rater)
        if (current is None or current.complete) and self.ratings.unrated(rater):
            self.ratings.begin(rater)
        return rater, self.state(rater)

    def answer(self, rater: str | None, image: object, answer: object) -> dict[str, Any]:
        """Save an answer; one to the image before is a repetition whose reply was lost."""
        current = self.ratings.current(rater) if rater else None
        if rater is None or current is None:
            raise Refused(HTTPStatus.CONFLICT, "no round has begun")
        if answer not in KINDS:
            raise Refused(HTTPStatus.BAD_REQUEST, 'the answer must be "real" or "fake"')
        position = len(current.answers)
        if not current.complete and image == opaque_id(rater, current, position):
            self.ratings.answer(rater, str(answer))
        elif not position or image != opaque_id(rater, current, position - 1):
            raise Refused(HTTPStatus.CONFLICT, "that is not the image being asked for")
        return self.state(rater)

    def find_image(self, rater: str | None, identity: str) -> tuple[HypeDump, str, str]:
        """The dump, truth and file of the image being asked for or the next; no other is shown."""
        current = self.ratings.current(rater) if rater else None
        if rater is not None and current is not None:
            position = len(current.answers)
            for i in range(position, min(position + 2, len(current.images))):
                if identity == opaque_id(rater, current, i):
                    truth, name, _ = current.images[i]
                    return self.ratings.dumps[current.label["dump"]], truth, name
        raise Refused(HTTPStatus.NOT_FOUND, "no such image")


def opaque_id(rater: str, current: Round, position: int) -> str:
    """An image's name in the rater's page: a digest that neither its truth nor its file enters."""
    text = f"{rater} {current.number} {position}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def encode_alike(pixels: np.ndarray) -> bytes:
    """Uint8 (H, W, 3) as a bare PNG, uncompressed: images of one size have one length in bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=0)
    return buffer.getvalue()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: HypeServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "scorekit", ""
    timeout = 60

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def _answer(self, respond: Any) -> None:
        try:
            self._check_host()
            respond()
        except Refused as error:
            self._text(error.status, str(error))
        except ConnectionError:
            self.close_connection = True  # the page was closed; what was saved is saved
        except Exception:
            traceback.print_exc()
            self._text(HTTPStatus.INTERNAL_SERVER_ERROR, "not saved; the server's log says why")

    def _get(self) -> None:
        if "Content-Length" in self.headers or "Transfer-Encoding" in self.headers:
            raise Refused(HTTPStatus.BAD_REQUEST, "a GET has no body")
        if self.path == "/":
            nonce = secrets.token_urlsafe(16)
            policy = _POLICY.format(source=f"'nonce-{nonce}'")
            page = self.server.page.render(nonce=nonce, total=len(KINDS) * N_EACH).encode()
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", page, policy=policy)
        elif self.path == "/state":
            with self.server.lock:
                state = self.server.state(self._rater())
            self._json(state)
        elif self.path.startswith("/image/"):
            identity = self.path.removeprefix("/image/")
            with self.server.lock:
                dump, truth, name = self.server.find_image(self._rater(), identity)
            self._send(HTTPStatus.OK, "image/png", encode_alike(dump.pixels(truth, name)))
        else:
            raise Refused(HTTPStatus.NOT_FOUND, "no such page")

    def _post(self) -> None:
        body = self._body()
        rater = self._rater()
        cookie = None
        with self.server.lock:
            if self.path == "/start":
                rater, state = self.server.start(rater)
                cookie = f"{COOKIE}={rater}; Max-Age=31536000; {_COOKIE_ATTRIBUTES}"
            elif self.path == "/answer":
                state = self.server.answer(rater, body.get("image"), body.get("answer"))
            elif self.path == "/leave":
                state = self.server.state(None)
                cookie = f"{COOKIE}=; Max-Age=0; {_COOKIE_ATTRIBUTES}"
            else:
                raise Refused(HTTPStatus.NOT_FOUND, "no such page")
        self._json(state, cookie)

    def _check_host(self) -> None:
        hosts = self.headers.get_all("Host", [])
        known = self.server.hosts
        if len(hosts) != 1 or (known is not None and hosts[0].lower() not in known):
            raise Refused(HTTPStatus.MISDIRECTED_REQUEST, f"this page is at {self.server.url}")

    def _body(self) -> dict[str, Any]:
        """The JSON object of a POST from our own page: another site's cannot be one of this kind.

        A form cannot send application/json, and a script of another origin cannot send it without
        asking first, which is never granted; the browser says the origin itself.
        """
        host, origin = self.headers["Host"], self.headers.get("Origin")
        if origin not in (f"http://{host}", f"https://{host}"):
            raise Refused(HTTPStatus.FORBIDDEN, "the request comes from another page")
        if self.headers.get_content_type() != "application/json":
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the body must be application/json")
        length = self.headers.get("Content-Length", "")
        if "Transfer-Encoding" in self.headers or not (length.isascii() and length.isdigit()):
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "the body's length must be given")
        if len(length) > 9 or int(length) > MAX_BODY_BYTES:
            reason = f"at most {MAX_BODY_BYTES} bytes are read"
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, reason)
        try:
            body = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError) as error:
            raise Refused(HTTPStatus.BAD_REQUEST, "the body is not JSON") from error
        if not isinstance(body, dict):
            raise Refused(HTTPStatus.BAD_REQUEST, "the body must be a JSON object")
        return body

    def _rater(self) -> str | None:
        # Cookies know no ports: other programs' at this address may be in any form.
        found = _COOKIE.search(self.headers.get("Cookie", ""))
        return found[1] if found else None

    def _json(self, state: dict[str, Any], cookie: str | None = None) -> None:
        data = json.dumps(state).encode()
        self._send(HTTPStatus.OK, "application/json", data, cookie=cookie)

    def _text(self, status: HTTPStatus, reason: str) -> None:
        # A body that was not read must not be taken for the next request.
        self.close_connection = True
        self._send(status, "text/plain; charset=utf-8", (reason + "\n").encode())

    def _send(
        self,
        status: HTTPStatus,
        content_type: str,
        data: bytes,
        *,
        policy: str | None = None,
        cookie: str | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Security-Policy", policy or _POLICY.format(source="'none'"))
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(data)))
        if cookie is not None:
            self.send_header("Set-Cookie", cookie)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what cannot be parsed in plain text too; nothing of the request is repeated."""
        status = HTTPStatus(code)
        self.request_version = getattr(self, "request_version", "") or "HTTP/1.1"
        self._text(status, status.phrase)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing of a good request: who asks for what is the rater's own business."""


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
