"""What the site needs beyond `docs/`: pages that lie elsewhere in the repository, and links that hold in both places.

On GitHub a link is relative to the file in the repository. The site has fewer files, in other places; so each link is
led to where its target is there. What the site does not have, such as a folder of code, is named and not linked.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
# By their paths in the repository, which are theirs in the site too.
ELSEWHERE = (
    "CHANGELOG.md",
    "bench/peers/README.md",
    "clients/README.md",
    "clients/typescript/README.md",
    "proto/README.md",
)
# The first page of the repository is that of the site.
INSTEAD = {"README.md": "index.md"}
# Groups: `[text](`, the target, and its anchor. Not an image, nor one with a scheme, nor of the same page.
LINK = re.compile(r"(?<!!)\[(?P<text>[^\[\]]*)\]\((?P<target>(?![a-z]+:)[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")
CODE = re.compile(r"^(```|~~~).*?^\1\s*$", re.MULTILINE | re.DOTALL)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that lie elsewhere."""
    for path in ELSEWHERE:
        files.append(File.generated(config, path, content=(ROOT / path).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, *, page: Page, files: Files, **_: Any) -> str:
    """Lead every link outside of code to where its target is in the site."""
    parts, end = [], 0
    for code in CODE.finditer(markdown):
        parts += [_led(markdown[end : code.start()], page.file.src_uri, files), code.group()]
        end = code.end()
    return "".join([*parts, _led(markdown[end:], page.file.src_uri, files)])


def _led(text: str, source: str, files: Files) -> str:
    return LINK.sub(lambda link: _link(link, source, files), text)


def _link(link: re.Match[str], source: str, files: Files) -> str:
    in_repository = source if source in ELSEWHERE else f"docs/{source}"
    target = posixpath.normpath(posixpath.join(posixpath.dirname(in_repository), link["target"]))
    place = INSTEAD.get(target, target.removeprefix("docs/"))
    if files.get_file_from_path(place) is not None:
        return f"[{link['text']}]({posixpath.relpath(place, posixpath.dirname(source) or '.')}{link['anchor'] or ''})"
    if (ROOT / target).exists():
        return f"{link['text']} (`{target}`)"
    # Of nothing: left as it is, for the strict build to find.
    return link.group()
