"""Whether a question is found as well when the customer's own data stands beside it.

Each question of the starter set is asked alone and in one of these frames, masked as a message is; the best
passage should be the same.
"""

from collections.abc import Sequence
from typing import Any, get_args

from services.chat.domain import Language
from services.chat.evaluate.intervals import Share
from services.chat.evaluate.retrieval import ASKED_MS, Judged, places, questions
from services.chat.knowledge.search import Found, HybridRetriever
from services.chat.masking import Masker

# The data are examples that their makers publish for this, or numbers of nobody. Rules were made on `seen`;
# on `other` none was, but a mistake of the masker that it showed was mended.
FRAMES: dict[Language, dict[str, Sequence[str]]] = {
    "en": {
        "seen": (
            "{q} My IBAN is DE89 3704 0044 0532 0130 00",
            "My card number is 4111 1111 1111 1111. {q}",
            "Hi, my name is Anna Smith. {q}",
            "I'm Anna Smith, account 12345678. {q} Thanks",
        ),
        "other": (
            "Good afternoon. {q} For reference: card 4111 1111 1111 1111, phone 020 7946 0958.",
            "{q} (IBAN DE89 3704 0044 0532 0130 00) Best regards, Anna Smith",
            "Here is my email: anna.smith@example.com. {q}",
            "This is Anna Smith. My mobile number is 020 7946 0958. {q}",
            "{q} If you need it: 4111-1111-1111-1111",
        ),
    },
    "zh": {
        "seen": (
            "{q}我的IBAN是DE89 3704 0044 0532 0130 00",
            "我的卡号是4111 1111 1111 1111。{q}",
            "你好，我叫王小明。{q}",
            "我是张伟，卡号6222 0212 3456 7894 ，{q}",
        ),
        "other": (
            "您好，本人李娜，手机13812345678。{q}谢谢",
            "{q}（卡号：4111 1111 1111 1111）",
            "我的邮箱是anna@example.com，{q}",
            "{q}需要的话，我的电话是13812345678。",
        ),
    },
}


async def measure(retriever: HybridRetriever, masker: Masker) -> dict[str, Any]:
    """For JSON, by language: questions whose best passage is right, alone and framed; the same in both."""
    made: dict[str, Any] = {}
    for language in get_args(Language):
        judged = [each for each in questions(language) if each.expected]
        alone = [await _found(retriever, each.question, language) for each in judged]
        figures = {"right_alone": _right(judged, alone)}
        for kind, frames in FRAMES[language].items():
            texts = [frames[at % len(frames)].format(q=each.question) for at, each in enumerate(judged)]
            framed = [await _found(retriever, masker.mask(text).text, language) for text in texts]
            same = [_best(one) == _best(other) for one, other in zip(alone, framed, strict=True)]
            figures[f"right_{kind}"] = _right(judged, framed)
            figures[f"same_{kind}"] = Share(sum(same), len(same)).as_dict()
        made[language] = figures
    return made


async def _found(retriever: HybridRetriever, question: str, language: Language) -> Found:
    return await retriever.find(question, language, count=1, now_ms=ASKED_MS)


def _best(found: Found) -> str:
    return found.hits[0].passage.id if found.hits else ""


def _right(judged: Sequence[Judged], found: Sequence[Found]) -> dict[str, float | int]:
    right = [
        bool(best and each.expected & set(places(best)))
        for each, best in zip(judged, map(_best, found), strict=True)
    ]
    return Share(sum(right), len(right)).as_dict()
