"""What is said of a set's accuracy, and whether what is measured agrees."""

from ims3_ray.evaluation.results import Accuracies, Evaluation

DISTILLED = "distilled"


def accuracies(document: Evaluation) -> dict[str, Accuracies]:
    """Of the distilled set at the end of training, by the protocol's label, network by network."""
    networks = document.get("networks") or {document["protocol"]: document["sets"]}
    return {label: sets[DISTILLED]["last"] for label, sets in networks.items()}


def agrees(stated: Accuracies, measured: Accuracies) -> bool:
    """Whether the two 95 % intervals meet."""
    reach = (stated["interval"] or 0) + (measured["interval"] or 0)
    return abs(stated["mean"] - measured["mean"]) <= reach
