"""The model card: model.json told for people."""

from collections.abc import Mapping
from typing import Any

_FIGURES = {
    "auc_roc": "AUC ROC",
    "average_precision": "average precision",
    "card_precision_100": "card precision@100",
    "calibration_error": "calibration error",
    "brier": "Brier score",
    "log_loss": "log loss",
}


def figures_table(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """A Markdown table of `Report.as_dict` values, a row for each name, with the intervals."""
    shown = [name for name in _FIGURES if any(name in report["metrics"] for report in reports.values())]
    lines = [
        "| | " + " | ".join(_FIGURES[name] for name in shown) + " |",
        "|---" * (len(shown) + 1) + "|",
    ]
    for title, report in reports.items():
        cells = []
        for name in shown:
            figure = report["metrics"].get(name)
            digits = 5 if name in ("brier", "calibration_error", "log_loss") else 3
            cells.append(
                f"{figure['value']:.{digits}f} ({figure['low']:.{digits}f} to {figure['high']:.{digits}f})"
                if figure
                else "no probability"
            )
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def model_card(about: Mapping[str, Any]) -> str:
    """Markdown: purpose, data, figures beside the baselines, reasons, limits, how to make it again."""
    trained, metrics = about["trained"], about["metrics"]
    data, split, calibration = trained["data"], trained["split"], trained["calibration"]
    reports = {
        "simple rule": metrics["baselines"]["rule"],
        "logistic regression": metrics["baselines"]["logistic"],
    }
    reports["this model"] = metrics["test"]
    pairs = ", ".join(f"`{first}` with `{second}`" for first, second in trained["pairs"]) or "none"
    weights = "\n".join(
        f"| `{name}` | {weight:.3f} |"
        for name, weight in sorted(trained["importance"].items(), key=lambda item: -item[1])
        if weight > 0
    )
    unused = ", ".join(f"`{name}`" for name, weight in trained["importance"].items() if weight == 0)
    test, width = metrics["test"], len(about["features"])
    a, b, c = (f"{calibration[name]:.4f}" for name in "abc")
    rows, frauds = ({**trained[kind], "test": test[kind]} for kind in ("rows", "frauds"))
    windows = "\n".join(
        f"| {name} | {split[name]} | {rows[name]:,} | {frauds[name]:,} |"
        for name in ("train", "validation", "test")
    )
    return f"""\
# {about["name"]}, version {about["version"]}

Scores a payment for fraud. The logit is a base plus one contribution of each feature, so its reasons are
exact: `logit = base_logit + sum(contributions)`. Contributions are Shapley values against the training rows.

| | |
|---|---|
| Input | `features` float32 [n, {width}], in the order of model.json |
| Feature spec | `{about["feature_spec"]}` |
| Outputs, float32 | `logit` [n, 1], `probability` [n, 1] (calibrated), `contributions` [n, {width}] |
| Base logit | {about["base_logit"]:.4f} |
| Calibration | sigmoid(a ln p - b ln(1 - p) + c), p = sigmoid(logit); a {a}, b {b}, c {c} |
| Kind | boosted trees of one feature each, and of pairs: {pairs} |

## Data

Origin: {trained["origin"]}.

{data["rows"]:,} payments of {data["accounts"]:,} accounts, {data["first_day"]} to {data["last_day"]};
{data["frauds"]:,} of them were reported as fraud. SHA-256 over the columns:
`{data["fingerprint"]}`.

| window | days | rows | frauds |
|---|---|---|---|
{windows}

The validation chose the number of rounds and the pairs, and fitted the calibration. Between the windows lie
{trained["label_delay_days"]} days, in which labels come in. What was not reported when the test began was not
known to the fit. Accounts with a fraud reported before a test day are left out of that day.

## Figures on the later week

{figures_table(reports)}

In brackets the 95 % interval over {test["bootstrap"]["draws"]} resamplings of whole accounts. All three were
measured on the same rows.

## What it looks at

Mean absolute contribution on the test rows, in logit units.

| feature | contribution |
|---|---|
{weights}

Not used: {unused or "none"}.

## Limits

- It knows the payments it was trained on. Before it decides on a bank's, train it on that bank's events with
  the same command, and compare the figures.
- A fraud that nobody reports is taken for an honest payment, in training and in these figures.
- Calibration holds for the share of fraud of the validation week; watch it, and train again when it moves.
- No feature says who a person is; habits may still differ between groups: that is not measured here.

## Make it again

```
{trained["command"]}
```
{_compressed(trained)}
Code {trained["code_version"]}. The same data, code, settings and seed give the same model.onnx, to the byte:
`{about["sha256"]}`.
"""


def _compressed(trained: Mapping[str, Any]) -> str:
    """Where a compressed version came from; nothing for another."""
    if "compressed" not in trained:
        return ""
    how = trained["compressed"]
    return (
        f"\nThat gave version {how['from']} (`{how['sha256']}`), which `weir compress risk` made smaller: "
        f"{how['how']}.\nRows and figures of the baselines are those of that version.\n"
    )
