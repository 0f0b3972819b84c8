"""What is kept of a run while it goes: record and log in the storage, and its MLflow run."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import yaml

from ims3_ray.cluster.environment import hardware, versions
from ims3_ray.errors import InputError, describe_error
from ims3_ray.pipeline.steps import Step
from ims3_ray.progress import run_name
from ims3_ray.runs import records
from ims3_ray.runs.event_log import EventLog, save_library_log
from ims3_ray.runs.mlflow_tracker import RECIPE_FILE, Tracker
from ims3_ray.runs.provenance import provenance_tags
from ims3_ray.runs.tags import artifact_tags, prefix_metrics, run_tags
from ims3_ray.stages.context import Context
from ims3_ray.storage.artifacts import fingerprint
from ims3_ray.storage.lease import heartbeat, write_heartbeat

from .result import StageRun


class Recorder:
    """Of one run, from its begin on: what it needs is written before anything is made."""

    def __init__(self, context: Context, steps: Sequence[Step], say: Callable[[str], None]):
        self._context, self._steps, self._say = context, steps, say
        config, self.key = context.config, steps[-1].fingerprint
        self.name = f"{config.recipe}-{self.key}"
        self.stages: list[StageRun] = []
        self._folder = context.storage / "runs" / self.name
        self._journal = EventLog(self._folder)
        self._tags = run_tags(context) | provenance_tags()
        write_heartbeat(self._folder)
        self._write(records.RUNNING)
        self._folder.write("config.yaml", _yaml(config.model_dump(mode="json")))
        device, notes = context.machine.device, list(context.notes)
        self._journal.write("run started", key=self.key, recipe=config.recipe, device=device, notes=notes)
        self.tracker = Tracker(context.storage, say)
        tags = self._tags | artifact_tags(step.artifact for step in steps)
        self.tracker.start(self.key, self.name, config.results(), tags)
        if any(step.manifest is None for step in steps):
            self.tracker.resume()
        if not self.tracker.is_finished:
            self.tracker.log_file(RECIPE_FILE, _yaml(config.results()))

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Write heartbeats during the block, and then how the run ended."""
        with run_name(self.name), heartbeat(self._folder), save_library_log(self._folder):
            try:
                yield
                self._write(records.FINISHED)
                self._journal.write("run finished")
            except BaseException as error:
                is_failure = isinstance(error, Exception)  # else somebody stopped it, and waits
                state = records.FAILED if is_failure else records.STOPPED
                # a full disk takes no record, but what stopped the run is told
                with contextlib.suppress(OSError, InputError):
                    self._journal.write(f"run {state}", error=describe_error(error))
                    self._write(state)
                self.tracker.finish("FAILED" if is_failure else "KILLED", patient=is_failure)
                raise

    def hear(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics of a stage while it runs."""
        self.tracker.log(step, prefix_metrics(stage, metrics))

    def begin_stage(self, step: Step) -> None:
        name, number = step.stage.name, len(self.stages) + 1
        machine, use = self._context.machine, step.stage.gpu_usage(self._context)
        on = f", on {use.gpus} of {machine.gpus} GPUs" if machine.on_gpus and use.gpus else ""
        self._say(f"[{number}/{len(self._steps)}] {name} → {step.directory.uri}{on}")
        self._journal.write("stage started", stage=name, artifact=step.artifact)

    def end_stage(self, step: Step) -> None:
        """What the stage did; of one found complete also what it would have logged while it ran."""
        name, summary = step.stage.name, step.summary
        if step.ran:
            self._journal.write("stage finished", stage=name, **summary)
        gpus = step.manifest.get("gpus") if step.manifest else None
        self.stages.append({"name": name, "ran": step.ran, "gpus": gpus, **summary})
        if self.tracker.is_finished:
            return
        log_stage(self.tracker, step)

    def log_product(self, distilled: Step, report: Step) -> None:
        """The page and the data set, once all is made."""
        if self.tracker.is_finished:
            return
        log_product(self.tracker, distilled, report)
        self.tracker.finish("FINISHED")

    def _write(self, state: str) -> None:
        """run.json: configuration, versions, hardware, MLflow's tags, seeds, time and place per stage."""
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
            seed=config.seed,
            stages=self.stages,
        )


def log_stage(tracker: Tracker, step: Step) -> None:
    """The metrics of a complete stage; of one that was found also what it logs while it runs."""
    name, summary = step.stage.name, step.summary
    seconds = {"seconds": summary["seconds"], "rows_per_s": summary["rate"]}
    tracker.log(0, prefix_metrics(name, seconds))
    if step.ran or not step.manifest:
        return
    for entry in step.manifest.get("history", []):
        metrics = {metric: value for metric, value in entry.items() if metric != "step"}
        tracker.log(int(entry["step"]), prefix_metrics(name, metrics))
    if figures := step.stage.metrics(step.directory):
        tracker.log(0, prefix_metrics(name, figures))


def log_product(tracker: Tracker, distilled: Step, report: Step) -> None:
    """The page and the data set."""
    for name in ("index.html", "contact-sheet.png"):
        tracker.log_file(name, report.directory.read(name))
    rows, place = distilled.summary["rows"], distilled.directory.uri
    tracker.log_dataset("distilled", distilled.fingerprint, place, rows)


def _yaml(values: Mapping[str, object]) -> bytes:
    return yaml.safe_dump(values, sort_keys=False).encode()
