"""What a package index shows is README.md, and there its relative links and pictures lead nowhere.

They are made to lead to the repository on the web that this clone came from. Without one they become plain text.
"""

import email
import re
import subprocess
from pathlib import Path

from setuptools import setup


def git(*words: str) -> str:
    try:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def description() -> str:
    if Path("PKG-INFO").exists():  # a source distribution has it already, and no clone
        return email.message_from_bytes(Path("PKG-INFO").read_bytes()).get_payload(decode=True).decode()
    origin = re.fullmatch(
        r"(?:https://(?:[^@/]+@)?|(?:ssh://)?git@)([^/:]+)[/:](.+?)(?:\.git)?/?", git("remote", "get-url", "origin")
    )

    def elsewhere(link: re.Match[str]) -> str:
        picture, words, path = link.groups()
        if origin is None:
            return f"*{words}*" if picture else words
        kind = "raw" if picture else "blob"
        return f"{picture}[{words}](https://{origin[1]}/{origin[2]}/{kind}/{git('rev-parse', 'HEAD')}/{path})"

    return re.sub(r"(!?)\[([^\]]+)\]\((?!https?:|#)([^)]+)\)", elsewhere, Path("README.md").read_text("utf-8"))


setup(long_description=description(), long_description_content_type="text/markdown")
