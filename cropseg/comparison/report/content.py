"""What a report says: the parts that the page and the text have in common."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final

import yaml

from cropseg.comparison.report.data import ReportData
from cropseg.comparison.report.tables import (
    Table,
    list_by_budget,
    list_costs,
    list_differences,
    list_scores,
    make_table,
)
from cropseg.comparison.report.values import (
    MISSING,
    read_items,
    read_list,
    read_mapping,
    read_number,
    read_text,
    write_change,
    write_count,
    write_labels,
    write_percent,
    write_score,
)
from cropseg.transfer.modes import FAMILIES, PIXEL_FOREST, PLANS

_FOREST_SUMMARY: Final = (
    "A random forest on the values of single pixels. No network, nothing from area 1."
)


@dataclass(frozen=True, kw_only=True)
class BudgetView:
    """One budget."""

    labels: str
    """The budget in words."""
    answer: str
    """The answer at this budget."""
    notes: list[str]
    """What is missing from some modes."""
    advice: str
    """What the rule of thumb had said, and whether it held."""
    scores: Table | None
    """The modes."""
    costs: Table | None
    """What a run of each cost."""
    differences: list[Table]
    """Their differences, by what they are to."""


def name_comparison(data: ReportData) -> tuple[str, str]:
    """Return the names of area 1 and of the new area."""
    source = read_text(data.summary.get("source_site")) or "area 1"
    site = data.summary.get("site") or data.files.record.get("site")
    return source, read_text(site) or "the new area"


def split_answer(answer: str) -> list[str]:
    """Part an answer where it comes to the next budget, for the eye.

    Example:
        >>> split_answer("With 4 tiles, a wins. With 8 tiles, b wins.")
        ['With 4 tiles, a wins.', 'With 8 tiles, b wins.']
    """
    return re.split(r"(?<=\.) (?=With \d)", answer)


def find_answer(data: ReportData) -> str:
    """Return the answer, or why there is none."""
    answer = read_text(data.summary.get("answer"))
    if answer:
        return answer
    if data.summary:
        return "No run finished, so there is no answer."
    return "summary.json is missing or damaged, so there is no answer."


def list_facts(data: ReportData) -> list[tuple[str, str]]:
    """Return how large the comparison is, in a few figures."""
    summary, record = data.summary, data.files.record

    def read(name: str) -> Any:
        return summary.get(name, record.get(name))

    runs, failed = read_items(summary.get("runs")), read_list(summary.get("failed"))
    num_runs = len(runs) or len(data.files.rows)
    method = read_mapping(summary.get("method"))
    facts = [
        ("modes", str(len(data.styles)) if data.styles else ""),
        ("labels", _join_labels(data)),
        ("draws of the labels", write_count(read("draws"))),
        ("seeds a draw", write_count(read("seeds"))),
        ("folds", write_count(read("folds"))),
        ("test blocks", write_count(method.get("num_blocks"))),
        (
            "runs",
            f"{num_runs}, {len(failed)} failed" if failed else str(num_runs or ""),
        ),
        ("equal for all", read_text(read("equal"))),
        ("validation", read_text(read("validation"))),
    ]
    return [(name, text) for name, text in facts if text not in {"", MISSING}]


def _join_labels(data: ReportData) -> str:
    """Return the budgets in words, their unit once."""
    texts = [write_labels(item.get("labels")) for item in data.budgets]
    units = {text.rpartition(" ")[2].removesuffix("s") for text in texts}
    if len(texts) < 2 or len(units) > 1:  # noqa: PLR2004 - nothing to join
        return ", ".join(texts)
    amounts = [text.rpartition(" ")[0] for text in texts[:-1]]
    return f"{', '.join(amounts)} and {texts[-1]}"


def list_warnings(data: ReportData) -> list[str]:
    """Return what a reader has to know before the numbers."""
    summary, found = data.summary, []
    failed = [read_text(name) for name in read_list(summary.get("failed"))]
    if failed:
        found.append(
            f"{len(failed)} run(s) failed and are in no number here: "
            f"{', '.join(failed[:12])}{' and more' if len(failed) > 12 else ''}."  # noqa: PLR2004 - a few names are enough
        )
    validation = summary.get("validation", data.files.record.get("validation"))
    if validation == "oracle":
        found.append(
            "Oracle: the best epoch was chosen on the new area's val blocks, labels "
            "that someone with so few would not have. The scores are too good for that."
        )
    slow = [
        f"{item['mode']} with {write_labels(budget.get('labels'))}"
        for budget in data.budgets
        for item in data.list_modes(budget)
        if _is_unfinished(item)
    ]
    if slow:
        found.append(
            "Not all runs had converged (their loss still fell in the last tenth of "
            f"the steps): {', '.join(slow)}. More steps may change their place."
        )
    return found


def _is_unfinished(item: Mapping[str, Any]) -> bool:
    converged = read_number(item.get("converged"))
    runs = read_number(item.get("runs", item.get("draws")))
    return converged is not None and runs is not None and converged < runs


def list_budgets(data: ReportData) -> list[BudgetView]:
    """Return the budgets, from small to large."""
    return [
        BudgetView(
            labels=write_labels(budget.get("labels")),
            answer=read_text(budget.get("answer")),
            notes=[read_text(note) for note in read_list(budget.get("notes"))],
            advice=read_text(read_mapping(budget.get("advice")).get("text")),
            scores=list_scores(data, budget),
            costs=list_costs(data, budget),
            differences=list_differences(data, budget),
        )
        for budget in data.budgets
    ]


def list_mode_words(data: ReportData) -> list[tuple[str, str]]:
    """Return what each mode does, in a sentence."""
    found = []
    for mode in data.styles:
        family = FAMILIES.get(mode.partition(":")[0])
        if mode in PLANS:
            text = PLANS[mode].summary
        elif mode == PIXEL_FOREST:
            text = _FOREST_SUMMARY
        elif family:
            text = family.summary
        else:
            text = "A plan from a file, which stands whole in compare.yaml."
        found.append((mode, text))
    return found


def tell_smallest(data: ReportData) -> str:
    """Return what differences this comparison could have shown at all."""
    method = read_mapping(data.summary.get("method"))
    smallest = read_number(method.get("smallest_difference"))
    if smallest is None:
        return ""
    if smallest >= 1:
        return (
            "At half of the budgets or more, no difference of mIoU could have been "
            "shown, however large: there are too few draws or test blocks."
        )
    text = (
        f"The smallest difference of mIoU that {write_count(method.get('num_blocks'))} "
        f"test blocks could have shown is {smallest:.3f}. A smaller one that was not "
        "shown may still be there."
    )
    meaning = read_text(method.get("smallest_difference_of"))
    return f"{text} It is this: {meaning[:1].lower()}{meaning[1:]}" if meaning else text


def tell_families(data: ReportData) -> str:
    """Return over what Holm's correction goes."""
    families = read_text(read_mapping(data.summary.get("method")).get("families"))
    if not families:
        return ""
    if "Holm" not in families:
        families = f"Holm's correction spans {families.rstrip('.')}."
    return f"{families} Intervals are of single differences, without it."


def list_definitions(data: ReportData) -> list[str]:
    """Return what means are taken over, as sentences."""
    method = read_mapping(data.summary.get("method"))
    texts = [read_text(method.get(name)) for name in ("classes", "known")]
    return [text for text in texts if text]


def list_absent(data: ReportData) -> list[str]:
    """Return the classes that no mode has a score for: they have no test label."""
    scored, named = set(), set()
    for budget in data.budgets:
        for item in data.list_modes(budget):
            for entry in read_items(item.get("classes")):
                named.add(read_text(entry.get("name")))
                if read_number(entry.get("iou_mean")) is not None:
                    scored.add(read_text(entry.get("name")))
    return [item["name"] for item in data.classes if item["name"] in named - scored]


def list_efficiency_notes(data: ReportData) -> list[str]:
    """Return how the labels needed were found, as sentences."""
    notes = read_mapping(data.summary.get("method")).get("label_efficiency")
    if isinstance(notes, str):
        return [notes]
    return [read_text(item) for item in read_list(notes)]


def list_coverage(data: ReportData) -> tuple[str, list[str], list[str]]:
    """Return the method, what the intervals cover, and what they do not."""
    summary = data.summary
    method = read_mapping(summary.get("method"))
    covers = [read_text(item) for item in read_list(method.get("covers"))]
    gaps = [
        read_text(item).replace("`firm_miou`", "The mIoU over classes in enough blocks")
        for item in read_list(method.get("does_not_cover"))
    ]
    text = read_text(method.get("interval") or summary.get("spread"))
    confidence = read_number(method.get("confidence"))
    if text and confidence and not text.startswith("range"):
        text = f"{text}, {write_percent(confidence)}"
    if text == "range":
        why = read_text(method.get("why_no_interval")) or "the runs are too few"
        text = f"range over the draws, no interval: {why}"
    return text, covers, gaps


def list_forgetting(data: ReportData) -> list[Table]:
    """Return the scores on area 1 before and after, for each budget."""
    tables = []
    for budget in data.budgets:
        rows = []
        for item in data.list_modes(budget):
            found = read_mapping(item.get("forgetting"))
            rows.append(
                [
                    read_text(item["mode"]),
                    write_score(found.get("before")),
                    write_score(found.get("after")),
                    write_change(found.get("change")),
                ]
            )
        labels = write_labels(budget.get("labels"))
        table = make_table(
            f"mIoU on area 1 before and after training with {labels}",
            ("mode", "before", "after", "change"),
            rows,
        )
        if table:
            tables.append(table)
    return tables


def list_calibration(data: ReportData) -> Table | None:
    """Return ECE of each mode and budget."""
    return list_by_budget(
        data,
        "Expected calibration error (ECE), 0 is best",
        lambda item: write_score(read_mapping(item.get("calibration")).get("ece")),
    )


def list_fields(data: ReportData) -> Table | None:
    """Return per-field accuracy of each mode and budget."""
    cells = [
        read_mapping(item.get("fields"))
        for budget in data.budgets
        for item in data.list_modes(budget)
    ]
    numbers = {write_count(cell.get("num_fields")) for cell in cells} - {MISSING}

    def write(item: Mapping[str, Any]) -> str:
        fields = read_mapping(item.get("fields"))
        share = write_percent(fields.get("accuracy"))
        if len(numbers) < 2 or share == MISSING:  # noqa: PLR2004 - one number for all
            return share
        return f"{share} of {write_count(fields.get('num_fields'))}"

    of = f"{numbers.pop()} fields" if len(numbers) == 1 else "the fields"
    return list_by_budget(data, f"Share of {of} whose majority is right", write)


def list_settings(data: ReportData) -> list[Table]:
    """Return settings, versions and normalisation."""
    summary, record = data.summary, data.files.record
    tables = []
    for title, name in (
        ("Settings, equal for all modes", "settings"),
        ("Versions", "versions"),
    ):
        values = read_mapping(summary.get(name) or record.get(name))
        rows = [[read_text(key), read_text(value)] for key, value in values.items()]
        table = make_table(title, ("name", "value"), rows, num_text=2)
        if table:
            tables.append(table)
    found = read_mapping(summary.get("normalization"))
    scores = read_mapping(found.get("zero_shot_miou"))
    rows = [
        [
            f"{name}{' (used)' if name == found.get('choice') else ''}",
            write_score(score),
        ]
        for name, score in scores.items()
    ]
    head = ("bands normalised by", "mIoU of the untrained model on the labels seen")
    table = make_table("Choices of normalisation", head, rows)
    if table:
        tables.append(table)
    return tables


def write_record(data: ReportData) -> str:
    """Return `compare.yaml` as it stands, or what the summary has of it."""
    if data.files.record_text:
        return data.files.record_text.rstrip("\n")
    kept = {
        name: data.summary[name]
        for name in ("site", "source_site", "from", "draws", "validation", "settings")
        if name in data.summary
    }
    return yaml.safe_dump(kept, sort_keys=False).rstrip("\n") if kept else ""


def find_version(data: ReportData) -> str:
    """Return the version of cropseg that made the runs, else the one that writes."""
    found = read_mapping(data.summary.get("versions")).get("cropseg")
    return read_text(found) or version("cropseg")
