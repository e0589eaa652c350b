"""The words of a decision's page in English and Chinese, and the reviewed text of each feature's reason."""

import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from services.training.errors import DataMissing

Language = Literal["en", "zh"]
Say = Callable[[str], str]
Reasons = Mapping[str, Mapping[str, str]]

# A file of the risk service, read as a file: services do not import each other.
REASONS = Path(__file__).parents[2] / "risk" / "reasons.toml"

WORDS: Mapping[str, tuple[str, str]] = {
    "title": ("Why this payment scored as it did", "该笔支付评分的依据"),
    "event": ("event", "事件"),
    "score": ("Probability of fraud", "欺诈概率"),
    "place": (
        "Higher than {share} of the {rows} payments of the {days} days before.",
        "高于此前{days}天内 {rows} 笔支付中的 {share}。",
    ),
    "no_place": ("There are no payments of the days before to compare with.", "此前没有可比较的支付。"),
    "stopped": ("At or above the threshold of {threshold}.", "达到或高于阈值 {threshold}。"),
    "passes": ("Below the threshold of {threshold}.", "低于阈值 {threshold}。"),
    "parts": ("What the score is made of", "评分的构成"),
    "legend": (
        "To the right, marked +: raises the risk; to the left, marked −: lowers it. In logit units.",
        "向右、标 + 的条形提高风险；向左、标 − 的条形降低风险。长度单位为 logit。",
    ),
    "feature": ("feature", "特征"),
    "value": ("this payment", "本笔支付"),
    "account": ("this account's median", "该账户的中位数"),
    "quantile": ("training payments below", "训练数据中更低的占比"),
    "effect": ("adds", "贡献"),
    "reason": ("reason", "原因"),
    "none": ("No effect on this score: {names}.", "对本次评分没有影响：{names}。"),
    "account_rows": (
        "Of the account's own payments of the {days} days before: {rows}.",
        "该账户此前{days}天内自己的支付：{rows} 笔。",
    ),
    "training": (
        "Training payments: {rows}, of {days}.",
        "训练数据：{rows} 笔支付，日期 {days}。",
    ),
    "sum": ("The sum", "求和"),
    "base": ("base", "基准"),
    "curve": ("and calibrated", "校准后"),
    "otherwise": ("What would have to be otherwise", "怎样才会低于阈值"),
    "already": ("Nothing: the score is below the threshold.", "无需改变：评分已低于阈值。"),
    "no_way": (
        "Nothing that a person or time can move brings it below the threshold: no change of one or two "
        "things does, and none was found of three.",
        "客户或时间所能改变的任何事项都不能使其低于阈值：一项或两项的全部改变均已试过，三项的改变中也没有找到。",
    ),
    "would": (
        "The probability would be {probability}, below the threshold, if all of this were so:",
        "如果以下各项同时成立，概率将为 {probability}，低于阈值：",
    ),
    "from": ("is", "现为"),
    "to": ("would be", "应为"),
    "by": ("moved by", "由谁改变"),
    "shift": ("shift, of training payments", "移动幅度（训练数据占比）"),
    "person": ("the person", "客户"),
    "time": ("time", "时间"),
    "exact": ("No smaller change does it.", "没有更小的改变能做到。"),
    "search": (
        "Fewer changes do not do it; of as many, a smaller one may exist.",
        "更少的改变不够；同样数量的改变中可能还有更小的。",
    ),
    "follows": ("What follows from it: {names}.", "随之改变：{names}。"),
    "caution": (
        "This is about the model's score alone. The policy's rules and costs may still ask for a review, and "
        "nothing here is a promise to anybody.",
        "以上只针对模型评分。策略中的规则和成本仍可能要求人工审核；能降低评分的改变不构成对任何人的承诺。",
    ),
    "model": ("Model", "模型"),
    "version": ("version", "版本"),
    "missing": ("missing", "缺失"),
    "channel": ("channel", "渠道"),
}


def speaking(language: Language) -> Say:
    """Looks a word up in that language."""
    return lambda name: WORDS[name][0 if language == "en" else 1]


def read_reasons(path: Path | None) -> Reasons:
    """The texts by feature: `raises_en`, `lowers_en`, `raises_zh`, `lowers_zh`.

    Args:
        path: None for the risk service's own, and for no texts at all where that is not there.
    Raises:
        DataMissing: the file named cannot be read, or is not a file of reasons.
    """
    if path is None and not REASONS.is_file():
        return {}
    path = path or REASONS
    try:
        told = tomllib.loads(path.read_text(encoding="utf-8"))
        return {
            feature: {str(key): str(text) for key, text in each.items()} for feature, each in told.items()
        }
    except OSError as error:
        raise DataMissing(f"{path} cannot be read ({error.strerror}). Give another --reasons.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise DataMissing(f"{path} is not a file of reasons ({error}). Give another --reasons.") from error


def reason(reasons: Reasons, feature: str, contribution: float, language: Language) -> str:
    """The reviewed text of a feature that raises or lowers a score; empty where there is none."""
    return reasons.get(feature, {}).get(f"{'raises' if contribution > 0 else 'lowers'}_{language}", "")
