"""Folders of finished comparisons, as `compare` leaves them: made up, but likely."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import yaml

MODES = {
    "full": 0.60,
    "lp_ft": 0.59,
    "gradual": 0.58,
    "full_bn_source": 0.57,
    "joint": 0.56,
    "frozen_encoder": 0.53,
    "pixel_forest": 0.52,
    "scratch": 0.47,
    "head_only": 0.46,
    "zero_shot": 0.41,
}
BASELINES = ("zero_shot", "scratch", "pixel_forest")
CLASSES = {
    "soybeans": "#267000",
    "grassland": "#c8d8a0",
    "corn": "#ffd300",
    "spring wheat": "#d8b56b",
    "wetland": "#7fb2b2",
    "developed": "#9c9c9c",
    "water": "#4970a3",
    "hay": "#a5f28c",
}
SETTINGS = {
    "architecture": "unet",
    "encoder": "classic",
    "tile_size": 128,
    "batch_size": 8,
    "epochs": 20,
    "steps_per_epoch": 50,
    "learning_rate": 0.001,
    "loss": "cross_entropy",
    "class_weight_power": 0.25,
    "precision": "auto",
    "seed": 0,
}
SIDE = 128


def make_comparison(
    folder,
    *,
    modes=MODES,
    budgets=(2, 8, 20),
    classes=CLASSES,
    draws=3,
    num_blocks=24,
    failed=(),
    measures=True,
    side=SIDE,
    renamed=None,
):
    """Write a comparison's folder.

    Args:
        folder: Where.
        modes: Mean mIoU of each mode, roughly.
        budgets: Amounts of tiles.
        classes: Names and colours.
        draws: Random choices of the labels.
        num_blocks: Test blocks; below 8 there are no intervals.
        failed: Runs that failed, as (mode, amount, draw).
        measures: Whether the runs were measured in every way, or not at all.
        side: Of the panel, in pixels.
        renamed: New names of modes.
    """
    random = np.random.default_rng(7)
    named = {mode: (renamed or {}).get(mode, mode) for mode in modes}
    runs, items = [], []
    panel = _draw_labels(random, len(classes), side)
    for amount in budgets:
        found = []
        for mode, score in modes.items():
            value = score + 0.03 * np.log2(amount / 4) * (mode != "zero_shot")
            scores = np.round(value + random.normal(0, 0.008, draws), 4)
            sees = mode != "zero_shot"
            for draw in range(draws if sees else 1):
                name = f"{mode}-{amount if sees else 0}tiles-draw{draw}"
                status = "failed" if (mode, amount, draw) in failed else "ok"
                run = {
                    "name": name,
                    "folder": f"runs/{name}-0a1b2c3d4e5f",
                    "mode": named[mode],
                    "labels": f"{amount}tiles" if sees else None,
                    "draw": draw,
                    "seed": draw,
                    "fold": None,
                    "status": status,
                    "miou": None if status == "failed" else float(scores[draw]),
                    "converged": None if not sees else draw < 3 or mode != "scratch",
                    "seconds": 0.0 if not sees else 30.0 + 200 * score,
                }
                if all(run["name"] != other["name"] for other in runs):
                    runs.append(run)
                    if status == "ok":
                        _write_run(folder, run, panel, score, random)
            done = [
                score
                for draw, score in enumerate(scores[: draws if sees else 1])
                if (mode, amount, draw) not in failed
            ]
            if done:
                found.append(
                    _make_mode(named[mode], mode, done, classes, num_blocks, measures)
                )
        items.append(_make_budget(f"{amount}tiles", found, num_blocks))
    summary = _make_summary(items, runs, classes, draws, num_blocks)
    if not measures:
        _forget_measures(summary)
    _write_tables(folder, summary, runs, list(named.values()), budgets, draws)
    image = np.repeat(panel[..., None] * 25, 3, axis=2)
    noise = random.integers(0, 30, image.shape)
    np.savez_compressed(
        folder / "panel.npz", image=(image + noise).astype(np.uint8), labels=panel
    )
    return folder


def _draw_labels(random, num_classes, side):
    """Return fields with ragged borders; a corner has no label."""
    cells = random.integers(0, num_classes, (8, 8))
    labels = np.kron(cells, np.ones((side // 8, side // 8), int)).astype(np.uint8)
    labels[: side // 8, : side // 6] = 255
    return labels


def _write_run(folder, run, panel, score, random):
    path = folder / run["folder"]
    path.mkdir(parents=True)
    wrong = random.random(panel.shape) > score + 0.25
    predicted = np.where(wrong, random.integers(0, 8, panel.shape), panel)
    predicted[panel == 255] = 0
    np.savez_compressed(path / "counts.npz", panel=predicted.astype(np.uint8))
    if run["mode"] in {"pixel_forest", "zero_shot"}:
        return
    steps = np.arange(1, 21) * 50
    with (path / "history.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["epoch", "step", "loss", "learning_rate", "val_miou"])
        for index, step in enumerate(steps):
            loss = 1.6 * np.exp(-step / 400) + 0.4 - 0.3 * score
            writer.writerow([index + 1, step, loss, 0.001, ""])


def _make_mode(name, mode, scores, classes, num_blocks, measures):
    mean = float(np.mean(scores))
    has_interval = num_blocks >= 8
    num = len(classes)
    ious = np.clip(mean + 0.12 * np.cos(np.arange(num) * 2.1), 0, 1)
    confusion = np.full((num, num + 1), 800)
    confusion[:, -1] = 40 if mode == "zero_shot" else 0
    confusion[np.arange(num), np.arange(num)] = (ious * 60_000).astype(int)
    absent = {"iou_mean": None, "interval": None, "precision": None, "recall": None}
    entries = [
        {
            "name": class_name,
            "iou_mean": round(float(iou), 4),
            "interval": [round(iou - 0.05, 4), round(iou + 0.04, 4)]
            if has_interval
            else None,
            "precision": round(float(iou) ** 0.5, 4),
            "recall": round(float(iou) ** 0.6, 4),
            "num_pixels": int(confusion[index].sum()),
        }
        for index, (class_name, iou) in enumerate(zip(classes, ious, strict=True))
    ]
    if num > 1:
        entries[-1] |= absent  # no label pixel in the test part
    middles = np.linspace(0.3, 0.97, 10)
    forgot = 0.0 if mode in {"zero_shot", "head_only"} else -0.2 * (mean - 0.3)
    result = {
        "mode": name,
        "is_baseline": mode in BASELINES,
        "draws": len(scores),
        "runs": len(scores),
        "miou_mean": round(mean, 4),
        "miou_low": min(scores),
        "miou_high": max(scores),
        "interval": [round(mean - 0.031, 4), round(mean + 0.029, 4)]
        if has_interval
        else None,
        "known_miou": {"mean": mean + 0.04, "interval": None},
        "firm_miou": {"mean": mean + 0.05, "interval": None},
        "overall_accuracy_mean": mean + 0.2,
        "macro_f1_mean": mean + 0.1,
        "probability_best": 0.62 if mode == "full" else 0.05,
        "classes": entries,
        "confusion": confusion.tolist(),
        "fields": {"accuracy": mean + 0.25, "num_fields": 131},
        "calibration": {
            "ece": round(0.15 - 0.1 * mean, 4),
            "bins": [
                {
                    "low": middle - 0.03,
                    "high": middle + 0.03,
                    "share": middle**3 / 4,
                    "confidence": middle,
                    "accuracy": middle - 0.09,
                }
                for middle in middles.tolist()
            ],
        },
        "forgetting": None
        if mode in {"scratch", "pixel_forest"}
        else {"before": 0.58, "after": 0.58 + forgot, "change": forgot},
        "areas": {
            "design_based": False,
            "note": "The test blocks are no probability sample of the site.",
            "classes": [
                {
                    "name": class_name,
                    "mapped_ha": 5200.0 / (index + 1),
                    "adjusted_ha": 5000.0 / (index + 1),
                    "standard_error_ha": 130.0,
                    "labelled_ha": 4900.0 / (index + 1),
                }
                for index, class_name in enumerate(classes)
            ],
        },
        "seconds_mean": 0.0 if mode == "zero_shot" else 30.0 + 200 * mean,
        "peak_memory_bytes": 1_650_000_000,
        "steps_mean": 0 if mode == "zero_shot" else 1000,
        "trained_parameters": None if mode == "pixel_forest" else 3_237_552,
        "converged": None
        if mode in {"zero_shot", "pixel_forest"}
        else len(scores) - (mode == "scratch"),
    }
    if not measures:
        kept = ("mode", "draws", "miou_mean", "miou_low", "miou_high")
        result = {key: value if key in kept else None for key, value in result.items()}
    return result


def _make_budget(labels, modes, num_blocks):
    modes = sorted(modes, key=lambda item: -item["miou_mean"])
    references = [item for item in modes if item["is_baseline"]] + modes[:1]
    differences = [
        {
            "mode": item["mode"],
            "against": other["mode"],
            "miou": change,
            "low": change - 0.03 if num_blocks >= 8 else None,
            "high": change + 0.03 if num_blocks >= 8 else None,
            "p_value": float(np.exp(-60 * abs(change))) if num_blocks >= 8 else None,
            "p_holm": min(1.0, 9 * float(np.exp(-60 * abs(change))))
            if num_blocks >= 8
            else None,
            "significant": abs(change) > 0.06 if num_blocks >= 8 else None,
        }
        for other in references
        for item in modes
        if item is not other
        and (change := round(item["miou_mean"] - other["miou_mean"], 4)) is not None
    ]
    leader = modes[0]["mode"] if modes else None
    return {
        "labels": labels,
        "leader": leader,
        "answer": f"With {labels}, {leader} leads with mIoU "
        f"{modes[0]['miou_mean']:.3f}."
        if modes
        else f"With {labels}, no run finished.",
        "advice": {"text": "Suggested full, lp_ft; full is the best. It held."},
        "modes": modes,
        "differences": differences,
        "notes": ["joint lacks draw 1, which failed."],
        "class_effects": [
            {
                "mode": leader,
                "against": "scratch",
                "classes": [
                    {"name": item["name"], "iou": 0.0625, "low": -0.01, "high": 0.135}
                    for item in modes[0]["classes"]
                ],
            }
        ]
        if modes and modes[0].get("classes")
        else [],
    }


def _make_summary(budgets, runs, classes, draws, num_blocks):
    leaders = budgets[-1]["modes"]
    answer = "No run finished."
    if leaders:
        best, last = leaders[0], leaders[-1]
        answer = (
            f"With {budgets[-1]['labels'].removesuffix('tiles')} labelled tiles, "
            f"{best['mode']} from area 1 reaches mIoU {best['miou_mean']:.3f} and "
            f"{last['mode']} {last['miou_mean']:.3f}. The difference is "
            f"{best['miou_mean'] - last['miou_mean']:.3f}, interval 0.142 to 0.201."
        )
    return {
        "answer": answer,
        "site": "prairie-area-2",
        "source_site": "prairie-area-1",
        "from": "runs/area_1/model.keras",
        "from_sha256": "b21b9ec0" * 8,
        "manifest": "area_2.yaml",
        "source_manifest": "area_1.yaml",
        "draws": draws,
        "seeds": 1,
        "folds": None,
        "validation": "none",
        "equal": "steps",
        "settings": SETTINGS,
        "versions": {"cropseg": "0.1.0", "keras": "3.15.1", "numpy": "2.4.6"},
        "normalization": {
            "choice": "source",
            "zero_shot_miou": {"source": 0.41, "target": 0.43, "quantile": None},
        },
        "classes": [
            {"name": name, "color": color, "known": index != 5}
            for index, (name, color) in enumerate(classes.items())
        ],
        "failed": [run["name"] for run in runs if run["status"] == "failed"],
        "runs": runs,
        "method": {
            "interval": "t over draws and blocks" if num_blocks >= 8 else "range",
            "confidence": 0.95,
            "num_blocks": num_blocks,
            "why_no_interval": None
            if num_blocks >= 8
            else f"there are {num_blocks} test blocks, and an interval needs 8",
            "num_draws": draws,
            "covers": [
                "Other draws of the labels from the same training part.",
                "Other test blocks of the same area.",
            ],
            "does_not_cover": [
                "Another area, year, sensor or day.",
                "Errors of the labels themselves.",
            ],
            "smallest_difference": 0.041 if num_blocks >= 8 else None,
            "families": "Holm's correction spans all tests at one budget.",
            "smallest_difference_of": "What a test finds four times in five.",
            "classes": "Means are over the classes with a label pixel.",
            "known": "Area 1's model was scored on its own val part.",
            "label_efficiency": ["joint is without 2tiles, where a run failed."],
        },
        "budgets": budgets,
        "label_efficiency": [
            {
                "mode": item["mode"],
                "target": "what scratch reaches with 20 tiles",
                "target_miou": 0.5,
                "reached": index < 4,
                "labels": 2.5 + index if index < 4 else None,
                "low": 1.5 if index < 4 else None,
                "high": 6.25 if index < 3 else None,
            }
            for index, item in enumerate(leaders)
        ],
    }


def _forget_measures(summary):
    for name in ("versions", "normalization", "method", "label_efficiency"):
        summary[name] = None
    for budget in summary["budgets"]:
        budget["advice"], budget["differences"] = None, None


def _write_tables(folder, summary, runs, modes, budgets, draws):
    record = {
        "command": "compare",
        "site": summary["site"],
        "fingerprint": "21995bfb5392",
        "from": summary["from"],
        "from_sha256": summary["from_sha256"],
        "manifest": "area_2.yaml",
        "modes": modes,
        "labels": [f"{amount}tiles" for amount in budgets],
        "draws": draws,
        "seeds": 1,
        "folds": None,
        "validation": "none",
        "equal": "steps",
        "until_flat": False,
        "settings": SETTINGS,
        "source": {"site": "prairie-area-1", "manifest": "area_1.yaml"},
    }
    (folder / "compare.yaml").write_text(
        yaml.safe_dump(record, sort_keys=False), encoding="utf-8"
    )
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    with (folder / "results.csv").open("w", encoding="utf-8", newline="") as stream:
        names = [f"iou_{item['name']}" for item in summary["classes"]]
        columns = ["mode", "label_unit", "label_amount", "draw", "seed", "status"]
        writer = csv.DictWriter(stream, [*columns, "miou", *names], restval="")
        writer.writeheader()
        for run in runs:
            kept = {key: run[key] for key in ("mode", "draw", "seed", "status", "miou")}
            amount = (run["labels"] or "0tiles").removesuffix("tiles")
            writer.writerow({**kept, "label_unit": "tiles", "label_amount": amount})
    (folder / "comparison.svg").write_text("<svg/>", encoding="utf-8")


@pytest.fixture(scope="session")
def make_folder(tmp_path_factory):
    """Return what writes a comparison's folder, with the options given."""

    def make(**options):
        return make_comparison(tmp_path_factory.mktemp("comparison"), **options)

    return make


@pytest.fixture(scope="session")
def large_folder(make_folder):
    """Return ten modes at three budgets with eight classes; some runs failed."""
    return make_folder(failed=[("joint", 2, 1), ("gradual", 8, 0)], side=256)


@pytest.fixture(scope="session")
def small_folder(make_folder):
    """Return two modes at two budgets."""
    modes = {"full": 0.6, "scratch": 0.4}
    return make_folder(modes=modes, budgets=(2, 4), draws=1, side=32)
