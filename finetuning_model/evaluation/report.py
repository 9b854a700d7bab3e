"""evaluation.json as a report for people: Markdown, and the few lines that are printed."""

LESS_IS_BETTER = (
    "Brier score",
    "expected calibration error",
    "CPT(50)",
    "CPT(80)",
    "cost at CPT(50)",
    "cost at CPT(80)",
)
SAME_AS_CHANCE = ("always superior", "majority", "random")  # a ranking by them is what "always inferior" stands for
KNOWS_THE_TEST = "category's gain in the other half of the test"  # no router could know it: shown, but not in a verdict
EXCERPT = 160  # characters of a missed prompt

READING = f"""\
Every figure has its 95% bootstrap interval over prompts (1,000 draws) in brackets. A difference is this router minus
the baseline on the same draws: ▲ the router is better, ▼ it is worse, unmarked the interval holds 0 and nothing is
decided. Of {", ".join(LESS_IS_BETTER[:4])} and costs, less is better.
AUROC: how often a prompt that needs the superior model outscores one that does not. PGR: share recovered of the gap
between the inferior and the superior model's mean quality; APGR: its mean over all shares of superior calls (random:
0.5); CPT(50): share of superior calls at which PGR reaches 50%. Baselines that learn were trained on the router's
training rows; those on embeddings use its encoder as it was before fine-tuning."""


def markdown(evaluation: dict) -> str:
    """The whole report."""
    parts = [
        f"# Evaluation of {evaluation['model_save_dir'].rstrip('/').rsplit('/', 1)[-1]}",
        _facts(evaluation),
        "## Does it beat simple baselines?",
        _verdicts(evaluation),
        READING,
        *[_set(each, evaluation) for each in evaluation["sets"]],
        _probes(evaluation["probes"]),
        _robustness(evaluation["robustness"]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def summary(evaluation: dict) -> str:
    """A paragraph for each set, and all warnings."""
    lines = [f"warning: {remark}" for remark in evaluation["remarks"]]
    for each in evaluation["sets"]:
        if each.get("near_duplicates"):
            lines.append(f"warning: {_near_duplicates(each)}")
        metric, router, best, verdict = _headline(each)
        beside = f", best baseline {best[0]} {show(best[1]['figure'])}" if best else ""
        lines.append(f"{each['name']} ({each['rows']:,} prompts): {metric} {show(router)}{beside}: {verdict}")
    return "\n".join(lines)


def show(figure: dict | None, percent: bool = False, signed: bool = False) -> str:
    """A figure with its interval; a dash where there is none."""
    if figure is None or figure["value"] is None:
        return "–"
    sign = "+" if signed else ""
    if percent:
        return f"{figure['value']:{sign}.1%} [{figure['low']:{sign}.1%}, {figure['high']:{sign}.1%}]"
    return f"{figure['value']:{sign}.3f} [{figure['low']:{sign}.3f}, {figure['high']:{sign}.3f}]"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; all columns but the first are aligned to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _facts(evaluation: dict) -> str:
    files = ", ".join(f"`{path}`" for path in evaluation["train_files"]) or "files unknown"
    prices = evaluation["prices"]
    facts = [
        f"Base model {evaluation['base_model'] or 'unknown'}, scored by {evaluation['backend']}; temperature "
        f"{evaluation['temperature']:.3f}, threshold {evaluation['threshold']:g}.",
        f"Trained to tell whether {evaluation['trained_for']}; {evaluation['train_rows']:,} training rows ({files}).",
        f"Seed {evaluation['seed']}, {evaluation['evaluated_at']}.",
    ]
    if evaluation["limit"]:
        facts.append(f"A rehearsal: at most {evaluation['limit']} prompts of each file.")
    if prices:
        facts.append(
            f"1,000 prompts cost {prices[0]:g} with the superior model alone, {prices[1]:g} with the inferior."
        )
    facts += [f"**Note:** {remark}." for remark in evaluation["remarks"]]
    return "\n".join(f"- {fact}" for fact in facts)


def _headline(each: dict) -> tuple[str, dict, tuple[str, dict] | None, str]:
    """The metric, the router's figure, the best usable baseline, and what the differences say."""
    metric, scorers = each["headline"]["metric"], each["headline"]["scorers"]
    (_, router), *baselines = [item for item in scorers.items() if item[0] not in (KNOWS_THE_TEST, *SAME_AS_CHANCE)]
    decided = [(name, entry) for name, entry in baselines if entry["difference"]["value"] is not None]
    if not decided:
        return metric, router["figure"], None, "it can't be told on these prompts"
    best = max(decided, key=lambda item: item[1]["figure"]["value"])
    worse = [name for name, entry in decided if entry["difference"]["high"] < 0]
    undecided = [name for name, entry in decided if entry["difference"]["low"] <= 0 <= entry["difference"]["high"]]
    if not worse and not undecided:
        return metric, router["figure"], best, "better than every baseline"
    verdict = [f"worse than {', '.join(worse)}"] if worse else []
    verdict += [f"not shown to be better than {', '.join(undecided)}"] if undecided else []
    return metric, router["figure"], best, "; ".join(verdict)


def _verdicts(evaluation: dict) -> str:
    rows = []
    for each in evaluation["sets"]:
        metric, router, best, verdict = _headline(each)
        name, entry = best or ("–", {"figure": None, "difference": None})
        cells = [f"{each['rows']:,}", metric, f"**{show(router)}**", name, show(entry["figure"])]
        rows.append([each["name"], *cells, show(entry["difference"], signed=True), verdict])
    header = ["set", "prompts", "metric", "this router", "best baseline", "its figure", "difference", "verdict"]
    return table(header, rows)


def _near_duplicates(each: dict) -> str:
    text = f"{each['near_duplicates']:,} of the {each['rows']:,} prompts of {each['name']} are near duplicates of training rows"
    apart = each.get("without_near_duplicates")
    metric = each["headline"]["metric"]
    return f"{text}; without them {metric} is {show(apart[metric])} on {apart['rows']:,} prompts" if apart else text


def _set(each: dict, evaluation: dict) -> str:
    parts = [f"## {each['name']}", f"{each['rows']:,} prompts, {each['kind']}."]
    if each.get("near_duplicates"):
        parts.append(f"**Warning:** {_near_duplicates(each)}.")
    elif each.get("near_duplicates") == 0:
        parts.append("No prompt is a near duplicate of a training row.")
    if "curve" in each:
        parts += [
            "### Cost and quality (measured on outcomes)",
            _at_threshold(each, evaluation),
            _compared(each["curve"]),
        ]
    for target in each["targets"]:
        parts.append(f"### Target: {target['target']}")
        parts.append(f"True of {target['superior_share']:.1%} of the prompts.")
        parts += [_compared(target["metrics"]), _confusion(target["confusion"], evaluation["threshold"])]
    if "human_preference" in each:
        parts += ["### Rank correlation with the human votes", _compared(each["human_preference"])]
    parts += [f"![{plot}]({plot})" for plot in each["plots"]]
    parts.append(f"### Right decisions, by bucket (target: {each['targets'][0]['target']})")
    parts += [_buckets(name, found) for name, found in each["by"].items()]
    parts += [f"### The {len(each['misses'])} worst misses", _misses(each["misses"])] if each["misses"] else []
    return "\n\n".join(parts)


def _at_threshold(each: dict, evaluation: dict) -> str:
    found = each["at_threshold"]
    text = (
        f"At the threshold {evaluation['threshold']:g} the superior model gets {show(found['superior_calls'], True)} "
        f"of the prompts, and the answers reach {show(found['quality'], True)} of its quality; as many random calls "
        f"reach {found['quality_of_random']:.1%}, the inferior model alone {found['quality_of_inferior']:.1%}."
    )
    if "cost" in found:
        saved = 1 - found["cost"] / found["cost_of_superior"]
        text += f" 1,000 prompts cost {found['cost']:.4g} instead of {found['cost_of_superior']:g}: {saved:.0%} less."
    return text


def _compared(metrics: dict) -> str:
    """Figures of every scorer, and below them the router's lead over each baseline."""
    scorers = list(dict.fromkeys(name for entries in metrics.values() for name in entries))
    figures, leads = [], []
    for name in scorers:
        entries = {metric: metrics[metric].get(name) for metric in metrics}
        shown = [show(entry["figure"]) if entry else "–" for entry in entries.values()]
        if name == scorers[0]:
            figures.append([f"**{name}**", *[f"**{text}**" if text != "–" else text for text in shown]])
        else:
            figures.append([name, *shown])
            leads.append([name, *[_lead(metric, entry) for metric, entry in entries.items()]])
    header = list(metrics)
    return table(["", *header], figures) + "\n\n" + table([f"{scorers[0]} minus", *header], leads)


def _lead(metric: str, entry: dict | None) -> str:
    if entry is None or entry["difference"] is None or entry["difference"]["value"] is None:
        return "–"
    low, high = entry["difference"]["low"], entry["difference"]["high"]
    if metric in LESS_IS_BETTER:
        low, high = -high, -low
    return show(entry["difference"], signed=True) + (" ▲" if low > 0 else " ▼" if high < 0 else "")


def _confusion(confusion: dict, threshold: float) -> str:
    rows = [[f"needs {label}", *[f"{count:,}" for count in routes.values()]] for label, routes in confusion.items()]
    return table([f"at {threshold:g}", *[f"sent: {label}" for label in confusion]], rows)


def _buckets(name: str, found: list[dict]) -> str:
    rows = [
        [
            _cell(bucket["name"]),
            f"{bucket['rows']:,}",
            f"{bucket['superior_share']:.1%}",
            f"{bucket['mean_score']:.2f}",
            show(bucket["accuracy"], percent=True),
            f"{bucket['constant_accuracy']:.1%}",
        ]
        for bucket in found
    ]
    return table([name, "prompts", "target true", "mean score", "right", "right by one answer for all"], rows)


def _misses(misses: list[dict]) -> str:
    outcomes = "weak_score" in misses[0]
    rows = []
    for miss in misses:
        scores = [f"{miss['weak_score']:g} / {miss['strong_score']:g}"] if outcomes else []
        truth = [f"{miss['superior_probability']:.2f}", f"`{miss['truth']}`", *scores]
        rows.append([_cell(miss["prompt"]), *truth, _cell(miss["category"])])
    scores = ["scores, inferior / superior"] if outcomes else []
    return table(["prompt", "router", "truth", *scores, "category"], rows)


def _cell(text: str) -> str:
    """Any text in a cell of a table: one line, nothing of it read as Markdown or HTML."""
    text = " ".join(text.split())
    text = text if len(text) <= EXCERPT else text[: EXCERPT - 1] + "…"
    for character, safe in (("&", "&amp;"), ("<", "&lt;"), ("|", "&#124;")):
        text = text.replace(character, safe)
    for character in r"\`*_[]$":
        text = text.replace(character, "\\" + character)
    return text


def _probes(probes: dict) -> str:
    if not probes:
        return ""
    parts = ["## Probes: does the score follow the difficulty?"]
    parts.append("Prompts of our own in `finetuning_model/probes/`, written to differ in difficulty and little else.")
    if probes.get("near_duplicates"):
        parts.append(f"**Warning:** {probes['near_duplicates']} of these prompts are near duplicates of training rows.")
    for name, unit, first, last in (
        ("ordered_pairs", "pairs", "easier_below_half", "harder_above_half"),
        ("ladders", "ladders", "lowest_below_half", "highest_above_half"),
    ):
        if name not in probes:
            continue
        report = probes[name]
        if unit == "pairs":
            parts.append(f"### {report['pairs']} ordered pairs\n\nIn order: the harder prompt has the higher score.")
        else:
            parts.append(
                f"### {report['ladders']} ladders of five prompts, each harder than the one before\n\nIn order: the "
                "higher of two neighbours has the higher score. Intervals are over ladders."
            )
        rows = [
            [kind, str(found[unit]), *[show(found[key], percent=True) for key in ("in_order", first, last)]]
            for kind, found in report["by_kind"].items()
        ]
        below = (
            ["easier below 0.5", "harder at least 0.5"] if unit == "pairs" else ["first below 0.5", "last at least 0.5"]
        )
        parts.append(table(["kind", unit, "in order", *below], rows))
        parts.append(_compared({"in order": report["in_order"]}))
    return "\n\n".join(parts)


def _robustness(found: dict) -> str:
    header = ["", "decisions flipped", "to superior", "to inferior", "mean \\|Δp\\|", "mean Δp"]
    keys = ("flips", "flips_to_superior", "flips_to_inferior")

    def row(name: str, moved: dict) -> list[str]:
        changes = [show(moved["mean_absolute_change"]), show(moved["mean_change"], signed=True)]
        return [name, *[show(moved[key], percent=True) for key in keys], *changes]

    parts = ["## Robustness: does the decision hold when only the wording changes?"]
    parts.append(f"{found['prompts']} prompts drawn from the sets above, before and after each change.")
    parts.append(table(header, [row(name, moved) for name, moved in found["perturbations"].items()]))
    if found["translations"]:
        easy_hard = f"{found['translated_prompts']} prompts of our own, half easy and half hard, in each language."
        parts.append(f"### Translations\n\n{easy_hard}")
        rows = [
            [
                language,
                show(moved["accuracy"], percent=True),
                f"{moved['mean_easy']:.2f}",
                f"{moved['mean_hard']:.2f}",
                show(moved.get("flips"), percent=True),
                show(moved.get("mean_absolute_change")),
            ]
            for language, moved in found["translations"].items()
        ]
        columns = ["right", "mean score of easy", "mean score of hard", "flipped against English", "mean \\|Δp\\|"]
        parts.append(table(["language", *columns], rows))
    return "\n\n".join(parts)
