"""The chat page's files, read once, and the headers that keep it to itself."""

from __future__ import annotations

import hashlib
import mimetypes
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from schemas.errors import HeadraceError

FOLDER = Path(__file__).parents[1] / "page"
_SERVED = {".html", ".js", ".css", ".svg", ".png", ".ico", ".woff2", ".txt"}
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",  # asked for again each time; the ETag makes that cheap, and updates instant
}


@dataclass(frozen=True, slots=True)
class PageFile:
    content: bytes
    media_type: str
    etag: str


class PageFiles:
    """``index.html`` is served at ``/``, every other file under ``/assets/`` by its path in the folder."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self._files = {
            path.relative_to(folder).as_posix(): _read(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.suffix in _SERVED
        }

    def index(self, request: Request) -> Response:
        return self._answer(request, "index.html")

    def asset(self, request: Request, path: str) -> Response:
        if path == "index.html":
            raise HeadraceError("not_found", "The page is at /.")
        return self._answer(request, path)

    def _answer(self, request: Request, path: str) -> Response:
        file = self._files.get(path)
        if file is None:
            raise HeadraceError("not_found", "The page has no such file.")
        headers = {**_HEADERS, "etag": file.etag}
        if file.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(file.content, media_type=file.media_type, headers=headers)


def _read(path: Path) -> PageFile:
    content = path.read_bytes()
    media_type = "text/javascript" if path.suffix == ".js" else mimetypes.guess_type(path.name)[0]
    digest = hashlib.sha256(content).hexdigest()[:32]
    return PageFile(content, media_type or "application/octet-stream", f'"{digest}"')
