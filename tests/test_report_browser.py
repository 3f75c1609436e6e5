"""report.py's page in headless Chromium: both themes, a phone's width, A4 paper, and nothing in the console."""

import re
import shutil
import subprocess

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@pytest.fixture(scope="module")
def browse(tmp_path_factory):
    """browse(file, *flags): the output of headless Chromium that opens the file; the test is skipped where there is none."""
    if not BROWSER:
        pytest.skip("needs Chromium: apt-get install chromium")
    profile = tmp_path_factory.mktemp("profile")

    def browse(path, *flags):
        line = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr",
                f"--user-data-dir={profile}", *flags, f"file://{path}"]  # fmt: skip
        done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=True)
        return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    return browse


def test_a_browser_shows_the_page_in_both_themes_without_an_error(browse, built_page, tmp_path):
    from matplotlib.image import imread

    (tmp_path / "page.html").write_text(built_page, encoding="utf-8")
    shown = {}
    for theme, number in (("light", 1), ("dark", 0)):
        _, console = browse(tmp_path / "page.html", f"--blink-settings=preferredColorScheme={number}",
                            "--window-size=1280,1600", f"--screenshot={tmp_path / theme}.png")  # fmt: skip
        assert console == []
        shown[theme] = imread(tmp_path / f"{theme}.png")[..., :3]
        assert shown[theme].shape == (1600, 1280, 3)
    assert shown["light"].mean() > 0.85
    assert shown["dark"].mean() < 0.3


def test_an_error_in_the_console_is_seen(browse, built_page, tmp_path):
    page = built_page.replace("<main>", "<main><script>1</script><img src='https://example.org/x.png' alt=''>")
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    _, console = browse(tmp_path / "page.html", f"--screenshot={tmp_path}/x.png")
    assert len(console) == 2


FRAME = """<iframe id="frame" src="NAME.html" style="width: 360px; height: 640px"></iframe>
<script>onload = () => { let root = document.getElementById("frame").contentDocument.documentElement;
                         document.body.textContent = `${root.scrollWidth} of ${root.clientWidth}` }</script>"""


def test_a_phone_does_not_scroll_sideways(browse, built_page, tmp_path):
    (tmp_path / "page.html").write_text(built_page, encoding="utf-8")
    (tmp_path / "wide.html").write_text("<p style='width: 700px'>x", encoding="utf-8")
    for name, fits in (("page", True), ("wide", False)):
        (tmp_path / "frame.html").write_text(FRAME.replace("NAME", name), encoding="utf-8")
        dom, _ = browse(tmp_path / "frame.html", "--dump-dom", "--disable-web-security", "--allow-file-access-from-files")
        wide, available = map(int, re.search(r"(\d+) of (\d+)", dom).groups())
        assert available > 300
        assert (wide <= available) is fits


def test_it_prints_on_a4(browse, built_page, tmp_path):
    (tmp_path / "page.html").write_text(built_page, encoding="utf-8")
    browse(tmp_path / "page.html", "--no-pdf-header-footer", f"--print-to-pdf={tmp_path}/page.pdf")
    sizes = re.findall(rb"/MediaBox\s*\[0 0 ([\d.]+) ([\d.]+)\]", (tmp_path / "page.pdf").read_bytes())
    assert 3 < len(sizes) < 20
    assert {(round(float(width)), round(float(height))) for width, height in sizes} == {(595, 842)}
