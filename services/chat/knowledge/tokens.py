"""Words of English and Chinese text, for the index and for the question alike."""

import re
import unicodedata
from functools import lru_cache

import Stemmer

from services.chat.domain import PLACEHOLDER

# Han, with the extensions that names and places use.
_HAN = r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_HAN_CHAR = re.compile(f"[{_HAN}]")
_RUNS = re.compile(rf"[{_HAN}]+|\d+(?:[.,]\d+)*|[^\W\d_{_HAN}]+(?:'[^\W\d_]+)?")

# Words that say how a question is asked, not what about.
_STOP = frozenset(
    "a an the and or but if of to in on at by for from with about as into than then that this these those it "  # noqa: SIM905 - as one reads it
    "its is are was were be been being am do does did doing done has have had having i me my mine we us our "
    "you your he him his she her they them their there here what which who whom whose when where why how can "
    "could will would shall should may might must not no nor so too very just also any some all each please "
    "want need like get got getting let's i'm i've i'd it's don't can't won't isn't didn't doesn't haven't "
    "hasn't wasn't tell know help hello hi thanks thank".split()
)
_STOP_ZH = re.compile(
    "请问|你好|您好|谢谢|怎么办|怎么样|怎么|怎样|如何|什么|为什么|为何|多少|哪些|哪里|哪儿|是否|可以|能不能|能否|可不可以|"
    "想要|需要|我想|我要|我的|我们|你们|您的|你的|一下|一个|这个|那个|有没有|是不是|会不会|"
    "[我你您他她吗呢吧啊呀了的地得着过嘛]"
)
# What the same thing is called elsewhere: folded into one word before stemming.
_SAME_EN = {
    "atm": "cashmachine", "atms": "cashmachine", "cashpoint": "cashmachine",
    "cellphone": "phone", "mobile": "phone", "telephone": "phone", "overseas": "abroad", "foreign": "abroad",
    "eur": "euro", "charge": "fee", "charges": "fee", "charged": "fee", "cost": "fee", "costs": "fee",
    "stolen": "steal", "stole": "steal", "lost": "lose", "sent": "send", "paid": "pay", "payee": "recipient",
    "beneficiary": "recipient", "arrived": "arrive", "arrival": "arrive", "delivery": "deliver",
    "activation": "activate",
}  # fmt: skip
_TWO_EN = re.compile(r"\bcash (?:machine|point)s?\b")
_SAME_ZH = (
    ("手续费", "费用"), ("收费", "费用"), ("自动取款机", "取款机"), ("柜员机", "取款机"), ("atm", "取款机"),
    ("汇款", "转账"), ("电汇", "转账"), ("被偷", "被盗"), ("遗失", "丢失"), ("丢了", "丢失"),
    ("弄丢", "丢失"), ("网点", "分行"), ("支行", "分行"), ("国外", "境外"), ("海外", "境外"),
    ("取钱", "取款"), ("取现", "取款"), ("存钱", "存款"), ("存现", "存款"), ("要多久", "时间"),
    ("多久", "时间"), ("几天", "时间"), ("电话号码", "手机号"), ("注销", "关闭"), ("销户", "关闭账户"),
)  # fmt: skip


@lru_cache(maxsize=1)
def _stemmer() -> Stemmer.Stemmer:
    return Stemmer.Stemmer("english")


def stem(word: str) -> str:
    """An English word without its ending: "fees" and "fee" are the same then."""
    return str(_stemmer().stemWord(word.lower()))


def fold(text: str) -> str:
    """The text in one form: full width as half width, lower case, curly apostrophes straight."""
    return unicodedata.normalize("NFKC", text).casefold().replace("’", "'")


def is_han(character: str) -> bool:
    """Whether it is a Chinese character."""
    return _HAN_CHAR.match(character) is not None


def tokens(text: str) -> list[str]:
    """Stemmed English words without the stop words, pairs of neighbouring Han characters, numbers.

    Both languages in one text are read alike, and the question as the passages. Placeholders of masked data
    (`[CARD_1]`) count for nothing.
    """
    text = fold(PLACEHOLDER.sub(" ", text))
    text = _TWO_EN.sub("atm", text)
    if _HAN_CHAR.search(text):
        for said, same in _SAME_ZH:
            text = text.replace(said, same)
        text = _STOP_ZH.sub(" ", text)
    made: list[str] = []
    words: list[str] = []
    for run in _RUNS.findall(text):
        if is_han(run[0]):
            made += [run[at : at + 2] for at in range(len(run) - 1)] if len(run) > 1 else [run]
        elif run[0].isdigit():
            made.append(run.replace(",", ""))
        elif run not in _STOP and (len(run) > 1 or not run.isascii()):
            words.append(_SAME_EN.get(run, run.removesuffix("'s")))
    stems: list[str] = _stemmer().stemWords(words)
    return made + stems
