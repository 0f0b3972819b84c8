"""A whole distillation: prepare, run the stages that are missing, track, and say what came out."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from ims3_ray.cluster.environment import hardware, versions
from ims3_ray.config.load import load_config
from ims3_ray.config.settings import Config
from ims3_ray.errors import InputError
from ims3_ray.evaluation.figures import headline
from ims3_ray.pipeline.prepare import begin
from ims3_ray.pipeline.steps import Step, plan, run_step
from ims3_ray.runs import records
from ims3_ray.runs.journal import Journal
from ims3_ray.runs.tags import describe_run, name_metrics, tag_artifacts
from ims3_ray.runs.tracking import RECIPE_FILE, Tracker, tracking_uri
from ims3_ray.stages.context import Context
from ims3_ray.storage.artifacts import fingerprint
from ims3_ray.text import one_line, redacted

LONGEST_ERROR = 500  # characters


@dataclass(frozen=True)
class Distillation:
    """What a run made. `figures` are the headline metrics, as MLflow has them."""

    key: str
    distilled: str  # path or URI of the distilled set
    report: str
    evaluation: dict[str, Any] | None
    figures: dict[str, float]
    stages: list[dict[str, Any]]  # name, rows, unit, seconds, rate, and whether this call ran it
    mlflow_run_id: str | None
    tracking_uri: str = field(repr=False)  # may hold a password


def distill(recipe: str = "digits", say: Callable[[str], None] = print, **overrides: Any) -> Distillation:
    """Distil as `recipe` (a name or a YAML path) says, with `overrides` by section: `ipc=10,
    sample={"subgroups": 20}`.

    `say` takes the lines that a person should read. Raises InputError, before any heavy work, for what can't
    be run.
    """
    return run(load_config(recipe, overrides), say)


def run(config: Config, say: Callable[[str], None] = print) -> Distillation:
    """Distil as `config` says: stages that are complete are found, the others run."""
    (context,) = begin([config], say)
    steps = plan(context)
    key = steps[-1].fingerprint
    name = f"{config.recipe}-{key}"
    _write_record(context, name, steps, [], records.RUNNING)
    journal = Journal(context.storage / "runs" / name)
    (context.storage / "runs" / name).write("config.yaml", _yaml(config.model_dump(mode="json")))
    journal.write(
        "run started", key=key, recipe=config.recipe, device=context.machine.device, notes=list(context.notes)
    )
    steps = plan(context)  # again: what is complete now stays, for the record names it
    tracker = Tracker(context.storage, say)
    made_of = tag_artifacts(records.places(step.directory for step in steps))
    tracker.start(key, name, config.results(), describe_run(context) | made_of)
    if not tracker.is_finished:
        tracker.log_file(RECIPE_FILE, _yaml(config.results()))
    context = replace(
        context, on_metrics=lambda stage, step, metrics: tracker.log(step, name_metrics(stage, metrics))
    )
    ran: list[dict[str, Any]] = []
    try:
        with journal.alive():
            _run_missing(context, steps, ran, tracker, say, journal)
        _write_record(context, name, steps, ran, records.FINISHED)
        journal.write("run finished")
    except BaseException as error:
        is_failure = isinstance(error, Exception)  # else somebody stopped it, and waits
        state = records.FAILED if is_failure else records.STOPPED
        # a full disk takes no record, but what stopped the run is told
        with contextlib.suppress(OSError, InputError):
            journal.write(
                f"run {state}", error=one_line(redacted(f"{type(error).__name__}: {error}"))[:LONGEST_ERROR]
            )
            _write_record(context, name, steps, ran, state)
        tracker.finish("FAILED" if is_failure else "KILLED", patient=is_failure)
        raise
    return _result(context, {step.stage.noun: step for step in steps}, ran, key, tracker)


def _run_missing(
    context: Context,
    steps: list[Step],
    ran: list,
    tracker: Tracker,
    say: Callable[[str], None],
    journal: Journal,
) -> None:
    """Run the steps that are not complete, in their places in `steps`; `ran` gets a line on every step."""
    for number, step in enumerate(steps):
        fresh = step.manifest is None
        if fresh:
            say(f"[{number + 1}/{len(steps)}] {step.stage.name} → {step.directory.uri}")
            journal.write(
                "stage started", stage=step.stage.name, artifact=f"{step.stage.noun}/{step.fingerprint}"
            )
            steps[number] = step = run_step(context, step)
        told = {name: step.manifest[name] for name in ("rows", "unit", "seconds", "rate")}
        if fresh:
            journal.write("stage finished", stage=step.stage.name, **told)
        ran.append({"name": step.stage.name, "ran": fresh} | told)
        _track_stage(tracker, step, fresh)


def _result(context: Context, steps: dict[str, Step], ran: list, key: str, tracker: Tracker) -> Distillation:
    evaluation = steps["evaluation"].directory.read_json("evaluation.json") if "evaluation" in steps else None
    figures = headline(evaluation) if evaluation else {}
    distilled, report = steps["distilled"], steps["report"].directory
    if not tracker.is_finished:
        for name in ("index.html", "contact-sheet.png"):
            tracker.log_file(name, report.read(name))
        tracker.log_dataset(
            "distilled", distilled.fingerprint, distilled.directory.uri, distilled.manifest["rows"]
        )
        tracker.finish("FINISHED")
    return Distillation(
        key=key,
        distilled=distilled.directory.uri,
        report=(report / "index.html").uri,
        evaluation=evaluation,
        figures=figures,
        stages=ran,
        mlflow_run_id=tracker.run_id,
        tracking_uri=tracking_uri(context.storage),
    )


def _track_stage(tracker: Tracker, step: Step, fresh: bool) -> None:
    """A stage's time, and what it would have logged while running had this run been there to hear it."""
    if tracker.is_finished:
        return
    name, manifest = step.stage.name, step.manifest
    tracker.log(0, name_metrics(name, {"seconds": manifest["seconds"], "rows_per_s": manifest["rate"]}))
    if fresh:
        return
    for entry in manifest.get("history", []):
        tracker.log(entry["step"], name_metrics(name, {k: v for k, v in entry.items() if k != "step"}))
    if name == "evaluate":
        tracker.log(0, headline(step.directory.read_json("evaluation.json")))
    if name == "select":
        selection = step.directory.read_json("selection.json")
        tracker.log(0, name_metrics(name, {"objective": selection["objective"], **selection["terms"]}))


def _yaml(values: dict[str, Any]) -> bytes:
    return yaml.safe_dump(values, sort_keys=False).encode()


def _write_record(
    context: Context, name: str, steps: list[Step], ran: list[dict[str, Any]], state: str
) -> None:
    """run.json: configuration, versions, hardware, seeds, time and place per stage."""
    records.write(
        context.storage,
        f"runs/{name}/run.json",
        {step.stage.noun: step.directory.uri for step in steps},
        key=steps[-1].fingerprint,
        state=state,
        recipe=context.config.recipe,
        config=context.config.model_dump(mode="json"),
        config_fingerprint=fingerprint(context.config.results()),
        versions=versions(),
        hardware=hardware(context.machine),
        seed=context.config.seed,
        stages=ran,
    )
