"""The addresses, and what answers them: pages, the state of a run as JSON, a script."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from ims3_ray import progress
from ims3_ray.display import noun, one_line, redact
from ims3_ray.errors import InputError
from ims3_ray.report import plots
from ims3_ray.report.formatting import Claim, environment
from ims3_ray.report.formatting import claim as accuracy_claim
from ims3_ray.runs.query import RUNNING
from ims3_ray.runs.tags import ENVIRONMENT

from . import compare, run_table, stages, thumbnails
from .auth import HEADERS, THEIRS, gate
from .run_store import PAGE, Catalogue, MissingError

HERE = Path(__file__).parent
PAGES = environment(HERE / "pages")


def make_app(catalogue: Catalogue, token: str) -> Starlette:
    """What serves the runs of a storage to whoever has the token."""
    views: dict[str, Callable[[Catalogue, Request], Response]] = {
        "/": list_page,
        "/state": list_state,
        "/compare": compare_page,
        "/runs/{run}": run_page,
        "/runs/{run}/state": run_state,
        "/runs/{run}/report": report,
        "/runs/{run}/classes/{label:int}": class_page,
    }
    routes = [Route(path, partial(view, catalogue)) for path, view in views.items()]
    routes.append(Route("/view.js", lambda _: FileResponse(HERE / "pages/view.js")))
    handlers = {InputError: _refused, HTTPException: _refused, Exception: _failed}
    return Starlette(routes=routes, middleware=gate(token), exception_handlers=handlers)


def list_page(catalogue: Catalogue, request: Request) -> Response:
    """All runs, or a sweep's trials."""
    sweep = request.query_params.get("sweep", "")
    runs = catalogue.runs(sweep)
    at_work = sum(run["status"] == RUNNING for run in runs)
    what = "trials" if sweep else "runs"
    claim = Claim(f"{len(runs)} {noun(len(runs), what)}", f"{at_work or 'none'} at work")
    of_sweep = catalogue.run(sweep) if sweep else None
    return page(
        "list.html",
        claim,
        catalogue,
        rows=run_table.rows(catalogue, runs),
        sweep=of_sweep,
        numbers=run_table.NUMBERS,
    )


def list_state(catalogue: Catalogue, request: Request) -> Response:
    """Of the runs of the list, by id: the state in a word, and what the row says of it."""
    runs = catalogue.runs(request.query_params.get("sweep", ""))
    states = {run["run_id"]: [run_table.state_word(run), run_table.state_of(catalogue, run)] for run in runs}
    return JSONResponse(states)


def run_page(catalogue: Catalogue, request: Request) -> Response:
    """One run: how far it is, its figures, its images, its recipe."""
    run = catalogue.run(request.path_params["run"])
    now, evaluated = stages.progress(catalogue, run), catalogue.made(run, "evaluate")
    evaluation = evaluated.read_json("evaluation.json") if evaluated else None
    names = evaluation.get("names", {}) if evaluation else {}
    return page(
        "run.html",
        Claim(run["name"] or run["run_id"], accuracy_claim(evaluation).detail if evaluation else ""),
        catalogue,
        run=run,
        row=run_table.rows(catalogue, [run])[0],
        now=now,
        evaluation=evaluation,
        accuracy=evaluation and plots.accuracy(evaluation["sets"], names),
        coverage=sorted(evaluation["coverage"].items(), key=lambda of: of[0] != "distilled")
        if evaluation
        else [],
        has_page=catalogue.page(run) is not None,
        classes=thumbnails.classes(catalogue, run),
        strips=thumbnails.distilled(catalogue, run),
        set_name=partial(plots.set_name, names=names),
        params=_by_section(run["params"]),
        abouts=_by_section(
            {name: text for name, text in run["tags"].items() if name.startswith(ENVIRONMENT)}
        ),
    )


def _by_section(values: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Section, dotted name and value; what belongs to none stands first."""
    return [(name.rpartition(".")[0].partition(".")[0], name, text) for name, text in values.items()]


def run_state(catalogue: Catalogue, request: Request) -> Response:
    """How far the run is, as its page shows it."""
    return JSONResponse(stages.progress(catalogue, catalogue.run(request.path_params["run"])))


def report(catalogue: Catalogue, request: Request) -> Response:
    """The product's own page as it lies in the storage, where it may run nothing."""
    run = catalogue.run(request.path_params["run"])
    if not (place := catalogue.page(run)):
        raise MissingError(f"{run['name']} has no page of its own in {catalogue.storage.uri}")
    return HTMLResponse(place.read(PAGE), headers={"Content-Security-Policy": THEIRS})


def class_page(catalogue: Catalogue, request: Request) -> Response:
    """A class of a run: its set, refinement before and after, its candidates and the choice."""
    run, label = catalogue.run(request.path_params["run"]), request.path_params["label"]
    names = thumbnails.classes(catalogue, run)
    if label >= len(names):
        raise MissingError(f"{run['name']} has {len(names)} classes so far, and none of number {label}")
    moved, losses = thumbnails.refinement(catalogue, run, label)
    document = thumbnails.selection(catalogue, run)
    return page(
        "class.html",
        Claim(names[label], f"Class {label + 1} of {len(names)}"),
        catalogue,
        run=run,
        names=names,
        label=label,
        strips=thumbnails.distilled(catalogue, run, [names[label]]),
        moved=moved,
        losses=losses,
        subgroups=thumbnails.candidates(catalogue, run, names, label),
        selection=document,
        of_class=document and document["per_class"].get(names[label]),
    )


def compare_page(catalogue: Catalogue, request: Request) -> Response:
    """Two runs, whose MLflow ids are `one` and `other`."""
    one, other = (catalogue.run(request.query_params.get(name, "")) for name in ("one", "other"))
    differences = compare.differences(one, other)
    fields = len(differences["params"])
    headline = f"{fields} {noun(fields, 'fields')} {'differs' if fields == 1 else 'differ'}"
    return page(
        "compare.html",
        Claim(headline, f"{one['name']} and {other['name']}"),
        catalogue,
        runs=[one, other],
        differences=differences,
        figures=compare.figures(one, other),
        is_comparable=compare.are_comparable(one, other),
        images=compare.images(catalogue, one, other),
    )


def page(template: str, claim: Claim, catalogue: Catalogue, status: int = 200, **more: object) -> Response:
    """A page of the view out of its template."""
    text = PAGES.get_template(template).render(claim=claim, storage=catalogue.storage.uri, **more)
    return HTMLResponse(text, status)


def _refused(_: Request, error: Exception) -> Response:
    """A page with the line that a command would end with."""
    status, line = 404 if isinstance(error, MissingError) else 500, one_line(str(error))
    if isinstance(error, HTTPException):
        status, line = error.status_code, error.detail
    return _error_page("Not found" if status == 404 else "This can't be shown", line, status)


def _failed(_: Request, error: Exception) -> Response:
    """Of what nobody expected; the server writes its trace."""
    trace = f"; the trace is in {progress.library_log()}" if progress.library_log() else ""
    line = f"{type(error).__name__}: {one_line(redact(str(error)))[:300]}{trace}"
    return _error_page("This page failed", line, 500)


def _error_page(headline: str, line: str, status: int) -> Response:
    text = PAGES.get_template("error.html").render(claim=Claim(headline, line))
    return HTMLResponse(text, status, HEADERS)
