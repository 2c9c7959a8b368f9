"""The report as one self-contained page."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from markupsafe import Markup

from cropseg.checks.page import open_template
from cropseg.comparison.report.class_tables import (
    list_areas,
    list_confusions,
    list_effects,
)
from cropseg.comparison.report.content import (
    find_answer,
    find_version,
    list_absent,
    list_budgets,
    list_calibration,
    list_coverage,
    list_definitions,
    list_efficiency_notes,
    list_facts,
    list_fields,
    list_forgetting,
    list_mode_words,
    list_settings,
    list_warnings,
    name_comparison,
    split_answer,
    tell_families,
    tell_smallest,
    write_record,
)
from cropseg.comparison.report.data import ReportData
from cropseg.comparison.report.figures import draw_costs, draw_curves, draw_forgetting
from cropseg.comparison.report.panels import ERROR_LEGEND, show_panels
from cropseg.comparison.report.reproduce import list_commands
from cropseg.comparison.report.run_figures import draw_learning, draw_reliability
from cropseg.comparison.report.tables import (
    list_class_scores,
    list_efficiency,
    list_runs,
)
from cropseg.comparison.report.values import make_breakable

_PACKAGE = "cropseg.comparison.report"


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of the page that may be missing."""

    key: str
    """Its name in the page's address."""
    title: str
    """Its heading."""
    is_there: bool
    """Whether the folder holds what it shows."""
    reason: str
    """Why it would be missing, as a sentence."""


def render_page(data: ReportData) -> str:
    """Return the page of a comparison."""
    script = files(_PACKAGE).joinpath("report.js").read_text(encoding="utf-8")
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    context = _describe(data)
    parts = _list_parts(context)
    template = open_template("report.html.j2", _PACKAGE)
    return template.render(
        **context,
        breakable=make_breakable,
        script=Markup(script),  # noqa: S704 - our own file
        script_hash=base64.b64encode(digest).decode("ascii"),
        parts=[part for part in parts if part.is_there],
        missing=[part for part in parts if not part.is_there],
        there={part.key for part in parts if part.is_there},
    )


def _describe(data: ReportData) -> dict[str, Any]:
    """Return what the template shows."""
    source, site = name_comparison(data)
    commands, notes = list_commands(data)
    interval, covers, gaps = list_coverage(data)
    class_scores = [list_class_scores(data, budget) for budget in data.budgets]
    classes = [item["name"] for item in data.classes if item["known"] is False]
    return {
        "source": source,
        "site": site,
        "answers": split_answer(find_answer(data)),
        "facts": list_facts(data),
        "warnings": list_warnings(data),
        "styles": list(data.styles.values()),
        "mode_words": list_mode_words(data),
        "curves": (
            [draw_curves(data, is_wide=True), draw_curves(data, is_wide=False)]
            if data.budgets
            else [None, None]
        ),
        "budgets": list_budgets(data),
        "smallest": tell_smallest(data),
        "families": tell_families(data),
        "class_scores": [table for table in class_scores if table],
        "unknown_classes": classes,
        "effects": [list_effects(budget) for budget in reversed(data.budgets)],
        "definitions": list_definitions(data),
        "absent_classes": list_absent(data),
        "forgetting": draw_forgetting(data),
        "forgetting_tables": list_forgetting(data),
        "costs": draw_costs(data),
        "efficiency": list_efficiency(data),
        "efficiency_notes": list_efficiency_notes(data),
        "reliability": draw_reliability(data),
        "calibration": list_calibration(data),
        "fields": list_fields(data),
        "areas": list_areas(data),
        "confusions": list_confusions(data),
        "panels": show_panels(data),
        "error_legend": ERROR_LEGEND,
        "learning": draw_learning(data),
        "interval": interval,
        "covers": covers,
        "gaps": gaps,
        "settings": list_settings(data),
        "runs": list_runs(data),
        "record": write_record(data),
        "commands": commands,
        "notes": notes,
        "version": find_version(data),
    }


def _list_parts(found: dict[str, Any]) -> list[Part]:
    """Return all parts of the page in their order."""
    budgets = found["budgets"]
    rows = (
        ("curves", "Accuracy against labels", found["curves"][0], "No run finished."),
        ("modes", "Every mode at every budget", budgets, "No run finished."),
        (
            "differences",
            "Differences",
            any(budget.differences for budget in budgets),
            "No two modes were tested against each other.",
        ),
        (
            "classes",
            "Class by class",
            found["class_scores"],
            "The summary holds no scores of single classes.",
        ),
        (
            "forgetting",
            "What is forgotten",
            found["forgetting"],
            "Area 1 was not scored again; `--source` with its manifest does that.",
        ),
        (
            "cost",
            "What it costs",
            found["costs"] or any(budget.costs for budget in budgets),
            "No run says how long it took.",
        ),
        (
            "efficiency",
            "Labels needed",
            found["efficiency"],
            " ".join(found["efficiency_notes"])
            or "They were not estimated, for which runs have to converge.",
        ),
        (
            "calibration",
            "How sure, and how right",
            found["calibration"] or found["reliability"],
            "Probabilities were not compared with what is right.",
        ),
        (
            "fields",
            "Field by field",
            found["fields"],
            (
                "No field was scored: labels are pixels, or no field lies wholly in a "
                "test block."
            ),
        ),
        ("areas", "Hectares per crop", found["areas"], "No areas were estimated."),
        (
            "confusion",
            "What is taken for what",
            found["confusions"],
            "The summary holds no confusion counts.",
        ),
        (
            "maps",
            "On the map",
            found["panels"],
            "panel.npz, or the runs' predictions for it, are missing.",
        ),
        (
            "learning",
            "How the runs learned",
            found["learning"],
            "No run's history is there.",
        ),
        (
            "covers",
            "What the intervals cover, and what not",
            found["covers"] or found["gaps"] or found["interval"],
            "The summary does not say how its intervals were made.",
        ),
        (
            "settings",
            "Settings and versions",
            found["settings"] or found["record"],
            "compare.yaml and the summary's settings are missing.",
        ),
        (
            "again",
            "How to do it again",
            found["commands"],
            "compare.yaml is missing, which says what was compared.",
        ),
    )
    return [
        Part(key=key, title=title, is_there=bool(value), reason=reason)
        for key, title, value, reason in rows
    ]
