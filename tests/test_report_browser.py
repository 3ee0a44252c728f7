"""The report in a real browser: nothing is wider than the screen."""

import re
import shutil
import subprocess

import pytest

from obert_modifiers.report.write import write_report
from tests.test_report import three_runs, with_weights

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
OPTIONS = """
    --headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run
    --disable-background-networking --disable-component-update --disable-sync
    --dump-dom --virtual-time-budget=5000
""".split()
# Widths of the page and the screen, and what sticks out of it without a bar of its own.
PROBE = """<script>
const wide = innerWidth;
const out = [...document.querySelectorAll("body *")].filter(one =>
  !one.closest(".wide, pre, svg") && one.getBoundingClientRect().right > wide + 1);
const found = `${document.documentElement.scrollWidth} of ${wide}: ` +
  `${document.querySelectorAll("figure svg").length} pictures, ` +
  `${out.map(one => one.tagName).join(" ")}.`;
parent.postMessage(found, "*");
</script>"""
# The window itself is never narrower than 500.
FRAME = """<!doctype html><script>onmessage = e => document.title = e.data</script>
<iframe src="probed.html" style="border: 0; width: {width}px; height: 800px"></iframe>
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    runs = three_runs(folder, "long" * 25)
    with_weights(runs[-1], 0.1)
    return write_report(runs, folder / "page").read_text()


def measured(page: str, width: int, folder) -> str:
    file = folder / "probed.html"
    assert page.rstrip().endswith("</html>")
    file.write_text(page.replace("</body>", f"{PROBE}</body>"))
    frame = folder / "frame.html"
    frame.write_text(FRAME.format(width=width))
    words = [f"--user-data-dir={folder / 'profile'}", "--window-size=1400,900"]
    done = subprocess.run(
        [CHROMIUM, *OPTIONS, *words, frame.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL).group(1)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("width", [390, 768, 1280])
def test_nothing_is_wider_than_the_screen(page, width, tmp_path):
    title = measured(page, width, tmp_path)
    found, screen = map(int, re.match(r"(\d+) of (\d+):", title).groups())
    assert screen == width and found <= screen, title
    assert title.endswith("pictures, .") and int(title.split()[3]) >= 4, title


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_planted_overflow_is_seen(page, tmp_path):
    bad = page.replace("<main>", '<main><div style="width: 2000px">x</div>')
    title = measured(bad, 390, tmp_path)
    assert title.startswith("20") and title.endswith("DIV.")
