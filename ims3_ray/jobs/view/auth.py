"""Who is let in: whoever has the token, by a name of this machine; and what browsers are told to forbid."""

from collections.abc import Awaitable, Callable
from hmac import compare_digest

from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from ims3_ray.storage.artifacts import fingerprint

HOSTS = ("127.0.0.1", "localhost")  # any other name is a page elsewhere whose address was turned to here
NOTHING = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'"
)
OURS = f"{NOTHING}; script-src 'self'; connect-src 'self'; form-action 'self'"
THEIRS = f"{NOTHING}; sandbox"  # of a page that lies in the storage, which anybody may have written
HEADERS = {
    "Content-Security-Policy": OURS,
    "Referrer-Policy": "no-referrer",  # the first address holds the token
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
REFUSAL = "Not let in: open the address that `ims3 view` printed, with its token.\n"


def gate(token: str) -> list[Middleware]:
    """What every request passes: Host, then token, which a cookie holds once an address had it."""
    cookie = f"ims3-view-{fingerprint(token)}"  # a host's ports share their cookies: each view has its own

    async def check(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        in_address = _is(token, request.query_params.get("token"))
        if not in_address and not _is(token, request.cookies.get(cookie)):
            return PlainTextResponse(REFUSAL, 403, HEADERS)
        response = await go_on(request)
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        if in_address:
            response.set_cookie(cookie, token, httponly=True, samesite="strict")
        return response

    return [
        Middleware(TrustedHostMiddleware, allowed_hosts=list(HOSTS), www_redirect=False),
        Middleware(BaseHTTPMiddleware, dispatch=check),
    ]


def _is(token: str, given: str | None) -> bool:
    """In a time that says nothing of how much of it is right."""
    return given is not None and compare_digest(given.encode(errors="replace"), token.encode())
