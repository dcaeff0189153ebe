"""Human evaluation: dumps of strangers, rounds that survive a kill, what the page gives away."""

import hashlib
import http.client
import io
import json
import re
import shutil
import stat
import struct
import threading
import zipfile
import zlib
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from places import SHARED
from rated_dump import Served, make_dump

from ablations.engine.frames import make_frame
from ablations.hype import score
from ablations.hype.__main__ import main
from ablations.hype.dumps import open_dumps, pack_dumps
from ablations.hype.ratings import Ratings, choose_images
from ablations.hype.score import (
    RATING_COLUMNS,
    bootstrap_std,
    hype_scores,
    hype_table,
    read_ratings,
)
from ablations.hype.server import HypeServer, opaque_id
from ablations.reporting.page import rich
from ablations.reporting.table_files import markdown, save_table
from scorekit.files import CorruptFile


@pytest.fixture(scope="session")
def dump(tmp_path_factory):
    return make_dump(tmp_path_factory.mktemp("dump") / "digits-ncsnv2")


@pytest.fixture(scope="session")
def opened(dump):
    return open_dumps(dump)[0]


@pytest.fixture
def unsynced(monkeypatch):
    """Do without waiting for the disk, in tests of something else."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def ratings_of(fakes_wrong, reals_wrong, complete=True, dump="d"):
    label = {"dump": dump, "name": "x", "model": "NCSN", "dataset": "digits"}
    counts = {"n_fakes": 50, "n_reals": 50, "n_answers": 100, "complete": complete}
    rows = [
        label | counts | {"rater": str(i), "fakes_wrong": f, "reals_wrong": r}
        for i, (f, r) in enumerate(zip(fakes_wrong, reals_wrong, strict=True))
    ]
    return make_frame(RATING_COLUMNS, rows)


def finish(ratings, rater, choose=lambda truth: truth):
    current = ratings.begin(rater)
    for truth, _, _ in current.images:
        ratings.answer(rater, choose(truth))
    return current


# The score


def test_scores_are_the_shares_called_wrong():
    row = hype_scores(ratings_of([10, 20, 30], [5, 5, 20])).iloc[0]
    assert row["fakes_error"] == pytest.approx(40)
    assert row["reals_error"] == pytest.approx(20)
    assert row["hype"] == pytest.approx(30)
    assert (row["n_raters"], row["n_answers"], row["n_incomplete"]) == (3, 300, 0)


@pytest.mark.parametrize(
    ("choose", "expected"),
    [
        (lambda truth: truth, (0, 0, 0)),
        (lambda truth: "real", (50, 100, 0)),
        (lambda truth: "fake", (50, 0, 100)),
        (lambda truth: {"fake": "real", "real": "fake"}[truth], (100, 100, 100)),
    ],
)
def test_raters_of_known_habits_get_their_scores(opened, tmp_path, unsynced, choose, expected):
    ratings = Ratings(tmp_path, [opened])
    finish(ratings, ratings.new_rater(), choose)
    row = hype_scores(read_ratings([tmp_path])).iloc[0]
    assert (row["hype"], row["fakes_error"], row["reals_error"]) == expected
    assert np.isnan(row["std"])  # one rater says nothing of the spread over raters


def test_the_bootstrap_is_the_deviation_of_a_mean():
    values = np.random.default_rng(0).normal(30, 5, 40)
    closed_form = values.std() / np.sqrt(len(values))
    assert bootstrap_std(values, 20_000, seed=0) == pytest.approx(closed_form, rel=0.03)
    assert bootstrap_std(values, 100, seed=1) == bootstrap_std(values, 100, seed=1)
    assert bootstrap_std(values, 100, seed=1) != bootstrap_std(values, 100, seed=2)
    assert bootstrap_std(np.full(9, 7.0), 100, seed=0) == pytest.approx(0, abs=1e-9)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=2, max_size=30))
@settings(max_examples=30, deadline=None)
def test_the_score_is_the_mean_of_both_errors(wrong):
    fakes, reals = zip(*wrong, strict=True)
    row = hype_scores(ratings_of(fakes, reals), n_bootstrap=10).iloc[0]
    assert row["hype"] == pytest.approx((row["fakes_error"] + row["reals_error"]) / 2)
    assert row["fakes_error"] == pytest.approx(100 * sum(fakes) / (50 * len(fakes)))
    assert 0 <= row["hype"] <= 100 and row["std"] >= 0


def test_unfinished_raters_are_left_out_and_counted():
    whole, part = ratings_of([10], [10]), ratings_of([50, 50], [50, 50], complete=False)
    row = hype_scores(pd.concat([whole, part])).iloc[0]
    assert (row["hype"], row["n_raters"], row["n_incomplete"]) == (20, 1, 2)
    only = hype_table(hype_scores(part))
    assert only.kinds[0] == "pending"
    assert only.display["Source"][0] == "not rated yet; 2 unfinished left out"
    assert only.display["HYPE∞(%)"][0] == "—"


def test_the_table_has_table_5s_columns_and_rows_and_every_dump(opened, tmp_path):
    rated = ratings_of([10, 20], [5, 5])
    table = hype_table(hype_scores(rated, [opened]))
    wanted = ["Model", "HYPE∞(%)", "Fakes Error(%)", "Reals Error(%)", "Std."]
    assert list(table.display.columns[1:6]) == wanted
    assert table.kinds == ("pending", "ours", *["paper"] * 6)
    assert list(table.display["Source"][:2]) == ["not rated yet", "rated here"]
    assert set(table.display["Source"][2:]) == {"paper (Table 5)"}
    last = table.display.iloc[-1]
    assert list(last[wanted]) == ["NCSNv2", "37.3", "49.8", "24.8", "0.5"]
    for path in save_table(table, tmp_path):
        assert path.name.startswith("table5.") and path.stat().st_size
    assert r"HYPE$\infty$(\%)" in (tmp_path / "table5.tex").read_text()


def test_two_runs_of_the_same_settings_are_told_apart(opened, tmp_path):
    other = open_dumps(make_dump(tmp_path / opened.name, key=1))[0]
    models = list(hype_table(hype_scores(read_ratings([]), [opened, other])).display["Model"][:2])
    expected = [f"NCSNv2, seed 0, denoised ({dump.digest[:8]})" for dump in (opened, other)]
    assert sorted(models) == sorted(expected)


def test_without_ratings_there_are_the_papers_rows_alone():
    table = hype_table(hype_scores(read_ratings([])))
    assert set(table.kinds) == {"paper"} and len(table.display) == 6


def test_the_quoted_scores_are_the_means_of_their_errors():
    for model, hype, fakes, reals, _ in score.HYPE:
        assert hype == pytest.approx((fakes + reals) / 2, abs=0.0501), model


def test_the_quoted_scores_are_the_papers():
    paper = SHARED / "papers/ncsnv2.txt"
    if not paper.exists():
        pytest.skip("the paper's text is not beside this checkout")
    table = paper.read_text().split("Table 5: HYPE")[1]
    for model, *values in score.HYPE:
        line = re.search(rf"^{re.escape(model.split()[0])}\b.*$", table, re.MULTILINE)
        assert line, model
        assert [float(v) for v in line[0].split("\t")[1:]] == values


# Rounds and their files


def test_a_round_is_fifty_of_each_in_an_order_that_only_the_seed_decides(opened):
    chosen = choose_images(opened, seed=3)
    assert Counter(kind for kind, _, _ in chosen) == {"fake": 50, "real": 50}
    assert len(set(chosen)) == 100
    assert choose_images(opened, seed=3) == chosen != choose_images(opened, seed=4)
    first = [kind for seed in range(400) for kind, _, _ in choose_images(opened, seed)[:1]]
    assert 150 < first.count("fake") < 250  # 5 standard deviations of a fair coin


def test_images_that_were_seen_come_only_where_there_are_no_others(opened):
    seen = {digest for _, _, digest in choose_images(opened, seed=0)}
    again = choose_images(opened, seed=1, seen=seen)
    assert len([image for image in again if image[2] in seen]) == 100 - 2 * 10


def test_dumps_are_rated_by_as_many_and_by_nobody_twice(opened, tmp_path, unsynced):
    others = [open_dumps(make_dump(tmp_path / str(k), key=k))[0] for k in (1, 2)]
    ratings = Ratings(tmp_path / "ratings", [opened, *others])
    rated = []
    for _ in range(3):
        rater = ratings.new_rater()
        for _ in range(2):
            rated.append((rater, finish(ratings, rater).label["dump"]))
    assert len(set(rated)) == 6
    assert Counter(Counter(dump for _, dump in rated).values()) == {2: 3}
    raters = [ratings.new_rater() for _ in range(3)]
    begun = {ratings.begin(rater).label["dump"] for rater in raters}
    assert len(begun) == 3  # raters at work at once are spread too


def test_the_choice_is_saved_with_its_seed_and_can_be_made_again(opened, tmp_path):
    ratings = Ratings(tmp_path, [opened], seed=5)
    rater = ratings.new_rater()
    ratings.begin(rater)
    record = json.loads((tmp_path / f"{rater}.jsonl").read_text())
    assert [tuple(i) for i in record["images"]] == choose_images(opened, record["seed"])
    assert record["dump"]["dump"] == opened.digest


@given(cut=st.integers(0, 10_000))
@settings(max_examples=12, deadline=None)
def test_a_file_cut_anywhere_goes_on_behind_its_last_whole_line(opened, tmp_path_factory, cut):
    directory = tmp_path_factory.mktemp("cut")
    ratings = Ratings(directory, [opened])
    rater = ratings.new_rater()
    first = ratings.begin(rater)
    for truth, _, _ in first.images[:20]:
        ratings.answer(rater, truth)
    ratings.close()
    path = directory / f"{rater}.jsonl"
    data = path.read_bytes()[: -1 - cut % (path.stat().st_size - 1)]
    path.write_bytes(data)
    again = Ratings(directory, [opened])
    if data.count(b"\n") == 0:
        again.begin(rater)
    else:
        assert again.current(rater).images == first.images
    left = len(again.current(rater).answers)
    assert left == max(data.count(b"\n") - 1, 0)
    again.answer(rater, "real")
    again.close()
    third = Ratings(directory, [opened])
    assert third.current(rater).answers == [t for t, _, _ in first.images[:left]] + ["real"]
    third.close()


@pytest.mark.parametrize(
    "line",
    [
        '{"round": 0, "position": 7, "answer": "real"}',
        '{"round": 0, "position": 0, "answer": "maybe"}',
        '{"round": 1, "dump": {}, "seed": 0, "images": []}',
        "[" * 100_000,
        "null",
    ],
)
def test_a_damaged_file_of_a_rater_is_named(opened, tmp_path, line):
    ratings = Ratings(tmp_path, [opened])
    rater = ratings.new_rater()
    ratings.begin(rater)
    ratings.close()
    with open(tmp_path / f"{rater}.jsonl", "a") as file:
        file.write(line + "\n")
    with pytest.raises(CorruptFile, match="line 2 is no round and no answer"):
        read_ratings([tmp_path])


def test_what_cannot_be_saved_is_not_there_when_it_is_sent_again(opened, tmp_path, monkeypatch):
    ratings = Ratings(tmp_path, [opened])
    rater = ratings.new_rater()
    ratings.begin(rater)

    def full(descriptor):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="no space"):
            ratings.answer(rater, "real")
    ratings.answer(rater, "fake")
    ratings.close()
    assert Ratings(tmp_path, [opened]).current(rater).answers == ["fake"]


def test_one_server_at_a_time_has_the_folder(opened, tmp_path):
    first = Ratings(tmp_path, [opened])
    with pytest.raises(ValueError, match="in use by another server"):
        Ratings(tmp_path, [opened])
    first.close()
    Ratings(tmp_path, [opened]).close()


def test_a_dump_that_is_too_small_or_given_twice_is_refused(dump, opened, tmp_path):
    small = open_dumps(make_dump(tmp_path / "small", n=49))
    with pytest.raises(ValueError, match="49 fakes and reals; a round needs 50 each"):
        Ratings(tmp_path / "ratings", small)
    with pytest.raises(ValueError, match="the same dump as"):
        Ratings(tmp_path / "ratings", [opened, opened])


# Dumps, a stranger's too


def test_a_zip_has_the_same_bytes_each_time_and_is_the_same_dump(dump, opened, tmp_path):
    copy = shutil.copytree(dump, tmp_path / "x" / dump.name)
    first = pack_dumps([opened], tmp_path / "a.zip").read_bytes()
    assert pack_dumps(open_dumps(copy), tmp_path / "b.zip").read_bytes() == first
    (packed,) = open_dumps(tmp_path / "a.zip")
    assert (packed.digest, packed.label, packed.images) == (
        opened.digest,
        opened.label,
        opened.images,
    )
    entry = packed.manifest["images"][7]
    for kind in ("fake", "real"):
        data = (dump / kind / entry["file"]).read_bytes()
        assert entry[f"{kind}_sha256"] == hashlib.sha256(data).hexdigest()
        assert np.array_equal(packed.pixels(kind, entry["file"]), Image.open(io.BytesIO(data)))
    assert pack_dumps([packed], tmp_path / "c.zip").read_bytes() == first
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:  # no clock and no zlib in the bytes
        members = {(m.date_time, m.compress_type) for m in archive.infolist()}
    assert members == {((1980, 1, 1, 0, 0, 0), zipfile.ZIP_STORED)}


def test_one_zip_holds_several_dumps(opened, tmp_path, capsys):
    other = make_dump(tmp_path / "other", key=1)
    out = tmp_path / "both.zip"
    assert main(["zip", str(opened.path), str(other), "--out", str(out)]) == 0
    assert "120 fakes, 120 reals" in capsys.readouterr().out
    assert [dump.name for dump in open_dumps(out)] == [opened.name, "other"]
    Ratings(tmp_path / "ratings", open_dumps(out)).close()
    assert main(["score", str(out), str(tmp_path / "ratings")]) == 0
    assert capsys.readouterr().out.count("not rated yet") == 2


def add(archive, name, data=b"", mode=stat.S_IFREG | 0o644):
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, mode << 16
    archive.writestr(info, data)


def png(width=8, height=8, depth=8, colour=2, data=b""):
    def chunk(name, body):
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    ("name", "mode", "message"),
    [
        ("../evil.png", stat.S_IFREG, "is not NAME/manifest.json"),
        ("/etc/passwd", stat.S_IFREG, "is not NAME/manifest.json"),
        ("d/fake/../../x.png", stat.S_IFREG, "is not NAME/manifest.json"),
        ("d\\fake\\x.png", stat.S_IFREG, "is not NAME/manifest.json"),
        ("d/fake/<b>.png", stat.S_IFREG, "is not NAME/manifest.json"),
        ("d/fake/\x1b[31m.png", stat.S_IFREG, r"'d/fake/\x1b[31m.png' is not NAME"),
        ("d/fake/99999.png", stat.S_IFLNK | 0o777, "is a symbolic link"),
        ("d/manifest.json", stat.S_IFREG, "two members have the same name"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_hostile_members_of_a_zip_are_refused(opened, tmp_path, capsys, name, mode, message):
    path = pack_dumps([opened], tmp_path / "d.zip")
    with zipfile.ZipFile(path, "a") as archive:
        target = name.replace("d/manifest", f"{opened.name}/manifest")
        add(archive, target, b"/etc/passwd", mode)
    refused(["serve", str(path)], capsys, message)


def refused(arguments, capsys, message):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and len(error) < 700
    assert message in error


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"<svg onload=alert(1)>", "fake/00003.png is not a PNG"),
        (b"", "fake/00003.png is not a PNG"),
        (png(100_000, 100_000), "100000×100000 pixels; at most 1024 a side"),
        (png(0, 8), "0×8 pixels"),
        (png(9, 8, data=b"\0" * 28 * 8), "9×8 pixels, others 8×8: the size would give"),
        (png(8, 8, colour=3), "is not 8-bit grey or RGB"),
        (png(8, 8, depth=16), "is not 8-bit grey or RGB"),
        (png(8, 8, data=b"\0" * 10), "fake/00003.png cannot be decoded"),
        (png()[:60], "fake/00003.png cannot be decoded"),
        (png() + b"\0" * 2**24, "larger than 16,777,216 bytes"),
    ],
)
def test_hostile_images_are_refused(dump, tmp_path, capsys, data, message):
    copy = shutil.copytree(dump, tmp_path / "copy")
    (copy / "fake" / "00003.png").write_bytes(data)
    refused(["zip", str(copy)], capsys, message)
    assert list(tmp_path.iterdir()) == [copy]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "must list 1 to 100,000 images"),
        ('{"images": []}', "must list 1 to 100,000 images"),
        ('{"images": [7]}', "names an image None"),
        ('{"images": [{"file": "../../secret.png"}]}', "names an image '../../secret.png'"),
        ('{"images": [{"file": "/etc/passwd"}]}', "names an image '/etc/passwd'"),
        ('{"images": [{"file": "a.png\\n"}]}', r"names an image 'a.png\n'"),
        ('{"images": [{"file": "00000.png"}, {"file": "00000.png"}]}', "an image twice"),
        ('{"images": [{"file": "77777.png"}]}', "fake/77777.png is missing"),
        ('{"images": [{"file": "00000.png", "real_sha256": "0"}]}', "does not have the SHA-256"),
    ],
)
def test_hostile_manifests_are_refused(dump, tmp_path, capsys, text, message):
    copy = shutil.copytree(dump, tmp_path / "copy")
    (copy / "manifest.json").write_text(text)
    refused(["score", str(copy)], capsys, message)


@pytest.mark.parametrize("where", ["fake/00000.png", "fake", "manifest.json"])
def test_symbolic_links_are_refused(dump, tmp_path, capsys, where):
    copy = shutil.copytree(dump, tmp_path / "copy")
    (copy / where).rename(tmp_path / "elsewhere")
    (copy / where).symlink_to(tmp_path / "elsewhere")
    refused(["serve", str(copy)], capsys, "is a symbolic link; a dump holds plain files only")


@given(position=st.integers(0, 10**6), value=st.integers(0, 255))
@settings(max_examples=40, deadline=None)
def test_a_damaged_zip_is_refused_in_one_line_or_says_the_same(
    opened, tmp_path_factory, position, value
):
    path = pack_dumps([opened], tmp_path_factory.mktemp("zip") / "d.zip")
    data = bytearray(path.read_bytes())
    data[position % len(data)] = value
    path.write_bytes(data)
    found = images_or_reason(path)
    assert found == [opened.images] or "\n" not in found


def images_or_reason(path):
    try:
        return [dump.images for dump in open_dumps(path)]
    except ValueError as error:
        return str(error)


def test_no_zip_is_no_dump(tmp_path, capsys):
    (tmp_path / "x.zip").write_bytes(b"PK\3\4 no")
    refused(["serve", str(tmp_path / "x.zip")], capsys, "cannot be read as a zip")
    refused(["serve", str(tmp_path / "absent")], capsys, "no such dump")


def test_a_strangers_words_are_text(tmp_path, capsys):
    words = "<script>alert(1)</script>|*\x1b[31m\n" + "x" * 500
    dump = make_dump(tmp_path / "d", variant=words, dataset=["<b>"], seed="<i>", denoise=None)
    (opened,) = open_dumps(dump)
    table = hype_table(hype_scores(read_ratings([]), [opened]))
    assert r"\<script\>alert(1)\</script\>\|\*" in markdown(table)
    assert "\x1b" not in markdown(table) and "x" * 100 not in markdown(table)
    assert "<script" not in rich(table.display["Model"][0])
    assert table.display["Dataset"][0] == "—"


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
