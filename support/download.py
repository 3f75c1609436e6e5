"""Files from the network: verified, within limits of time and size, and one line for whatever goes wrong."""

if __name__ == "__main__":
    raise SystemExit("support/download.py is a module, not a script: every script uses it")

import hashlib
import threading
import time
import urllib.request
from http.client import HTTPException
from urllib.error import HTTPError

from tqdm import tqdm

SLOWEST = 10_000  # bytes per second, on average after the GRACE; a slower server is given up
GRACE = 30  # seconds
LARGEST = 200_000_000  # bytes


def fetch_verified(urls, md5):
    """The bytes with this md5 sum from the first of the addresses that has them. Raises OSError with the last's failure."""
    failure = OSError("no address is known")
    for url in urls:
        try:
            content = fetch(url)
        except (OSError, HTTPException, ValueError) as error:
            failure = OSError(f"{url}: {error}")
            continue
        digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if digest == md5:
            return content
        failure = OSError(f"{url}: a wrong or incomplete file: {len(content):,} bytes with md5 {digest}, expected {md5}")
    raise failure


def fetch(url):
    """The bytes at `url`. Raises OSError, HTTPException or ValueError; TimeoutError for a server below SLOWEST.

    A thread receives them, since no timeout of a socket limits a server that sends a byte now and then.
    """
    chunks, errors, given_up = [], [], threading.Event()

    def receive():
        try:
            with urllib.request.urlopen(url, timeout=GRACE) as response:
                bar.total = response.length
                while (chunk := response.read1(2**16)) and not given_up.is_set():
                    chunks.append(chunk)
        except Exception as error:
            if isinstance(error, HTTPError):
                error.close()  # it is an open connection as well
            errors.append(error)

    thread, start = threading.Thread(target=receive, daemon=True), time.monotonic()
    with tqdm(desc=url.rpartition("/")[2], unit="B", unit_scale=True, leave=False, disable=None) as bar:
        thread.start()
        try:
            while thread.is_alive():
                thread.join(0.1)
                size, seconds = sum(map(len, chunks)), time.monotonic() - start
                bar.update(size - bar.n)
                if size < SLOWEST * (seconds - GRACE):
                    raise TimeoutError(f"given up after {seconds:.0f} s, in which it sent {size:,} bytes")
                if size > LARGEST:
                    raise ValueError(f"given up, since it is larger than {LARGEST:,} bytes")
        finally:
            given_up.set()
    if errors:
        raise errors[0]
    return b"".join(chunks)
