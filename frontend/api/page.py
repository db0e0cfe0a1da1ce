"""GET / and the files of frontend/page: a playground and the running batch, for a browser.

The files hold no data, so they are open to all; what they show comes by routes that want a key.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import Response

FOLDER = Path(__file__).resolve().parent.parent / "page"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
FILES = {
    "/" if path.name == "index.html" else f"/page/{path.name}": path
    for path in sorted(FOLDER.iterdir())
    if path.suffix in TYPES
}
PAGE_PATHS = frozenset(FILES)
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; frame-ancestors 'none'; form-action 'none'"
)


@dataclass(frozen=True, slots=True)
class PageFile:
    """One file as it was when the server began; a browser asks each time whether it still is."""

    body: bytes
    headers: dict[str, str]

    @classmethod
    def read(cls, path: Path) -> PageFile:
        body = path.read_bytes()
        headers = {
            "Content-Type": TYPES[path.suffix],
            "Content-Security-Policy": POLICY,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-cache",
            "ETag": f'"{hashlib.sha256(body).hexdigest()[:32]}"',
        }
        return cls(body, headers)

    async def answer(self, request: Request) -> Response:
        known = request.headers.get("if-none-match", "")
        if self.headers["ETag"] in known:
            return Response(status_code=304, headers=self.headers)
        return Response(self.body, headers=self.headers)


def page_router() -> APIRouter:
    """Exactly the files that are there, none by a path that a caller makes up."""
    router = APIRouter(include_in_schema=False)
    for path, file in FILES.items():
        router.add_api_route(path, PageFile.read(file).answer, methods=["GET", "HEAD"])
    return router
