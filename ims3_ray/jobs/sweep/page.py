"""index.html of a sweep: for a user who chooses a setting or a row. It fetches nothing and runs no script."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup

from ims3_ray.display import noun
from ims3_ray.evaluation.statistics import Difference
from ims3_ray.report.coverage_plots import Dot, Line, by_decile, copying
from ims3_ray.report.formatting import METRICS, Claim, duration, environment, listed, percent, points, signed
from ims3_ray.report.inputs import shortened
from ims3_ray.report.svg import CLASS_COLOURS, INK, RANDOM
from ims3_ray.runs.records import FAILED, FINISHED, STOPPED
from ims3_ray.runs.tags import OBJECTIVES

from .comparison import (
    POOL,
    SECONDS,
    Comparison,
    Measurements,
    RowsDocument,
    compare,
    further_networks,
    measure,
)
from .plots import ACCURACY, IPC, field_panels, ipc_colours, metric_name, pareto_panels, row_panels, short
from .results import Document, as_trials
from .trial import Trial

STATES = (FINISHED, STOPPED, FAILED)  # in the table's order
YARDSTICK_NAMES = {"random": "Random real (yardstick)", "ceiling": "Ceiling"}
MAX_VALUE = 36  # letters of a value in a table or a sentence
MAX_NAMED = 3  # IPCs that the headline names


def render_sweep(document: Document) -> bytes:
    """The page, UTF-8, the same bytes for the same document. Fields, values, names and errors are untrusted text."""
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
    numbers = measure(rows, comparison)
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
        "deciles": by_decile(_decile_lines(rows, numbers)),
        "copying": copying(_dots(rows, comparison, numbers)),
        "seconds": SECONDS,
        "stages": list(dict.fromkeys(stage for row in rows["rows"] for stage in row["seconds"])),
        "yardsticks": yardsticks,
    }


def search_claim(document: Document, trials: Sequence[Trial]) -> Claim:
    """The best trial at the largest IPCs, by the first objective; or that no trial finished."""
    if not document["best"]:
        return Claim("No result", "No trial finished, or some row has a failed trial: see the trials below.")
    by_number, score = {trial.number: trial for trial in trials}, document["objective"][0]
    named = [(ipc, by_number[number]) for ipc, number in document["best"].items()][-MAX_NAMED:]
    scores = listed(f"{metric_text(trial, score)} at IPC {ipc}" for ipc, trial in named)
    settings = (f"IPC {ipc}: trial {trial.number} ({setting(trial) or 'the recipe'})" for ipc, trial in named)
    split, finished = document["split"], sum(trial.state == FINISHED for trial in trials)
    if split == "test":
        scored = "Trials were scored on test images: these scores served a choice, and are no results."
    else:
        scored = f"Trials were scored on {split} images, never on test images"
        luck = f"; the highest of {finished} is in part luck, so score the winner on test images, once"
        scored += f"{luck if finished > 1 else ''}."
    more = len(document["best"]) - len(named)
    table = f" The table has {more} more." if more else ""
    headline = f"Best {metric_name(score).lower()} on {split} images: {scores}"
    return Claim(headline, f"{'; '.join(settings)}.{table} {scored}")


def row_claim(comparison: Comparison) -> Claim:
    """The generated row above the baseline at the most IPCs, or that none is; real images for reference."""
    baseline, ipc = comparison.baseline, comparison.ipcs[-1]
    generated = [name for name in comparison.generated if name != baseline]
    if comparison.num_tests == 0:
        needs = "Intervals need two generator seeds or more, with results that differ"
        return Claim(
            f"No row can be judged against {baseline}", f"{needs}: nothing here can be told from noise."
        )

    def rank(name: str) -> tuple[int, float]:
        above = comparison.clear(name)
        return len(above), sum(difference.mean for difference in above.values())

    def accuracy(name: str) -> float:
        return comparison.cells[name, ipc].accuracy.mean

    winner = max(generated, key=rank, default=None)
    sentences = []
    if winner is None or not rank(winner)[0]:
        headline = f"No generated row beats {baseline} beyond the noise"
        if highest := max(generated, key=accuracy, default=None):
            difference = comparison.cells[highest, ipc].difference
            text = f": {_size(difference)}" if difference and difference.p_adjusted is not None else ""
            sentences.append(f"The highest at IPC {ipc} is {highest}{text}.")
    else:
        above, below = comparison.clear(winner), comparison.clear(winner, sign=-1)
        headline = f"{winner} beats {baseline} at IPC {listed(above)}"
        headline += f", but is worse at {listed(below)}" if below else ""
        sizes = "; ".join(f"IPC {k}: {_size(difference)}" for k, difference in above.items())
        sentences.append(f"{sizes}; adjusted over {comparison.num_tests} comparisons.")
        others = {name: comparison.clear(name) for name in generated if name != winner}
        if clear := ", ".join(f"{name} (IPC {listed(at)})" for name, at in others.items() if at):
            sentences.append(f"Also above {baseline}: {clear}; differences among these rows were not tested.")
    if comparison.real:
        real, ours = max(sorted(comparison.real), key=accuracy), max(comparison.generated, key=accuracy)
        best = f"the best real images ({real}) reach {100 * accuracy(real):.1f}\u202f%"
        sentences.append(
            f"At IPC {ipc}, {best}, the best generated row ({ours}) {100 * accuracy(ours):.1f}\u202f%."
        )
    return Claim(headline, " ".join(sentences))


def _size(difference: Difference) -> str:
    interval = points(difference.interval or 0)
    return f"{signed(difference.mean)} ± {interval} points ({p_text(difference.p_adjusted or 0)})"


def p_text(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def work_sentence(document: Document, trials: Sequence[Trial]) -> str:
    """How the trials ended, and the time that shared candidates saved."""
    counts = [f"{sum(trial.state == state for trial in trials)} {state}" for state in STATES]
    if not document["scheduler"]:
        counts.pop(1)
    text = f"{len(trials)} {noun(len(trials), 'trials')}: {listed(counts)}."
    if pools := document["pools"]:
        served = sum(pool["trials"] for pool in pools)
        saved = document["saved_seconds"]
        text += f" {len(pools)} {noun(len(pools), 'pools')} of candidates served {served} {noun(served, 'trials')}"
        text += f", which saved {duration(saved)}." if saved else "."
    return text


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


def metric_text(trial: Trial, name: str) -> str | Markup:
    """The accuracy in percent with its interval, other metrics plain; a dash if missing."""
    if (metric := trial.metrics.get(name)) is None:
        return "–"
    if name != ACCURACY:
        return f"{metric:.3f}".replace("-", "−")
    return percent(metric) + ("" if trial.interval is None else points(trial.interval, " ± "))


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


def _decile_lines(rows: RowsDocument, numbers: Measurements) -> list[Line]:
    lines = []
    for index, row in enumerate(rows["rows"]):
        if row["pool"]:
            keys = [(row["name"], rows["pool_images"], f"{POOL}decile_{tenth}") for tenth in range(1, 11)]
            lines.append(Line(row["name"], [numbers[key].mean for key in keys], _colour(index)))
    for name, values in (rows["yardsticks"] or {}).items():
        deciles = values["deciles"]
        assert isinstance(deciles, list)
        colour = RANDOM if name == "random" else INK
        lines.append(Line(YARDSTICK_NAMES[name], deciles, colour, yardstick=True))
    return lines


def _dots(rows: RowsDocument, comparison: Comparison, numbers: Measurements) -> list[Dot]:
    """Of the pools; of the selected sets at the largest IPC if no row has a pool."""
    has_pool = any(row["pool"] for row in rows["rows"])
    ipc, prefix = (rows["pool_images"], POOL) if has_pool else (comparison.ipcs[-1], "")
    dots = []
    for index, name in enumerate(comparison.rows):
        copies = numbers.get((name, ipc, f"{prefix}copy_rate"))
        covered = numbers.get((name, ipc, f"{prefix}low_density_coverage"))
        if copies and covered:
            dots.append(Dot(name, copies.mean, covered.mean, _colour(index)))
    return dots


def _colour(index: int) -> str:
    return CLASS_COLOURS[index % len(CLASS_COLOURS)]
