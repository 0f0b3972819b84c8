"""index.html of a sweep: for a user who chooses a setting or a row. It fetches nothing and runs no script."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ims3_ray.display import noun
from ims3_ray.method.coverage import Values
from ims3_ray.report.coverage_plots import by_decile
from ims3_ray.report.formatting import METRICS, Claim, duration, environment, listed, points, signed
from ims3_ray.report.inputs import shortened
from ims3_ray.report.svg import INK, RANDOM
from ims3_ray.runs.records import FAILED, FINISHED, STOPPED
from ims3_ray.runs.tags import OBJECTIVES

from .comparison import (
    POOL,
    SECONDS,
    Comparison,
    RowsDocument,
    Summaries,
    compare,
    further_networks,
    summarize,
)
from .plots import ACCURACY, IPC, field_panels, ipc_colours, metric_name, pareto_panels, row_panels, short
from .results import Document, as_trials
from .trial import Trial

STATES = (FINISHED, STOPPED, FAILED)  # in the table's order
YARDSTICK_NAMES = {"random": "Random real (yardstick)", "ceiling": "Ceiling"}
YARDSTICK_COLOURS = {"random": RANDOM, "ceiling": INK}
MAX_VALUE = 36  # letters of a value in a table or a sentence
MAX_NAMED = 3  # IPCs that the headline names


def render_sweep(document: Document) -> bytes:
    """The page, UTF-8, the same bytes for the same document. All names, values and errors are untrusted."""
    trials, rows, score = as_trials(document), document["comparison"], document["objective"][0]
    names = _metric_names(document, trials)
    context = {
        "document": document,
        "claim": row_claim(compare(rows)) if rows else search_claim(document, trials),
        "work": work_sentence(document, trials),
        "objective": metric_name(score),
        "best": best_columns(document, trials),
        "space": {field: _in_words(spec) for field, spec in document["space"].items()},
        "titles": [metric_name(name) for name in names],
        "trials": [
            {
                "trial": trial,
                "values": [cell(trial, field) for field in document["space"]],
                "metrics": [metric_text(trial, name) for name in names],
                "is_best": trial.number in document["best"].values(),
                "on_front": trial.number in document["pareto"],
            }
            for trial in in_order(document, trials)
        ],
        "swatches": {short(ipc): number for number, ipc in enumerate(ipc_colours(trials))},
        "fields": None if rows else field_panels(document, trials),
        "pareto": pareto_panels(document, trials),
        **(_comparison_context(rows) if rows else {"comparison": None}),
    }
    return environment(Path(__file__).parent).get_template("page.html").render(context).encode()


def _comparison_context(rows: RowsDocument) -> dict[str, object]:
    comparison = compare(rows)
    numbers = summarize(rows)
    yardsticks = {YARDSTICK_NAMES[name]: values for name, values in (rows["yardsticks"] or {}).items()}
    pool = {m for _, ipc, m in numbers if ipc == rows["pool_images"] and m.startswith(POOL)}
    return {
        "rows": rows,
        "comparison": comparison,
        "numbers": numbers,
        "accuracy": row_panels(comparison),
        "networks": {label: compare(rows, label) for label in further_networks(rows)},
        "p_text": p_text,
        "pool": POOL,
        "metrics": {key: title for key, (title, _) in METRICS.items() if POOL + key in pool},
        "deciles": by_decile(
            _coverage(rows, numbers), lambda name: YARDSTICK_NAMES.get(name, name), YARDSTICK_COLOURS
        ),
        "seconds": SECONDS,
        "stages": list(dict.fromkeys(stage for row in rows["rows"] for stage in row["seconds"])),
        "yardsticks": yardsticks,
    }


def search_claim(document: Document, trials: Sequence[Trial]) -> Claim:
    """The best trial at the largest IPCs, by the first objective; or that there is none."""
    if not document["best"]:
        return Claim("No result", "Trials failed or were stopped: their errors are in the table of trials.")
    by_number, score = {trial.number: trial for trial in trials}, document["objective"][0]
    named = [(ipc, by_number[number]) for ipc, number in document["best"].items()][-MAX_NAMED:]
    scores = listed(f"{metric_text(trial, score)} at IPC {ipc}" for ipc, trial in named)
    settings = "; ".join(f"IPC {ipc}: trial {trial.number} ({setting(trial)})" for ipc, trial in named)
    more = len(document["best"]) - len(named)
    table = f" The table has {more} more IPCs." if more else ""
    luck = "the highest of many is in part luck, so score the winner on test images, once."
    if document["split"] == "test":
        luck = "these scores served a choice and are no results."
    headline = f"Best {metric_name(score).lower()} on {document['split']} images: {scores}"
    return Claim(headline, f"{settings}.{table} Trials were scored on {document['split']} images: {luck}")


def row_claim(comparison: Comparison) -> Claim:
    """The generated row that is clearly above the baseline at the most IPCs, or that none is."""
    baseline, ipc = comparison.baseline, comparison.ipcs[-1]
    if comparison.num_tests == 0:
        needs = "Intervals need two generator seeds or more, with results that differ"
        return Claim(f"No row can be judged against {baseline}", f"{needs}: nothing differs from noise.")

    def rank(name: str) -> tuple[int, float]:
        above = comparison.clear(name)
        return len(above), sum(difference.mean for difference in above.values())

    def accuracy(name: str) -> str:
        return f"{name} {100 * comparison.cells[name, ipc].accuracy.mean:.1f}\u202f%"

    def highest(names: Iterable[str]) -> str:
        return accuracy(max(names, key=lambda name: comparison.cells[name, ipc].accuracy.mean))

    winner = max((name for name in comparison.generated if name != baseline), key=rank, default=baseline)
    above, below = comparison.clear(winner), comparison.clear(winner, sign=-1)
    headline, sizes = f"No generated row beats {baseline} beyond the noise", ""
    if above:
        headline = f"{winner} beats {baseline} at IPC {listed(above)}"
        headline += f", but is worse at IPC {listed(below)}" if below else ""
        parts = (f"IPC {k}: {signed(d.mean)} ± {points(d.interval)} points" for k, d in above.items())
        sizes = f"{'; '.join(parts)}; adjusted over {comparison.num_tests} comparisons. "
    detail = f"{sizes}Highest generated row at IPC {ipc}: {highest(comparison.generated)}"
    real = f"; highest real images: {highest(sorted(comparison.real))}" if comparison.real else ""
    return Claim(headline, f"{detail}{real}.")


def p_text(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def work_sentence(document: Document, trials: Sequence[Trial]) -> str:
    """How the trials ended, and the time that shared candidates saved."""
    states = [state for state in STATES if state != STOPPED or document["scheduler"]]
    counts = [f"{sum(trial.state == state for trial in trials)} {state}" for state in states]
    served, pools = sum(pool["trials"] for pool in document["pools"]), len(document["pools"])
    saved = f", which saved {duration(document['saved_seconds'])}" if document["saved_seconds"] else ""
    shared = f"; {served} chose from {pools} {noun(pools, 'pools')} of candidates{saved}" if pools else ""
    return f"{len(trials)} {noun(len(trials), 'trials')}: {listed(counts)}{shared}."


def best_columns(document: Document, trials: Sequence[Trial]) -> list[dict[str, object]]:
    """The best trial of each IPC: its score and setting, and `rivals`, other trials within its interval."""
    by_number, score = {trial.number: trial for trial in trials}, document["objective"][0]
    columns = []
    for ipc, number in document["best"].items():
        best, rivals = by_number[number], None
        if score == ACCURACY and best.interval is not None:
            least = best.metrics[score] - best.interval
            others = (t for t in trials if t.state == FINISHED and t.number != number)
            rivals = sum(
                t.values.get(IPC) == best.values.get(IPC) and t.metrics[score] >= least for t in others
            )
        cells = {field: cell(best, field) for field in document["space"] if field != IPC}
        columns.append({"ipc": ipc, "trial": number, "rivals": rivals, "cells": cells})
        columns[-1]["score"] = metric_text(best, score)
    return columns


def in_order(document: Document, trials: Sequence[Trial]) -> list[Trial]:
    """Finished trials, then stopped ones, then failed ones; in each the highest score first."""
    score, rest = document["objective"][0], len(STATES)

    def order(trial: Trial) -> tuple[int, float, int]:
        state = STATES.index(trial.state) if trial.state in STATES else rest
        return state, -trial.metrics.get(score, float("-inf")), trial.number

    return sorted(trials, key=order)


def metric_text(trial: Trial, name: str) -> str:
    """The accuracy in percent with its interval, other metrics plain; a dash if missing."""
    if (metric := trial.metrics.get(name)) is None:
        return "–"
    if name != ACCURACY:
        return f"{metric:.3f}".replace("-", "−")
    return f"{100 * metric:.1f}\u202f%" + ("" if trial.interval is None else points(trial.interval, " ± "))


def cell(trial: Trial, field: str) -> str:
    return shortened(short(trial.values[field]), MAX_VALUE) if field in trial.values else "–"


def setting(trial: Trial) -> str:
    """`select.alpha=0.3, select.beta=0.5`, without the IPC."""
    return ", ".join(f"{field}={cell(trial, field)}" for field in trial.values if field != IPC)


def _metric_names(document: Document, trials: Sequence[Trial]) -> list[str]:
    """Objectives first, then other metrics of the trials."""
    reported = {name for trial in trials for name in trial.metrics}
    others = [name for name in OBJECTIVES if name in reported and name not in document["objective"]]
    return [*document["objective"], *others]


def _in_words(spec: Mapping) -> str:
    """`0.1 to 0.9, log scale`, or the listed values."""
    if "values" in spec:
        return ", ".join(map(short, spec["values"]))
    kinds = [name for key, name in (("integer", "integers"), ("log", "log scale")) if spec.get(key)]
    return ", ".join([f"{short(spec['low'])} to {short(spec['high'])}", *kinds])


def _coverage(rows: RowsDocument, numbers: Summaries) -> dict[str, Values]:
    """Deciles of the rows' pools, means over the seeds, and of the yardsticks."""
    coverage: dict[str, Values] = {}
    for row in rows["rows"]:
        keys = [(row["name"], rows["pool_images"], f"{POOL}decile_{tenth}") for tenth in range(1, 11)]
        coverage[row["name"]] = (
            {"deciles": [numbers[key].mean for key in keys]} if numbers.get(keys[0]) else {}
        )
    return coverage | (rows["yardsticks"] or {})
