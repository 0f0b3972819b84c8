"""What a sweep's page opens with: the best trial by IPC, what its score may be taken for, what was shared."""

from ims3_ray.report.formatting import Claim, duration, listed
from ims3_ray.runs.records import FAILED, FINISHED, STOPPED

from .results import IPC, MOST_NAMED, Results, metric_name, setting


def sweep_claim(results: Results) -> Claim:
    """Of the first objective, on the largest IPCs. Says so where no trial finished."""
    if not results.best:
        return Claim("No trial finished", "Nothing was chosen, and there is no setting to run.")
    split, named = results.document["split"], list(results.best.items())[-MOST_NAMED:]
    scores = []
    for ipc, trial in named:
        interval = results.interval(trial)
        unit = ("" if interval is None else f" ± {100 * interval:.1f}") + "\u202f%"
        scores.append(f"{results.in_words(results.score(trial), unit)} at {ipc}")
    images = "image" if named[-1][0] == "1" else "images"
    headline = (
        f"Best {metric_name(results.objective).lower()} on {split} images: {listed(scores)} {images} a class"
    )
    settings = []
    for ipc, trial in named:
        where = f"at {ipc}: " if len(results.best) > 1 else ""
        values = setting(trial, leave_out=[IPC]) or "the recipe as it is"
        settings.append(f"{where}trial {trial.number} ({values})")
    detail = "; ".join(settings)
    left = len(results.best) - len(named)
    more = f" The table has {left} more." if left else ""
    return Claim(headline, f"{detail[0].upper()}{detail[1:]}.{more} {_scored_on(results, split)}")


def sweep_work(results: Results) -> str:
    """What became of the trials, how many lie on the Pareto front, what they shared and the time it saved."""
    document = results.document
    stopped, by = results.count(STOPPED), f" by {document['scheduler']}" if document["scheduler"] else ""
    parts = [f"{results.count(FINISHED)} finished", f"{results.count(FAILED)} failed"]
    if by or stopped:
        parts.insert(1, f"{stopped} {'was' if stopped == 1 else 'were'} stopped early{by}")
    sentences = [f"Of {_many(len(results.trials), 'trial')} {listed(parts)}."]
    if front := len(document["pareto"]):
        sentences.append(f"{front} {'lies' if front == 1 else 'lie'} on the Pareto front.")
    if pools := document["pools"]:
        saved = document["saved_seconds"]
        saving = f", which saved {duration(saved)}" if saved else ""
        served = sum(pool["trials"] for pool in pools)
        sentences.append(
            f"{_many(len(pools), 'pool')} of candidates served {_many(served, 'trial')}{saving}."
        )
    return " ".join(sentences)


def _scored_on(results: Results, split: str) -> str:
    if split == "test":
        return (
            "Trials were scored on test images: these figures served a choice, and none of them is a result."
        )
    many = len(results.finished)
    luck = f"; the highest of {many} is in part luck, so score the winner on test images, once"
    return f"Trials were scored on {split} images, never on test images{luck if many > 1 else ''}."


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
