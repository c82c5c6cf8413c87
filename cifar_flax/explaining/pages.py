"""Pages as one file each: the HTML, style and scripts in `page/`, joined with data, so that a server is never asked.

A script cannot import one that is written into the same page. So each module becomes a `data:` URL, and an import map
tells the browser which; it loads them as it would load files.
"""

import base64
import io
import re
from pathlib import Path
from typing import Any

from PIL import Image

from cifar_flax import files

_FOLDER = Path(__file__).parent / "page"


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _modules(name: str) -> dict[str, str]:
    """A script and all that it imports, by name, as `data:` URLs."""
    found: dict[str, str] = {}
    waiting = [name]
    while waiting:
        if (name := waiting.pop()) not in found:
            text = _read(name)
            waiting += re.findall(r'from "\./(.+?)"', text)
            # In a `data:` URL "./" leads nowhere: there a module goes by its name alone.
            text = text.replace('from "./', 'from "')
            found[name] = f"data:text/javascript;base64,{base64.b64encode(text.encode()).decode('ascii')}"
    return dict(sorted(found.items()))


def _escaped(content: dict[str, Any]) -> str:
    """JSON for a script element, where only "</" could end it, and "<!--" change its meaning."""
    return files.to_json(content).replace("<", "\\u003c")


def picture_url(picture: Image.Image, kind: str) -> str:
    """A picture as a `data:` URL, of a kind as Pillow calls it."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, quality=85)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def render(name: str, content: dict[str, Any]) -> str:
    """A page.

    Args:
      name: a file in `page/`, as "report.html".
      content: what its scripts find as JSON.

    Returns:
      HTML.
    """
    page = _read(name).replace('<link rel="stylesheet" href="style.css">', f"<style>\n{_read('style.css')}</style>")
    page, script, end = re.split(r'<script type="module" src="(.+?)"></script>', page)
    start = f'<script type="importmap">{_escaped({"imports": _modules(script)})}</script>\n'
    start += f'<script type="module">import "{script}";</script>'
    data = '<script type="application/json" id="data">'
    return page.replace(data, data + _escaped(content)) + start + end
