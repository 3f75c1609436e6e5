"""Downloads from servers that misbehave: given up in one line, with nothing left behind."""

import hashlib
import http.server
import os
import subprocess
import sys
import threading
import time

import pytest
from conftest import command, environment, one_line

import data
from support import dataset_files, download

CONTENT = bytes(range(256)) * 400
MD5 = hashlib.md5(CONTENT).hexdigest()


class Mirror(http.server.BaseHTTPRequestHandler):
    """Behaves as the first part of the path says."""

    def do_GET(self):
        how = self.path.split("/")[1] if self.path.startswith("/") else "slow"  # as a proxy it is asked for whole addresses
        if how == "header":
            return self.trickle(b"x")
        if how == "missing":
            return self.send_error(404)
        content = {"html": b"<html>not found</html>", "damaged": CONTENT[:-1] + b"x", "endless": b""}.get(how, CONTENT)
        self.send_response(200)
        if how != "endless":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if how == "slow":
            return self.trickle(content)
        if how == "endless":
            return self.trickle(bytes(2**20), pause=0)
        self.wfile.write(content[:1000] if how == "cut" else content)

    def trickle(self, content, pause=0.05):
        """Send byte after byte, or without a pause the whole again and again, until the client has gone."""
        try:
            while not self.server.ending:
                self.wfile.write(content[:1] if pause else content)
                time.sleep(pause)
        except OSError:
            pass

    def log_message(self, *ignored):
        pass


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
    server.ending = False
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.ending = True
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_file_with_the_right_md5_is_taken_from_the_first_that_has_it(server):
    assert download.fetch_verified([f"{server}/{how}/file" for how in ("missing", "damaged", "good", "cut")], MD5) == CONTENT


@pytest.mark.parametrize(("how", "message"), [
    ("missing", "HTTP Error 404"), ("damaged", "a wrong or incomplete file: 102,400 bytes with md5"),
    ("html", "a wrong or incomplete file: 22 bytes with md5"), ("cut", "a wrong or incomplete file: 1,000 bytes with md5"),
    ("slow", "given up after 0 s, in which it sent"), ("header", "given up after 0 s, in which it sent 0 bytes"),
    ("endless", "given up, since it is larger than"),
])  # fmt: skip
def test_a_server_that_misbehaves(how, message, server, monkeypatch, tmp_path):
    """Of every kind: one line, soon, no digits in place of the dataset, and nothing left."""
    from torchvision.datasets import FashionMNIST

    monkeypatch.setattr(download, "GRACE", 0.3)
    monkeypatch.setattr(download, "LARGEST", 5_000_000)
    monkeypatch.setattr(FashionMNIST, "mirrors", [f"{server}/{how}/"])
    start = time.monotonic()
    with pytest.raises(dataset_files.DataError, match="could not be downloaded") as error:
        data.load(data_dir=str(tmp_path / "new"), offline_fallback=False)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert time.monotonic() - start < 5
    assert not list(tmp_path.iterdir())


def test_a_server_that_is_not_there():
    with pytest.raises(OSError, match="refused"):
        download.fetch_verified(["http://127.0.0.1:9/file"], MD5)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM")
def test_sigterm_during_a_download_leaves_nothing(server, tmp_path):
    variables = environment() | {"http_proxy": server, "https_proxy": server}
    process = subprocess.Popen(command("data", "--data-dir", "new"), cwd=tmp_path, env=variables, text=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)  # fmt: skip
    while not (tmp_path / "new").exists():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.2)
    process.terminate()
    _, errors = process.communicate()
    assert (process.returncode, errors.strip().splitlines()[-1]) == (130, "interrupted")
    assert not os.listdir(tmp_path)


def test_a_folder_below_a_file_is_an_error(run_script, tmp_path):
    (tmp_path / "file").write_text("x")
    line = one_line(run_script("data", "--data-dir", "file/x"), 1)
    assert line == "data.py: --data-dir file/x: file is a file; name a folder"


def test_a_file_that_cannot_be_the_datasets_is_not_read(tmp_path):
    for name in dataset_files.FILES:
        with (tmp_path / name).open("wb") as file:
            file.truncate(100 * 2**30)  # 100 GB, none of which is on the disk
    for name in dataset_files.CSV_FILES.values():
        with (tmp_path / name).open("wb") as file:
            file.truncate(100 * 2**30)
    with pytest.raises(dataset_files.DataError, match="107,374,182,400 bytes, more than any file of Fashion-MNIST"):
        data.load(data_dir=str(tmp_path))
    with pytest.raises(dataset_files.DataError, match="107,374,182,400 bytes, more than any file of Fashion-MNIST"):
        dataset_files.read_csv(tmp_path / dataset_files.CSV_FILES["train"], "train", 60_000)
