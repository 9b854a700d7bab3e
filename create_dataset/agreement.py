"""How far a labelling model agrees with people, on the MT-Bench questions that its prompt did not show."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from create_dataset.prompt_sources import Record
from router_data import INFERIOR, SUPERIOR, InputError, LabelledPrompt, LabelledQuestion, normalise_prompt, read_rows

SOURCE = "lmsys/mt_bench_human_judgments"
DRAWS = 1000


def unseen_questions(path: Path) -> list[LabelledQuestion]:
    """The questions of stage 1 whose text the labelling prompt doesn't contain.

    Raises:
        InputError: stage 1 has not run.
    """
    if not path.exists():
        raise InputError(f"no questions at {path}; make them with: python3 dataset_analysis/analyse_human_judgments.py")
    return [question for question in read_rows(path, LabelledQuestion) if not question.in_labelling_prompt]


def question_records(questions: Iterable[LabelledQuestion]) -> Iterator[Record]:
    """The questions as rows of a data set, to be labelled like any other."""
    for question in questions:
        yield Record({"prompt": question.prompt, "question_id": question.question_id}, SOURCE, question.question_id)


def agreement_report(rows: Iterable[LabelledPrompt], questions: list[LabelledQuestion]) -> str:
    """The model's labels beside the people's, in lines to print.

    Twice: against the majority (whether more votes between the tiers went to the superior or to the inferior side;
    tied votes don't count, and questions with as many of both stand apart), and against stage 1's label, whose
    threshold splits the questions more evenly. Shares have 95% Wilson intervals, the rank correlation (Spearman) of
    the model's probability with the human inferior ratio a 95% bootstrap interval over questions.
    """
    by_key = {normalise_prompt(row.prompt): row for row in rows}
    pairs = [(by_key[normalise_prompt(q.prompt)], q) for q in questions if normalise_prompt(q.prompt) in by_key]
    decided = [(row, q) for row, q in pairs if q.superior_wins != q.inferior_wins]
    undecided = [row for row, q in pairs if q.superior_wins == q.inferior_wins]

    def majority(question: LabelledQuestion) -> str:
        return SUPERIOR if question.superior_wins > question.inferior_wins else INFERIOR

    lines = [
        f"agreement on {len(pairs)} of {len(questions)} MT-Bench questions that the labelling prompt does not show:",
        "  with the human majority      "
        + _agreement([row.label for row, _ in decided], [majority(q) for _, q in decided]),
        "  with stage 1's label         " + _agreement([row.label for row, _ in pairs], [q.label for _, q in pairs]),
        f"  apart: {len(undecided)} questions with as many wins on both sides"
        + (f", {sum(row.label == SUPERIOR for row in undecided)} labelled {SUPERIOR}" if undecided else ""),
    ]
    graded = [(row.superior_probability, q.inferior_ratio) for row, q in pairs if row.superior_probability is not None]
    if len({p for p, _ in graded}) > 1 and len({r for _, r in graded}) > 1:
        lines.append(f"  rank correlation of superior_probability with the human inferior ratio {_spearman(graded)}")
    return "\n".join(lines)


def _agreement(said: list[str], truth: list[str]) -> str:
    from scipy.stats import binomtest

    if not truth:
        return "no questions"
    hits = sum(a == b for a, b in zip(said, truth, strict=True))
    interval = binomtest(hits, len(truth)).proportion_ci(method="wilson")
    common = max((INFERIOR, SUPERIOR), key=truth.count)
    return (
        f"{hits} of {len(truth)}, {hits / len(truth):.0%} [{interval.low:.0%}, {interval.high:.0%}]; "
        f"always {common} would reach {truth.count(common) / len(truth):.0%}"
    )


def _spearman(pairs: list[tuple[float, float]]) -> str:
    import numpy as np
    from scipy.stats import rankdata

    def correlation(sample: np.ndarray) -> float:
        return np.corrcoef(rankdata(sample[:, 0]), rankdata(sample[:, 1]))[0, 1]

    values, random = np.array(pairs), np.random.default_rng(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        draws = [correlation(values[random.integers(len(values), size=len(values))]) for _ in range(DRAWS)]
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return f"{correlation(values):.2f} [{low:.2f}, {high:.2f}] (agreement is negative)"
