"""scaling.published: converters against the tables made by hand, downloads that break off, wrong files."""
import functools
import hashlib
import http.server
import json
import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import TABLES

from runtime.basics import UserError
from scaling import published
from scaling.tables.csv import read_table

SHARED = Path(__file__).parents[2] / "shared"
RAW = SHARED / "raw"
TEXT = b"Model Size,Training FLOP,loss\n" + b"1e6,6e15,3.5\n2e6,6e16,3.0\n" * 100


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(published, "FOLDER", tmp_path / "published")
    return tmp_path / "published"


@pytest.mark.skipif(not RAW.is_dir(), reason="no raw files in ../shared/raw")
@pytest.mark.parametrize("name", ["chinchilla", "gemstones", "porian", "width_sweep"])
def test_the_tables_are_those_made_by_hand(folder, name):
    ours = read_table(published.fetch(name, RAW))
    theirs = read_table(SHARED / "oracles" / f"{TABLES[name]}.csv")
    if name == "porian":                               # the file holds five of the ten settings
        own = np.isin(theirs["config"], np.unique(ours["config"]))
        theirs = {key: column[own] for key, column in theirs.items()}
    assert list(ours) == list(theirs) and len(ours["loss"]) > 200
    assert all((ours[key] == theirs[key]).all() for key in theirs)
    beside = json.loads((folder / f"{name}.json").read_text())
    assert set(beside) == {"source", "commit", "licence", "citation", "sha256"}
    assert len(beside["sha256"]) == (9 if name == "width_sweep" else 1)


def test_the_printed_rows_of_a_notebook(tmp_path):
    text = ["some words\n", "2b832b4b 2.81 32.0 4.0 2.722962\n", "tail 0.007 0.1 0.05 8.5\n", "1 2 3\n"]
    cells = [{"outputs": [{"text": ["other 1.0 2.0 3.0 4.0\n"]}]}, {},
             {"outputs": [{"data": {}}, {"text": text}]}]
    path = tmp_path / "a.ipynb"
    path.write_text(json.dumps({"cells": cells}))
    assert list(published.datablations([path])) == [
        ("2b832b4b", 2_810_000_000, 32e9, 4e9, 2.722962), ("tail", 7_000_000, 0.1e9, 0.05e9, 8.5)]


# ---- Downloads, from a server of our own. ----

class Server(http.server.SimpleHTTPRequestHandler):
    """Files of `files`; asked for a range it answers as GitHub does. `asked` lists the ranges.

    Of the first answer no more than `most` bytes arrive.
    """

    files, asked, most = {}, [], None

    def do_GET(self):
        body = self.files.get(self.path.rsplit("/", 1)[-1])
        if body is None:
            return self.send_error(404)
        wanted = self.headers.get("Range", "bytes=0-")
        self.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-"))
        if start >= len(body):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.wfile.write(body[start:self.most if len(self.asked) == 1 else None])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(folder, monkeypatch):
    """A source `one` of one file, which a local server has."""
    sha256 = hashlib.sha256(TEXT).hexdigest()
    source = published.SOURCES["chinchilla"]._replace(files={"data/points.csv": sha256})
    monkeypatch.setitem(published.SOURCES, "one", source)
    monkeypatch.setattr(Server, "files", {"points.csv": TEXT})
    monkeypatch.setattr(Server, "asked", [])
    monkeypatch.setattr(Server, "most", None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Server)) as here:
        threading.Thread(target=here.serve_forever, daemon=True).start()
        monkeypatch.setattr(published, "SERVER", f"http://127.0.0.1:{here.server_port}")
        yield Server
        here.shutdown()


def test_a_download_is_checked_converted_and_kept(folder, server, capsys):
    published.main(["one"])
    assert "one.csv: Besiroglu et al. 2024" in capsys.readouterr().out
    table = read_table(folder / "one.csv")
    assert table["params"][:2].tolist() == [1e6, 2e6] and table["tokens"][:2].tolist() == [1e9, 5e9]
    published.main(["one"])
    assert server.asked == ["bytes=0-"]                # the second time nothing is fetched


def test_a_download_that_broke_off_goes_on(folder, server):
    (folder / "files").mkdir(parents=True)
    (folder / "files" / "points.csv.part").write_bytes(TEXT[:1000])
    published.fetch("one")
    assert server.asked == ["bytes=1000-"] and len(read_table(folder / "one.csv")["loss"]) == 200


def test_a_connection_that_ends_early_costs_nothing_that_came(folder, server):
    server.most = 1500
    with pytest.raises(UserError, match="the connection broke off; run it again"):
        published.fetch("one")
    assert not (folder / "one.csv").exists()
    published.fetch("one")
    assert server.asked == ["bytes=0-", "bytes=1500-"]
    assert (folder / "files" / "points.csv").read_bytes() == TEXT


def test_a_download_that_was_whole_when_it_was_stopped(folder, server):
    (folder / "files").mkdir(parents=True)
    (folder / "files" / "points.csv.part").write_bytes(TEXT)
    published.fetch("one")
    assert server.asked == [f"bytes={len(TEXT)}-"] and len(read_table(folder / "one.csv")["loss"]) == 200


def test_a_file_of_an_earlier_time_is_checked_again(folder, server):
    published.fetch("one")
    (folder / "files" / "points.csv").write_bytes(TEXT.replace(b"3.5", b"3.4"))
    with pytest.raises(UserError, match="points.csv has sha256 .*; nothing of it was kept"):
        published.fetch("one")
    published.fetch("one")
    assert len(server.asked) == 2 and (folder / "files" / "points.csv").read_bytes() == TEXT


def test_of_a_wrong_file_nothing_is_kept(folder, server, capsys):
    server.files = {"points.csv": TEXT[:-1]}
    with pytest.raises(SystemExit):
        published.main(["one"])
    assert "another file, or a broken one; nothing of it was kept" in capsys.readouterr().err
    assert [path.name for path in folder.rglob("*")] == ["files"]
    server.files = {"points.csv": TEXT}
    published.fetch("one")                             # and the next try is not hindered


def test_a_pickle_is_opened_only_after_its_hash_matched(folder, tmp_path, monkeypatch):
    (tmp_path / "summary_df.pickle.xz").write_bytes(b"cos\nsystem\n")
    monkeypatch.setattr("pandas.read_pickle", lambda path: pytest.fail("it was opened"))
    with pytest.raises(UserError, match="has sha256 "):
        published.fetch("porian", tmp_path)
    assert not folder.exists()


def test_without_a_network_it_names_the_way_out(folder, server, monkeypatch):
    with pytest.raises(UserError, match="Not Found; run it again"):
        server.files = {}
        published.fetch("one")
    monkeypatch.setattr(published, "SERVER", "http://127.0.0.1:9")
    hint = "refused; run it again, or without a network give --input=FOLDER, one that holds points.csv"
    with pytest.raises(UserError, match=hint):
        published.fetch("one")


def test_what_cannot_be_asked_for(folder, tmp_path):
    with pytest.raises(UserError, match="no published data 'gemstone' .did you mean 'gemstones'"):
        published.main(["gemstone"])
    with pytest.raises(UserError, match="there is no epoch_chinchilla_svg_extracted_data.csv in "):
        published.fetch("chinchilla", tmp_path)


@pytest.mark.skipif(not RAW.is_dir(), reason="no raw files in ../shared/raw")
def test_fitted_again_beside_what_was_published(folder, capsys):
    published.main(["chinchilla", "width_sweep", f"--input={RAW}", "--fit"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines[1:]] == ["inside"] * 4 + ["OUTSIDE"]
