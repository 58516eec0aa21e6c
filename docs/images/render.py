"""Draws each .mmd file of this folder as .svg, with mermaid in a headless chromium; needs npm and chromium.

Run it after changing a source: ``python docs/images/render.py``. The hash of the source is written into the picture,
and a test compares them. mermaid is installed into the user's cache folder at the version below.
"""

from __future__ import annotations

import hashlib
import html
import os
import re
import subprocess
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent
MERMAID = "mermaid@11.4.1"
PAGE = """<!doctype html><body><pre id="source">{source}</pre><div id="out"></div><script>{script}</script><script>
mermaid.initialize({{startOnLoad: false, theme: "neutral", htmlLabels: false, flowchart: {{htmlLabels: false}}}});
mermaid.render("picture", document.getElementById("source").textContent)
  .then(({{svg}}) => {{ document.getElementById("out").innerHTML = svg; }});
</script></body>"""


def mermaid_script() -> str:
    """The library as one script, installed on the first call."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "penstock" / "mermaid"
    script = cache / "node_modules" / "mermaid" / "dist" / "mermaid.min.js"
    if not script.exists():
        cache.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "install", "--silent", "--prefix", str(cache), MERMAID], check=True)
    return script.read_text().replace("</script>", "<\\/script>")


def render(source: Path, script: str) -> None:
    """Draw one file; the picture lies beside it."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        page.write_text(PAGE.format(source=html.escape(source.read_text()), script=script))
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000"]
        command += [f"--user-data-dir={folder}/profile", "--dump-dom", page.as_uri()]
        dom = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r'<div id="out">(<svg.*</svg>)</div>', dom, re.DOTALL)
    if found is None:
        raise SystemExit(f"{source.name}: mermaid drew nothing; is its syntax right?")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    picture = found.group(1).replace("&nbsp;", "&#160;").replace("<br>", "<br/>")
    picture = picture.replace('style="', 'style="background: white; ', 1)
    source.with_suffix(".svg").write_text(f"{picture}\n<!-- source {digest} -->\n")


def main() -> None:
    """Draw every source of this folder."""
    script = mermaid_script()
    for source in sorted(FOLDER.glob("*.mmd")):
        render(source, script)
        print(source.with_suffix(".svg").name)


if __name__ == "__main__":
    main()
