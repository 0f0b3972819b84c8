"""Record a run while it runs: run.json and the event log in the storage, and its MLflow run."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import yaml

from ims3_ray.cluster.environment import hardware, versions
from ims3_ray.cluster.monitor import crashed_workers
from ims3_ray.errors import InputError, describe_error
from ims3_ray.pipeline.steps import Step
from ims3_ray.progress import run_name
from ims3_ray.runs import records
from ims3_ray.runs.event_log import EventLog, save_library_log
from ims3_ray.runs.mlflow_tracker import Tracker
from ims3_ray.runs.tags import artifact_tags, prefix_metrics, provenance_tags, run_tags
from ims3_ray.stages.context import Context
from ims3_ray.storage.artifacts import fingerprint
from ims3_ray.storage.lease import heartbeat, write_heartbeat

from .result import StageRun


class Recorder:
    """Records one run. The constructor writes run.json, which names the artefacts, before any stage runs."""

    def __init__(self, context: Context, steps: Sequence[Step], print_line: Callable[[str], None]):
        self._context, self._steps, self._print_line = context, steps, print_line
        config, self.key = context.config, steps[-1].fingerprint
        self.name = f"{config.recipe}-{self.key}"
        self.stages: list[StageRun] = []
        self._crashed: set[str] = set()  # workers in the log
        self._folder = context.storage / "runs" / self.name
        self._log = EventLog(self._folder)
        self._tags = run_tags(context) | provenance_tags()
        write_heartbeat(self._folder)
        self._write_record(records.RUNNING)
        recipe = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
        self._folder.write("config.yaml", recipe.encode())
        device, notes = context.machine.device, list(context.notes)
        self._log.write("run started", key=self.key, recipe=config.recipe, device=device, notes=notes)
        self.tracker = Tracker(context.storage, print_line)
        tags = self._tags | artifact_tags(step.artifact for step in steps)
        self.tracker.start(self.key, self.name, config.results(), tags)
        if any(step.manifest is None for step in steps):
            self.tracker.resume()
        if not self.tracker.is_finished:
            self.tracker.log_recipe(config.results())

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Write heartbeats during the block, and the final state after it."""
        with run_name(self.name), heartbeat(self._folder), save_library_log(self._folder):
            try:
                yield
                self._write_record(records.FINISHED)
                self._log.write("run finished")
            except BaseException as error:
                state = records.FAILED if isinstance(error, Exception) else records.STOPPED
                # on a full disk, the original error is raised
                with contextlib.suppress(OSError, InputError):
                    self._log_crashes()
                    self._log.write(f"run {state}", error=describe_error(error))
                    self._write_record(state)
                self.tracker.abort(error)
                raise

    def on_metrics(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Log metrics of a running stage."""
        self.tracker.log(step, prefix_metrics(stage, metrics))

    def begin_stage(self, step: Step) -> None:
        name, number = step.stage.name, len(self.stages) + 1
        machine, usage = self._context.machine, step.stage.gpu_usage(self._context)
        gpus = f", on {usage.gpus} of {machine.gpus} GPUs" if machine.on_gpus and usage.gpus else ""
        self._print_line(f"[{number}/{len(self._steps)}] {name} → {step.directory.uri}{gpus}")
        self._log.write("stage started", stage=name, artifact=step.artifact)

    def end_stage(self, step: Step) -> None:
        """Record a complete stage, whether this run made it or found it."""
        name, summary = step.stage.name, step.summary
        if step.ran:
            self._log_crashes()
            self._log.write("stage finished", stage=name, **summary)
        gpus = step.manifest.get("gpus") if step.manifest else None
        self.stages.append({"name": name, "ran": step.ran, "gpus": gpus, **summary})
        if not self.tracker.is_finished:
            log_stage(self.tracker, step)

    def _log_crashes(self) -> None:
        for crash in crashed_workers(self._crashed):
            self._log.write("worker crashed", **crash)

    def log_outputs(self, distilled: Step, report: Step) -> None:
        """Log the report and the distilled set, and finish the MLflow run."""
        if not self.tracker.is_finished:
            log_outputs(self.tracker, distilled, report)
            self.tracker.finish("FINISHED")

    def _write_record(self, state: str) -> None:
        config = self._context.config
        records.write(
            self._context.storage,
            f"runs/{self.name}/run.json",
            {step.stage.output: step.directory.uri for step in self._steps},
            key=self.key,
            state=state,
            recipe=config.recipe,
            config=config.model_dump(mode="json"),
            config_fingerprint=fingerprint(config.identity()),
            versions=versions(),
            hardware=hardware(self._context.machine),
            tags=self._tags,
            device=self._context.machine.device,
            steps=[[step.stage.name, step.artifact] for step in self._steps],
            stages=self.stages,
        )


def log_stage(tracker: Tracker, step: Step) -> None:
    """Log the metrics of a complete stage; if this run did not make it, also its history."""
    name, summary = step.stage.name, step.summary
    tracker.log(0, prefix_metrics(name, {"seconds": summary["seconds"], "rows_per_s": summary["rate"]}))
    if step.ran or not step.manifest:
        return
    for entry in step.manifest.get("history", []):
        metrics = {metric: value for metric, value in entry.items() if metric != "step"}
        tracker.log(int(entry["step"]), prefix_metrics(name, metrics))
    if metrics := step.stage.metrics(step.directory):
        tracker.log(0, prefix_metrics(name, metrics))


def log_outputs(tracker: Tracker, distilled: Step, report: Step) -> None:
    """Log the report's page and contact sheet as files, and the distilled set as a dataset."""
    for name in ("index.html", "contact-sheet.png"):
        tracker.log_file(name, report.directory.read(name))
    rows, uri = distilled.summary["rows"], distilled.directory.uri
    tracker.log_dataset("distilled", distilled.fingerprint, uri, rows)
