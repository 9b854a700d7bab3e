"""How far a labelling model agrees with people, on the MT-Bench questions that its prompt did not show."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from prompt_files import Record
from router_data import INFERIOR, SUPERIOR, InputError, LabelledPrompt, LabelledQuestion, normalise_prompt, read_rows

SOURCE = "lmsys/mt_bench_human_judgments"
RESAMPLES = 1000  # of the questions, for a bootstrap interval


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


def agreement_report(rows: Iterable[LabelledPrompt], questions: Sequence[LabelledQuestion]) -> str:
    """The model's labels beside the people's, in lines to print.

    The labels twice: against the majority (whether more votes between the tiers went to the superior or to the
    inferior side; tied votes don't count, and questions with as many of both stand apart), and against stage 1's label,
    whose threshold splits the questions more evenly. Shares have 95% Wilson intervals. Then the rank correlation
    (Spearman) of the human inferior ratio with the gain, where the model gave both qualities, and with the soft label;
    it has a 95% bootstrap interval over questions.
    """
    by_key = {normalise_prompt(row.prompt): row for row in rows}
    pairs = [(by_key[key], question) for question in questions if (key := normalise_prompt(question.prompt)) in by_key]
    decided = [(row, question) for row, question in pairs if question.superior_wins != question.inferior_wins]
    tied = [row for row, question in pairs if question.superior_wins == question.inferior_wins]
    majority = [SUPERIOR if question.superior_wins > question.inferior_wins else INFERIOR for _, question in decided]
    with_stage_1 = label_agreement([row.label for row, _ in pairs], [question.label for _, question in pairs])
    lines = [
        f"agreement on {len(pairs)} of {len(questions)} MT-Bench questions that the labelling prompt does not show:",
        f"  with the human majority      {label_agreement([row.label for row, _ in decided], majority)}",
        f"  with stage 1's label         {with_stage_1}",
        f"  apart: {len(tied)} questions with as many wins on both sides"
        + (f", {sum(row.label == SUPERIOR for row in tied)} labelled {SUPERIOR}" if tied else ""),
    ]
    soft_labels = [(row.superior_probability, question.inferior_ratio) for row, question in pairs]
    gains = [(_gain(row), question.inferior_ratio) for row, question in pairs]
    for name, values in (("the gain", gains), ("superior_probability", soft_labels)):
        known = [(value, ratio) for value, ratio in values if value is not None]
        if len({value for value, _ in known}) > 1 and len({ratio for _, ratio in known}) > 1:
            lines.append(f"  rank correlation of {name} with the human inferior ratio {rank_correlation(known)}")
    return "\n".join(lines)


def _gain(row: LabelledPrompt) -> float | None:
    if row.inferior_quality is None or row.superior_quality is None:
        return None
    return row.superior_quality - row.inferior_quality


def label_agreement(predicted: Sequence[str], labels: Sequence[str]) -> str:
    """How many labels were predicted, beside what the commonest label alone would reach."""
    from scipy.stats import binomtest

    if not labels:
        return "no questions"
    hits = sum(a == b for a, b in zip(predicted, labels, strict=True))
    interval = binomtest(hits, len(labels)).proportion_ci(method="wilson")
    common = max((INFERIOR, SUPERIOR), key=list(labels).count)
    return (
        f"{hits} of {len(labels)}, {hits / len(labels):.0%} [{interval.low:.0%}, {interval.high:.0%}]; "
        f"always {common} would reach {list(labels).count(common) / len(labels):.0%}"
    )


def rank_correlation(pairs: Sequence[tuple[float, float]]) -> str:
    """Spearman's rank correlation with its interval; resamples in which it is not defined are left out."""
    import numpy as np
    from scipy.stats import bootstrap, spearmanrho

    values, ratios = np.array(pairs).T
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a resample may hold one value only
        correlation = spearmanrho(values, ratios).statistic
        resampled = bootstrap(
            (values, ratios),
            lambda x, y, axis: spearmanrho(x, y, axis=axis).statistic,
            n_resamples=RESAMPLES,
            paired=True,
            vectorized=True,
            method="percentile",
            rng=0,
        ).bootstrap_distribution
        low, high = np.nanpercentile(resampled, [2.5, 97.5])
    return f"{correlation:.2f} [{low:.2f}, {high:.2f}] (agreement is negative)"
