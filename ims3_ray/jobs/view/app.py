"""The web application: addresses, pages, and access control by a token."""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from hmac import compare_digest
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from ims3_ray import progress
from ims3_ray.display import noun, one_line, redact
from ims3_ray.errors import InputError
from ims3_ray.report import plots
from ims3_ray.report.formatting import Claim, environment
from ims3_ray.report.formatting import claim as accuracy_claim
from ims3_ray.runs.query import RUNNING
from ims3_ray.runs.tags import ENVIRONMENT
from ims3_ray.storage.artifacts import fingerprint

from . import compare, tables, thumbnails
from .run_store import PAGE, MissingError, RunStore

HERE = Path(__file__).parent
PAGES = environment(HERE / "pages")
HOSTS = ("127.0.0.1", "localhost")  # any other Host header can be DNS rebinding
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'"
)
REPORT_POLICY = f"{POLICY}; sandbox"  # for a page from the storage, which is untrusted
HEADERS = {
    "Content-Security-Policy": f"{POLICY}; script-src 'self'; form-action 'self'",
    "Referrer-Policy": "no-referrer",  # the first address contains the token
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
NO_ACCESS = "No access: open the address that `ims3 view` printed, with its token.\n"


def make_app(store: RunStore, token: str) -> Starlette:
    """The application that serves a storage's runs to clients with the token."""
    views: dict[str, Callable[[RunStore, Request], Response]] = {
        "/": list_page,
        "/compare": compare_page,
        "/runs/{run}": run_page,
        "/runs/{run}/report": report,
        "/runs/{run}/classes/{label:int}": class_page,
    }
    routes = [Route(path, partial(view, store)) for path, view in views.items()]
    routes.append(Route("/view.js", lambda _: FileResponse(HERE / "pages/view.js")))
    handlers = {InputError: _show_error, HTTPException: _show_error, Exception: _show_failure}
    return Starlette(routes=routes, middleware=access_control(token), exception_handlers=handlers)


def access_control(token: str) -> list[Middleware]:
    """Middleware that checks the Host header, then the token: in the address, or in a cookie set by it."""
    cookie = f"ims3-view-{fingerprint(token)}"  # ports share cookies: each server needs its own name

    async def check(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        in_address = _matches(token, request.query_params.get("token"))
        if not in_address and not _matches(token, request.cookies.get(cookie)):
            return PlainTextResponse(NO_ACCESS, 403, HEADERS)
        response = await call_next(request)
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        if in_address:
            response.set_cookie(cookie, token, httponly=True, samesite="strict")
        return response

    return [
        Middleware(TrustedHostMiddleware, allowed_hosts=list(HOSTS), www_redirect=False),
        Middleware(BaseHTTPMiddleware, dispatch=check),
    ]


def _matches(token: str, value: str | None) -> bool:
    """Compare in constant time."""
    return value is not None and compare_digest(value.encode(errors="replace"), token.encode())


def list_page(store: RunStore, request: Request) -> Response:
    """All runs, or the trials of a sweep."""
    sweep_id = request.query_params.get("sweep", "")
    runs = store.runs(sweep_id)
    running = sum(run["status"] == RUNNING for run in runs)
    claim = Claim(f"{len(runs)} {noun(len(runs), 'trials' if sweep_id else 'runs')}", f"{running} running")
    return page(
        "list.html",
        claim,
        store,
        rows=tables.run_rows(store, runs),
        sweep=store.run(sweep_id) if sweep_id else None,
        numeric_columns=tables.NUMERIC_COLUMNS,
        is_running=running > 0,
        has_records=not runs and store.storage.has_directory("runs"),
    )


def run_page(store: RunStore, request: Request) -> Response:
    """One run: progress, accuracy, images, recipe."""
    run = store.run(request.path_params["run"])
    evaluated = store.complete(run, "evaluate")
    evaluation = evaluated.read_json("evaluation.json") if evaluated else None
    names = evaluation.get("names", {}) if evaluation else {}
    coverage = evaluation["coverage"].items() if evaluation else []
    environment_tags = {name: text for name, text in run["tags"].items() if name.startswith(ENVIRONMENT)}
    return page(
        "run.html",
        Claim(run["name"] or run["run_id"], accuracy_claim(evaluation).detail if evaluation else ""),
        store,
        run=run,
        row=tables.run_rows(store, [run])[0],
        progress=tables.progress(store, run),
        is_running=run["status"] == RUNNING,
        evaluation=evaluation,
        accuracy=evaluation and plots.accuracy(evaluation["sets"], names),
        coverage=sorted(coverage, key=lambda item: item[0] != "distilled"),
        has_page=store.page(run) is not None,
        classes=thumbnails.classes(store, run),
        strips=thumbnails.distilled(store, run),
        set_name=partial(plots.set_name, names=names),
        params=_by_section(run["params"]),
        environment=_by_section(environment_tags),
    )


def _by_section(values: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """(section, dotted name, value); the section of a top-level name is ""."""
    return [(name.rpartition(".")[0].partition(".")[0], name, text) for name, text in values.items()]


def report(store: RunStore, request: Request) -> Response:
    """The run's own page as stored, without permission to run scripts."""
    run = store.run(request.path_params["run"])
    if not (folder := store.page(run)):
        raise MissingError(f"{run['name']} has no report in {store.storage.uri}")
    return HTMLResponse(folder.read(PAGE), headers={"Content-Security-Policy": REPORT_POLICY})


def class_page(store: RunStore, request: Request) -> Response:
    """A class of a run: distilled images, refinement, candidates and selection."""
    run, label = store.run(request.path_params["run"]), request.path_params["label"]
    names = thumbnails.classes(store, run)
    if label >= len(names):
        raise MissingError(f"{run['name']} has {len(names)} classes so far; there is no class {label}")
    refined, losses = thumbnails.refinement(store, run, label)
    selection = thumbnails.selection(store, run)
    return page(
        "class.html",
        Claim(names[label], f"Class {label + 1} of {len(names)}"),
        store,
        run=run,
        is_running=run["status"] == RUNNING,
        names=names,
        label=label,
        strips=thumbnails.distilled(store, run, [names[label]]),
        refined=refined,
        losses=losses,
        subgroups=thumbnails.candidates(store, run, names, label),
        selection=selection,
        class_selection=selection and selection["per_class"].get(names[label]),
    )


def compare_page(store: RunStore, request: Request) -> Response:
    """Compare the runs with the MLflow ids `one` and `other`."""
    first, second = (store.run(request.query_params.get(name, "")) for name in ("one", "other"))
    differences = compare.differences(first, second)
    fields = len(differences["params"])
    headline = f"{fields} {noun(fields, 'fields')} {'differs' if fields == 1 else 'differ'}"
    return page(
        "compare.html",
        Claim(headline, f"{first['name']} and {second['name']}"),
        store,
        runs=[first, second],
        differences=differences,
        metrics=compare.metric_pairs(first, second),
        is_comparable=compare.are_comparable(first, second),
        images=compare.images(store, first, second),
    )


def page(template: str, claim: Claim, store: RunStore, **values: object) -> Response:
    """Render a template."""
    return HTMLResponse(PAGES.get_template(template).render(claim=claim, storage=store.storage.uri, **values))


def _show_error(_: Request, error: Exception) -> Response:
    """The page for bad input or a missing address: the line that a command would print."""
    status, line = 404 if isinstance(error, MissingError) else 500, one_line(str(error))
    if isinstance(error, HTTPException):
        status, line = error.status_code, error.detail
    return _error_page("Not found" if status == 404 else "Cannot be shown", line, status)


def _show_failure(_: Request, error: Exception) -> Response:
    """The page for an unexpected exception; the server logs its trace."""
    trace = f"; the trace is in {progress.library_log()}" if progress.library_log() else ""
    line = f"{type(error).__name__}: {one_line(redact(str(error)))[:300]}{trace}"
    return _error_page("This page failed", line, 500)


def _error_page(headline: str, line: str, status: int) -> Response:
    text = PAGES.get_template("error.html").render(claim=Claim(headline, line))
    return HTMLResponse(text, status, HEADERS)
