"""The model card's text in its languages; `card.py` fills it in."""

from collections.abc import Mapping
from typing import Literal

Language = Literal["en", "zh"]

LANGUAGES: tuple[Language, ...] = ("en", "zh")

CARD: Mapping[Language, str] = {
    "en": """\
# {name}, version {version}

Scores a payment for fraud. The logit is a base plus one contribution of each feature, so its reasons are
exact: `logit = base_logit + sum(contributions)`. Contributions are Shapley values against the training rows.

| | |
|---|---|
| Input | `features` float32 [n, {width}], in the order of model.json |
| Feature spec | `{feature_spec}` |
| Outputs, float32 | `logit` [n, 1], `probability` [n, 1] (calibrated), `contributions` [n, {width}] |
| Base logit | {base_logit:.4f} |
| Calibration | sigmoid(a ln p - b ln(1 - p) + c), p = sigmoid(logit); a {a}, b {b}, c {c} |
| Kind | boosted trees of one feature each, and of {pair_count} pairs |

## Data

Origin: {origin}.

{rows:,} payments of {accounts:,} accounts, {first_day} to {last_day};
{frauds:,} of them were reported as fraud. SHA-256 over the columns:
`{fingerprint}`.

| window | days | rows | frauds |
|---|---|---|---|
{windows}

The validation chose the number of rounds and the pairs, and fitted the calibration. Between the windows lie
{delay_days} days, in which labels come in. What was not reported when the test began was not
known to the fit. Accounts with a fraud reported before a test day are left out of that day.

## Figures on the later week

{figures}

In brackets the 95 % interval over {draws} resamplings of whole accounts. All three were
measured on the same rows.

## What it looks at

Mean absolute contribution on the test rows, in logit units.

| feature | contribution |
|---|---|
{weights}

Not used: {unused}.

Pairs that act together: {pairs}.

## Limits

- It knows the payments it was trained on. Before it decides on a bank's, train it on that bank's events with
  the same command, and compare the figures.
- A fraud that nobody reports is taken for an honest payment, in training and in these figures.
- Calibration holds for the share of fraud of the validation week; watch it, and train again when it moves.
- No feature says who a person is; habits may still differ between groups: that is not measured here.

## Make it again

```
{command}
```
{compressed}
Code {code_version}. The same data, code, settings and seed give the same model.onnx, to the byte:
`{sha256}`.
""",
    "zh": """\
# {name}，版本 {version}

为一笔支付的欺诈风险评分。对数几率（logit）等于基准值加上每个特征的一项贡献，因此理由是精确的：
`logit = base_logit + sum(contributions)`。贡献值是相对于训练数据的 Shapley 值。

| | |
|---|---|
| 输入 | `features` float32 [n, {width}]，顺序见 model.json |
| 特征规范 | `{feature_spec}` |
| 输出（float32） | `logit` [n, 1]、`probability` [n, 1]（已校准）、`contributions` [n, {width}] |
| 基准 logit | {base_logit:.4f} |
| 校准 | sigmoid(a ln p - b ln(1 - p) + c)，p = sigmoid(logit)；a {a}，b {b}，c {c} |
| 类型 | 每棵树只用一个特征的提升树，以及用两个特征的（{pair_count} 对） |

## 数据

来源：{origin}。

{first_day} 至 {last_day}，{accounts:,} 个账户的 {rows:,} 笔支付，其中 {frauds:,} 笔被报告为欺诈。
各列的 SHA-256：
`{fingerprint}`。

| 时间窗 | 日期 | 行数 | 欺诈 |
|---|---|---|---|
{windows}

验证窗决定了轮数与特征对，并用于拟合校准。各窗之间相隔 {delay_days} 天，以等待标签到达。
测试开始时尚未报告的欺诈，拟合时一概不知。在某个测试日之前已报告过欺诈的账户，不计入该日。

## 之后一周的结果

{figures}

括号内为对整个账户重抽样 {draws} 次得到的 95 % 区间。三者在相同的行上测得。

## 它看重什么

测试行上贡献值绝对值的平均，以 logit 为单位。

| 特征 | 贡献 |
|---|---|
{weights}

未使用：{unused}。

共同作用的特征对：{pairs}。

## 局限

- 它只了解训练所用的支付。在为一家银行作决策之前，请用同一命令以该行的事件训练，并比较结果。
- 无人报告的欺诈在训练与上述结果中均被当作正常支付。
- 校准只在验证窗的欺诈比例下成立；请持续监视，比例变化时重新训练。
- 没有任何特征说明客户是谁；但不同群体的习惯仍可能不同：此处未作测量。

## 重新生成

```
{command}
```
{compressed}
代码 {code_version}。相同的数据、代码、设置与种子得到逐字节相同的 model.onnx：`{sha256}`。
""",
}

# Words of its tables: the columns of figures, the rows, the windows, and what stands for nothing.
WORDS: Mapping[Language, Mapping[str, str]] = {
    "en": {
        "auc_roc": "AUC ROC",
        "average_precision": "average precision",
        "card_precision_100": "card precision@100",
        "calibration_error": "calibration error",
        "brier": "Brier score",
        "log_loss": "log loss",
        "rule": "simple rule",
        "logistic": "logistic regression",
        "this": "this model",
        "train": "train",
        "validation": "validation",
        "test": "test",
        "to": " to ",
        "no probability": "no probability",
        "with": "`{0}` with `{1}`",
        "comma": ", ",
        "none": "none",
        "compressed": "\nThat gave version {0} (`{1}`), which `weir compress risk` made smaller: {2}.\n"
        "Rows and figures of the baselines are those of that version.\n",
    },
    "zh": {
        "auc_roc": "AUC ROC",
        "average_precision": "平均精确率",
        "card_precision_100": "每日前 100 卡精确率",
        "calibration_error": "校准误差",
        "brier": "Brier 分数",
        "log_loss": "对数损失",
        "rule": "简单规则",
        "logistic": "逻辑回归",
        "this": "本模型",
        "train": "训练",
        "validation": "验证",
        "test": "测试",
        "to": " 至 ",
        "no probability": "无概率",
        "with": "`{0}` 与 `{1}`",
        "comma": "、",
        "none": "无",
        "compressed": "\n由此得到版本 {0}（`{1}`），再由 `weir compress risk` 压缩：{2}。\n"
        "基线的行数与结果为该版本所测。\n",
    },
}
