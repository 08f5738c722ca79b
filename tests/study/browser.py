"""A headless Chromium without a network: what it makes of a page."""

import html
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
_QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]
# run in the frame that holds the page
_MEASURE = """
const measured = [...document.querySelectorAll("iframe")].map(frame => {
  const page = frame.contentDocument, root = page.documentElement;
  return {
    width: root.clientWidth, scroll_width: root.scrollWidth,
    background: getComputedStyle(page.body).backgroundColor,
    pictures: [...page.images].map(image => image.naturalWidth),
    requests: frame.contentWindow.performance.getEntriesByType("resource").map(entry => entry.name),
    tables: [...page.querySelectorAll("table")].map(table => [...table.rows].map(row => row.cells[0].innerText)),
  };
});
document.querySelector("output").textContent = JSON.stringify(measured);
"""


def measure(page, widths, *, dark=False):
    """What Chromium says of a page in frames of these widths in pixels.

    The page stands in a frame because a window cannot be as narrow as a phone.
    """
    frames = "".join(
        f'<iframe style="width:{width}px;height:800px;border:0" srcdoc="{html.escape(page)}"></iframe>'
        for width in widths
    )
    wrapper = f"<!doctype html><meta charset=utf-8>{frames}<output></output><script>onload = () => {{{_MEASURE}}}</script>"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "wrapper.html"
        path.write_text(wrapper, encoding="utf-8")
        scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
        command = [
            CHROMIUM,
            *_QUIET,
            scheme,
            f"--user-data-dir={folder}/profile",
            "--dump-dom",
            f"file://{path}",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    (found,) = re.findall("<output>(.*?)</output>", done.stdout, re.DOTALL)
    return json.loads(html.unescape(found))
