"""The rating page over HTTP: what it gives away, and what it survives."""

import http.client
import io
import json
import re
import shutil
import threading

import numpy as np
import pytest
from PIL import Image
from rated_dump import Served, png, refused

from ablations.hype.dumps import open_dumps
from ablations.hype.ratings import Ratings
from ablations.hype.score import (
    hype_scores,
    read_ratings,
)
from ablations.hype.server import HypeServer, opaque_id

# The page's server


class Browser:
    """A rater's requests, with what a browser adds to them."""

    def __init__(self, server):
        self.server, self.cookie, self.seen = server, None, []

    def request(self, method, path, body=None, **headers):
        connection = http.client.HTTPConnection(*self.server.server_address, timeout=10)
        host = f"127.0.0.1:{self.server.server_address[1]}"
        sent = {"Host": host} | ({"Cookie": self.cookie} if self.cookie else {})
        if method == "POST":
            sent |= {"Origin": f"http://{host}", "Content-Type": "application/json"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        data = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
        if method == "POST":
            sent = {"Content-Length": str(len(data))} | sent
        for name, value in sent.items():
            if value is not None:
                connection.putheader(name, value)
        connection.endheaders(data if method == "POST" else None)
        response = connection.getresponse()
        result = response.status, dict(response.getheaders()), response.read()
        connection.close()
        if "Set-Cookie" in result[1]:
            self.cookie = result[1]["Set-Cookie"].split(";")[0]
        return result

    def post(self, path, **body):
        status, _, data = self.request("POST", path, body)
        assert status == 200, data
        return json.loads(data)

    def state(self):
        return json.loads(self.request("GET", "/state")[2])

    def truth(self, image):
        status, headers, data = self.request("GET", f"/image/{image}")
        assert status == 200, data
        self.seen.append((headers, data))
        return "fake" if np.asarray(Image.open(io.BytesIO(data))).mean() < 128 else "real"

    def rate(self, n, state, wrong=()):
        for i in range(n):
            truth = self.truth(state["image"])
            other = {"fake": "real", "real": "fake"}[truth]
            answer = other if i in wrong else truth
            state = self.post("/answer", image=state["image"], answer=answer)
        return state


@pytest.fixture
def server(opened, tmp_path):
    ratings = Ratings(tmp_path / "ratings", [opened])
    with HypeServer(ratings, port=0) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()
    ratings.close()


@pytest.fixture
def browser(server):
    return Browser(server)


def test_a_round_over_http_is_scored_as_it_was_answered(server, browser, unsynced):
    assert browser.state() == {"state": "welcome"}
    state = browser.post("/start")
    assert (state["position"], state["total"]) == (0, 100)
    assert browser.rate(100, state, wrong=range(10)) == {"state": "done"}
    row = hype_scores(read_ratings([server.ratings.directory])).iloc[0]
    wrong = row["fakes_error"] + row["reals_error"]
    assert (row["hype"], wrong, row["n_raters"]) == (10, 20, 1)
    assert browser.state() == browser.post("/start") == {"state": "done"}


def test_nothing_gives_the_truth_away(server, browser):
    state = browser.post("/start")
    keys = {"state", "position", "total", "width", "height", "image", "next"}
    truths = []
    for _ in range(20):
        assert set(state) == keys
        assert re.fullmatch("[0-9a-f]{32}", state["image"])
        truths.append(browser.truth(state["image"]))
        state = browser.post("/answer", image=state["image"], answer="real")
    assert set(truths) == {"fake", "real"}
    for headers, _ in browser.seen:
        assert set(headers) == set(browser.seen[0][0])
        assert not {"Last-Modified", "ETag", "Content-Disposition"} & set(headers)
        assert headers["Cache-Control"] == "no-store"
    assert len({len(data) for _, data in browser.seen}) == 1
    for _, data in browser.seen:  # no comment, no palette, no time
        assert re.findall(b"IHDR|IDAT|IEND|tEXt|tIME|PLTE", data) == [b"IHDR", b"IDAT", b"IEND"]
        assert b"fake" not in data and b"real" not in data


def test_only_the_image_asked_for_and_the_next_are_shown_and_only_to_their_rater(server, browser):
    first = browser.post("/start")
    other = Browser(server)
    theirs = other.post("/start")
    assert not {first["image"], first["next"]} & {theirs["image"], theirs["next"]}
    assert browser.request("GET", f"/image/{theirs['image']}")[0] == 404
    assert Browser(server).request("GET", f"/image/{first['image']}")[0] == 404
    assert browser.request("GET", f"/image/{first['next']}")[0] == 200
    rater = browser.cookie.split("=")[1]
    third = opaque_id(rater, server.ratings.current(rater), 2)
    assert browser.request("GET", f"/image/{third}")[0] == 404
    browser.post("/answer", image=first["image"], answer="real")
    assert browser.request("GET", f"/image/{first['image']}")[0] == 404
    assert other.state() == theirs  # what one does the other does not see
    assert (
        browser.request("POST", "/answer", {"image": theirs["image"], "answer": "real"})[0] == 409
    )
    assert other.state() == theirs


def test_an_answer_sent_again_counts_once_and_the_first_stands(server, browser):
    first = browser.post("/start")
    second = browser.post("/answer", image=first["image"], answer="real")
    assert browser.post("/answer", image=first["image"], answer="fake") == second
    third = browser.post("/answer", image=second["image"], answer="fake")
    assert third["position"] == 2
    assert browser.request("POST", "/answer", {"image": first["image"], "answer": "real"})[0] == 409
    (rounds,) = server.ratings.raters.values()
    assert rounds[0].answers == ["real", "fake"]
    assert browser.post("/start") == browser.state() == third


def test_handing_over_makes_another_rater(server, browser):
    browser.post("/start")
    mine = browser.cookie
    assert browser.post("/leave") == {"state": "welcome"}
    assert browser.cookie == "hype_rater="
    browser.post("/start")
    assert browser.cookie not in (mine, "hype_rater=")
    assert len(server.ratings.raters) == 2


def test_cookies_of_other_programs_do_not_hide_the_rater(browser):
    state = browser.post("/start")
    browser.cookie = f'a={{"b": [1, 2]}}; {browser.cookie}; c="\\"; d'
    assert browser.state() == state


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1", "127.0.0.1:1", "evil.example:{port}", None, "", "[::1"]
)
def test_other_hosts_are_refused(browser, host):
    port = browser.server.server_address[1]
    for method in ("GET", "POST"):
        name = None if host is None else host.format(port=port)
        status, _, data = browser.request(method, "/", Host=name)
        assert status == 421 and b"this page is at http://127.0.0.1" in data
    assert browser.request("GET", "/", Host=f"localhost:{port}")[0] == 200


def test_an_address_given_on_purpose_takes_any_host(opened, tmp_path):
    ratings = Ratings(tmp_path, [opened])
    with HypeServer(ratings, "0.0.0.0", 0) as running:
        assert running.hosts is None
    with HypeServer(ratings, "localhost", 0) as running:
        assert running.hosts is not None


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        (403, {}, {"Origin": "http://evil.example"}),
        (403, {}, {"Origin": "null"}),
        (403, {}, {"Origin": None}),
        (415, {}, {"Content_Type": "text/plain"}),
        (415, {}, {"Content_Type": "application/x-www-form-urlencoded"}),
        (413, b" " * 1025, {}),
        (413, {}, {"Content_Length": "9" * 30}),
        (411, {}, {"Content_Length": "-1"}),
        (411, {}, {"Content_Length": None}),
        (411, {}, {"Transfer_Encoding": "chunked"}),
        (400, b"{", {}),
        (400, b"[" * 1000, {}),
        (400, b"[]", {}),
    ],
)
def test_requests_that_the_page_would_not_make_are_refused(server, browser, status, body, headers):
    assert browser.request("POST", "/start", body, **headers)[0] == status
    assert server.ratings.raters == {}
    assert browser.post("/start")["state"] == "rating"


@pytest.mark.parametrize(
    "answer", ["maybe", "", None, 1, ["real"], {"real": 1}, "<script>", "real\n"]
)
def test_only_real_and_fake_are_answers(browser, answer):
    state = browser.post("/start")
    body = {"image": state["image"], "answer": answer}
    assert browser.request("POST", "/answer", body)[0] == 400
    assert browser.state() == state


@pytest.mark.parametrize(
    "path",
    [
        *("/../pyproject.toml", "/image/../../manifest.json", "/image/%2e%2e%2fmanifest.json"),
        *("/fake/00000.png", "/image/", "/image/00000.png", "/state/", "/favicon.ico"),
        *("/image//etc/passwd", "http://127.0.0.1/", "/ratings", "/manifest.json", "*"),
    ],
)
def test_there_are_no_other_paths(browser, path):
    browser.post("/start")
    assert browser.request("GET", path)[0] == 404
    assert browser.request("POST", path)[0] == 404


def test_other_methods_and_garbage_get_plain_text(server, browser):
    for method in ("PUT", "DELETE", "OPTIONS", "<script>"):
        status, headers, data = browser.request(method, "/")
        assert status in (400, 501) and headers["Content-Type"].startswith("text/plain")
        assert b"script" not in data


def test_the_page_needs_nothing_else_and_runs_nothing_else(browser):
    _, headers, data = browser.request("GET", "/")
    page = data.decode()
    policy = headers["Content-Security-Policy"]
    nonce = re.search(r"script-src 'nonce-([\w-]+)'", policy)[1]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    assert page.count(f'nonce="{nonce}"') == len(re.findall("<script|<style", page)) == 2
    assert not re.search(r"https?://|@import|url\(|\son\w+=|\sstyle=", page)
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert nonce not in browser.request("GET", "/")[2].decode()
    for word in ("NCSN", "digits"):
        assert word not in page


def test_an_image_that_changed_is_not_shown(opened, tmp_path, browser, capsys):
    copy = shutil.copytree(opened.path, tmp_path / "copy")
    (mine,) = open_dumps(copy)
    browser.server.ratings.dumps[mine.digest] = mine
    state = browser.post("/start")
    for path in copy.glob("*/*.png"):
        path.write_bytes(png(data=b"\0" * 25 * 8))
    status, _, data = browser.request("GET", f"/image/{state['image']}")
    assert status == 500 and str(copy).encode() not in data
    assert "has changed since the dump was opened" in capsys.readouterr().err


def test_a_server_killed_half_way_goes_on_and_has_lost_nothing(dump, tmp_path):
    served = Served([dump], tmp_path)
    try:
        browser = Browser(type("", (), {"server_address": ("127.0.0.1", served.port)}))
        state = browser.rate(37, browser.post("/start"), wrong=range(5))
    finally:
        served.kill()
    again = Served([dump], tmp_path, served.port)
    try:
        assert browser.state() == state
        assert browser.rate(63, state) == {"state": "done"}
    finally:
        again.kill()
    row = hype_scores(read_ratings([tmp_path])).iloc[0]
    assert (row["hype"], row["n_answers"], row["n_raters"]) == (5, 100, 1)


def test_a_port_in_use_is_one_line(server, dump, tmp_path, capsys):
    port = str(server.server_address[1])
    arguments = ["serve", str(dump), "--ratings", str(tmp_path / "r"), "--port", port]
    refused(arguments, capsys, "in use")
    refused([*arguments[:-1], "70000"], capsys, "--port 70000 must be from 0 to 65535")
