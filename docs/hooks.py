"""MkDocs hooks: pages may link to any file of the repository, as they do on a code host.

A link such as ``../bench/NOTES.md`` leaves the folder that MkDocs builds. Here every file that a
page links to joins the site under its path in the repository, and the link is rewritten to it.
``CONTRIBUTING.md`` and ``CHANGELOG.md``, which stand in the root, become pages in the same way.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).resolve().parents[1]
PAGES_OF_THE_ROOT = ("CONTRIBUTING.md", "CHANGELOG.md")
# [text](target) and ![text](target), the target without blanks
LINK = re.compile(r"(?<=\]\()(?P<path>[^)\s#]+)(?P<anchor>#[^)\s]*)?(?=\))")


def on_files(files: Files, config: Any) -> Files:
    """Add what the pages link to outside of docs/."""
    for name in PAGES_OF_THE_ROOT:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    for page in list(files.documentation_pages()):
        text = Path(str(page.abs_src_path)).read_text(encoding="utf-8")
        for match in LINK.finditer(text):
            target = in_repository(page.src_uri, match["path"])
            new = target == site_path(target) and files.get_file_from_path(target) is None
            if new and (ROOT / target).is_file():
                files.append(
                    File.generated(
                        config,
                        target,
                        abs_src_path=str(ROOT / target),
                        inclusion=InclusionLevel.NOT_IN_NAV,
                    )
                )
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Rewrite the links of one page to where their targets are in the site."""
    source = page.file.src_uri

    def rewritten(match: re.Match[str]) -> str:
        path = match["path"]
        if "://" in path or path.startswith(("mailto:", "/")):
            return match[0]
        target = site_path(in_repository(source, path))
        return posixpath.relpath(target, posixpath.dirname(source) or ".") + (match["anchor"] or "")

    return LINK.sub(rewritten, markdown)


def in_repository(source: str, link: str) -> str:
    """Return the path in the repository that ``link`` of the page ``source`` names."""
    folder = "" if source in PAGES_OF_THE_ROOT else "docs"
    return posixpath.normpath(posixpath.join(folder, posixpath.dirname(source), link))


def site_path(path: str) -> str:
    """Return where a file of the repository is in the site: docs/ is its root."""
    return path.removeprefix("docs/")
