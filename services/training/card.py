"""The model card: model.json told for people, in each language."""

from collections.abc import Mapping
from typing import Any

from services.training.card_words import CARD, LANGUAGES, WORDS, Language

_FIGURES = ("auc_roc", "average_precision", "card_precision_100", "calibration_error", "brier", "log_loss")
_FILES: Mapping[Language, str] = {"en": "MODEL_CARD.md", "zh": "MODEL_CARD.zh.md"}


def figures_table(reports: Mapping[str, Mapping[str, Any]], language: Language = "en") -> str:
    """A Markdown table of `Report.as_dict` values, a row for each name, with the intervals."""
    words = WORDS[language]
    shown = [name for name in _FIGURES if any(name in report["metrics"] for report in reports.values())]
    lines = [
        "| | " + " | ".join(words[name] for name in shown) + " |",
        "|---" * (len(shown) + 1) + "|",
    ]
    for title, report in reports.items():
        cells = []
        for name in shown:
            figure = report["metrics"].get(name)
            digits = 5 if name in ("brier", "calibration_error", "log_loss") else 3
            if figure is None:
                cells.append(words["no probability"])
                continue
            value, low, high = (f"{figure[part]:.{digits}f}" for part in ("value", "low", "high"))
            cells.append(f"{value} ({low}{words['to']}{high})")
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def model_cards(about: Mapping[str, Any]) -> dict[str, str]:
    """The card in every language, by its file's name."""
    return {_FILES[language]: model_card(about, language) for language in LANGUAGES}


def model_card(about: Mapping[str, Any], language: Language = "en") -> str:
    """Markdown: purpose, data, figures beside the baselines, reasons, limits, how to make it again."""
    words = WORDS[language]
    trained, metrics = about["trained"], about["metrics"]
    data, split, calibration = trained["data"], trained["split"], trained["calibration"]
    importance, test = trained["importance"], metrics["test"]
    reports = {
        words["rule"]: metrics["baselines"]["rule"],
        words["logistic"]: metrics["baselines"]["logistic"],
        words["this"]: test,
    }
    weights = sorted(importance.items(), key=lambda item: -item[1])
    rows, frauds = ({**trained[kind], "test": test[kind]} for kind in ("rows", "frauds"))
    windows = "\n".join(
        f"| {words[name]} | {split[name]} | {rows[name]:,} | {frauds[name]:,} |"
        for name in ("train", "validation", "test")
    )
    return CARD[language].format(
        name=about["name"],
        version=about["version"],
        width=len(about["features"]),
        feature_spec=about["feature_spec"],
        base_logit=about["base_logit"],
        **{name: f"{calibration[name]:.4f}" for name in "abc"},
        pair_count=len(trained["pairs"]),
        pairs=words["comma"].join(words["with"].format(*pair) for pair in trained["pairs"]) or words["none"],
        origin=trained["origin"],
        **{
            name: data[name]
            for name in ("rows", "frauds", "accounts", "first_day", "last_day", "fingerprint")
        },
        windows=windows,
        delay_days=trained["label_delay_days"],
        figures=figures_table(reports, language),
        draws=test["bootstrap"]["draws"],
        weights="\n".join(f"| `{name}` | {weight:.3f} |" for name, weight in weights if weight > 0),
        unused=words["comma"].join(f"`{name}`" for name, weight in importance.items() if weight == 0)
        or words["none"],
        command=trained["command"],
        compressed=_compressed(trained, language),
        code_version=trained["code_version"],
        sha256=about["sha256"],
    )


def _compressed(trained: Mapping[str, Any], language: Language) -> str:
    """Where a compressed version came from; nothing for another."""
    if "compressed" not in trained:
        return ""
    how = trained["compressed"]
    return WORDS[language]["compressed"].format(how["from"], how["sha256"], how["how"])
