"""A whole distillation: prepare, run the stages that are missing, track, and say what came out."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import yaml

from . import cluster, preparation
from .artifacts import fingerprint
from .config import Config
from .context import Context
from .environment import hardware, versions
from .overrides import load_config
from .pipeline import Step, plan, run_step
from .stages.evaluate import headline
from .tracking import Tracker, tracking_uri


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
    tracking_uri: str


def distill(recipe: str = "digits", say: Callable[[str], None] = print, **overrides: Any) -> Distillation:
    """Distil as `recipe` (a name or a YAML path) says, with `overrides` by section: `ipc=10, sample={"subgroups": 20}`.

    `say` takes the lines that a person should read. Raises InputError, before any heavy work, for what can't be run.
    """
    return run(load_config(recipe, overrides), say)


def run(config: Config, say: Callable[[str], None] = print) -> Distillation:
    """Distil as `config` says: stages that are complete are found, the others run."""
    preparation.image_places(config)  # before a cluster is started for a run that can't be
    preparation.check_storage(config)
    cluster.connect()
    preparation.check_storage(config)  # again: now the nodes are known
    context = preparation.prepare(config, cluster.machine(config.workers))
    for note in context.notes:
        say(note)
    steps = plan(context)
    if any(step.manifest is None for step in steps if step.stage.name in ("embed", "sample")):
        preparation.fetch_extractor(config)
    key = steps[-1].fingerprint
    tracker = Tracker(context.storage, say)
    tracker.start(key, f"{config.recipe}-{key}", config.results(), _tags(context))
    context = replace(context, on_metrics=lambda stage, step, metrics: tracker.log(step, under(stage, metrics)))
    records = context.storage / "runs" / f"{config.recipe}-{key}"
    records.write("config.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).encode())
    ran: list[dict[str, Any]] = []
    try:
        for number, step in enumerate(steps):
            fresh = step.manifest is None
            if fresh:
                say(f"[{number + 1}/{len(steps)}] {step.stage.name} → {step.directory.uri}")
                steps[number] = step = run_step(context, step)
            ran.append(
                {"name": step.stage.name, "ran": fresh} | {k: step.manifest[k] for k in ("rows", "unit", "seconds", "rate")}
            )
            _track_stage(tracker, step, fresh)
    except BaseException:
        tracker.finish("FAILED")
        raise
    finally:
        records.write_json("run.json", _record(context, steps, ran))
    return _result(context, {step.stage.noun: step for step in steps}, ran, key, tracker)


def _result(context: Context, steps: dict[str, Step], ran: list, key: str, tracker: Tracker) -> Distillation:
    evaluation = steps["evaluation"].directory.read_json("evaluation.json") if "evaluation" in steps else None
    figures = headline(evaluation) if evaluation else {}
    distilled, report = steps["distilled"], steps["report"].directory
    if not tracker.is_finished:
        for name in ("index.html", "contact-sheet.png"):
            tracker.log_file(name, report.read(name))
        tracker.log_dataset("distilled", distilled.fingerprint, distilled.directory.uri, distilled.manifest["rows"])
        tracker.finish("FINISHED")
    return Distillation(
        key=key,
        distilled=distilled.directory.uri,
        report=f"{report.uri}/index.html",
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
    tracker.log(0, under(name, {"seconds": manifest["seconds"], "rows_per_s": manifest["rate"]}))
    if fresh:
        return
    for entry in manifest.get("history", []) if not tracker.has(f"{name}/diffusion") else []:
        tracker.log(entry["step"], under(name, {k: v for k, v in entry.items() if k != "step"}))
    if name == "evaluate":
        tracker.log(0, headline(step.directory.read_json("evaluation.json")))
    if name == "select":
        selection = step.directory.read_json("selection.json")
        tracker.log(0, under(name, {"objective": selection["objective"], **selection["terms"]}))


def under(stage: str, metrics: dict[str, float]) -> dict[str, float]:
    """Metrics by the names they have in MLflow: the evaluation's as they are, others below their stage."""
    return metrics if stage == "evaluate" and "accuracy" in metrics else {f"{stage}/{name}": v for name, v in metrics.items()}


def _tags(context: Context) -> dict[str, str]:
    described = {f"version.{name}": text for name, text in versions().items()}
    return described | {f"hardware.{name}": str(value) for name, value in hardware(context.machine).items()}


def _record(context: Context, steps: list[Step], ran: list[dict[str, Any]]) -> dict[str, Any]:
    """What run.json holds: configuration, versions, hardware, seeds, and time and place per stage."""
    return {
        "recipe": context.config.recipe,
        "key": steps[-1].fingerprint,
        "config": context.config.model_dump(mode="json"),
        "config_fingerprint": fingerprint(context.config.results()),
        "versions": versions(),
        "hardware": hardware(context.machine),
        "seed": context.config.seed,
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "stages": ran,
        "artifacts": {step.stage.noun: step.directory.uri for step in steps},
    }
