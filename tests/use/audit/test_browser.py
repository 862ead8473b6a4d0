"""The page in a real browser: nothing sticks out at the width of a phone or a screen, nothing runs, nothing is fetched."""

import http.server
import shutil
import subprocess
import threading

import pytest

from kwise.use.audit.report import page

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not on PATH")
OPTIONS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --virtual-time-budget=4000 --hide-scrollbars"""
PROBE = """<!doctype html><body style="margin:0">
<iframe id="f" src="page.html" style="border:0;width:{width}px;height:900px"></iframe>
<script>onload = () => setTimeout(() => {{
  const inside = document.getElementById('f').contentDocument, root = inside.documentElement;
  const wide = [...inside.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > root.clientWidth + 1);
  const broken = [...inside.images].filter(i => !i.complete || !i.naturalWidth);
  document.title = ['width', root.scrollWidth, root.clientWidth, 'wide', wide.length, 'broken', broken.length,
    'images', inside.images.length, 'title', inside.title.slice(0, 8)].join(' ');
}}, 500)</script>"""


@pytest.fixture
def served(tmp_path):
    """A folder on a local port, and what was asked of it: pages and images of one origin may be measured by a script."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=tmp_path)

        def log_message(self, *args):
            asked.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield tmp_path, f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


def chromium(folder, *words):
    home = folder / "browser"
    # every name but the local one leads nowhere, so that a request to anybody else cannot even be looked up
    rules = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    command = [CHROMIUM, *OPTIONS.split(), rules, f"--user-data-dir={home}", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("which", ["one", "both"])
def test_nothing_sticks_out_runs_or_is_fetched(which, width, served, request):
    folder, address, asked = served
    (folder / "page.html").write_text(page(request.getfixturevalue(which)), encoding="utf-8")
    (folder / "probe.html").write_text(PROBE.format(width=width))
    dom = chromium(folder, "--dump-dom", f"{address}/probe.html")
    title = dom.split("<title>")[1].split("</title>")[0].split()
    assert title[:3] == ["width", str(width), str(width)]
    assert title[3:7] == ["wide", "0", "broken", "0"]
    assert int(title[8]) >= 7  # all figures are there
    assert title[-2:] == ["Audit", "of"]  # no script of the data has changed it
    assert set(asked) <= {"/probe.html", "/page.html", "/favicon.ico"}


def test_it_prints(served, both):
    folder, address, _ = served
    (folder / "page.html").write_text(page(both), encoding="utf-8")
    chromium(folder, "--no-pdf-header-footer", f"--print-to-pdf={folder / 'page.pdf'}", f"{address}/page.html")
    assert (folder / "page.pdf").read_bytes().startswith(b"%PDF-")
