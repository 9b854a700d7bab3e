"""The model card: its limits are those that the test rows show, and no row of its table stands twice."""

from finetuning_model.evaluation.model_card import figures_table, measured_limits
from router_data import INFERIOR, SUPERIOR, LabelledPrompt

FRAMES = {"kept": {"value": 0.85, "low": 0.8, "high": 0.9}}


def rows_of(kind: str | None, n: int, right: int) -> list[LabelledPrompt]:
    """Rows of a kind, half of either label, of which the router decides so many as they are labelled."""
    routes = {INFERIOR: SUPERIOR, SUPERIOR: INFERIOR}
    rows = []
    for i in range(n):
        label = SUPERIOR if i % 2 else INFERIOR
        answer = {"router_score": 0.5, "router_label": label if i < right else routes[label], "threshold": 0.5}
        rows.append(LabelledPrompt(prompt=f"p{i}", label=label, labelled_by="test", category=kind, **answer))
    return rows


def test_the_limits_name_frames_and_the_kinds_that_one_decision_would_serve_as_well():
    rows = [*rows_of("weak_kind", 20, 10), *rows_of("strong", 20, 15), *rows_of("rare", 19, 5), *rows_of(None, 40, 10)]
    assert measured_limits(FRAMES, rows) == (
        "In the frames above 15% of the decisions are not those on the bare request. Of the 2 kinds with 20 test rows "
        "or more, one decision for the whole kind would be right as often on weak\\_kind."
    )


def test_where_no_kind_is_weak_only_frames_are_named():
    text = measured_limits(FRAMES, rows_of("strong", 30, 25))
    assert text == "In the frames above 15% of the decisions are not those on the bare request."


def test_scorers_with_the_same_figures_share_a_row():
    figure = {"AUROC": {"value": 0.5, "low": 0.5, "high": 0.5}}
    better = {"AUROC": {"value": 0.8, "low": 0.7, "high": 0.9}}
    shown = figures_table({"figures": {"this router": better, "always superior": figure, "majority": figure}})
    assert "| **this router** | 0.800" in shown and "| always superior = majority | 0.500" in shown
    assert len(shown.splitlines()) == 4
