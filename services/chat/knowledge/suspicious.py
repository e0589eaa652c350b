"""Instructions to a model that stand in a document: what an attacker would plant in the bank's knowledge.

A bank's text is written for customers. Text that talks to a model, or that no customer can see, is kept out.
"""

import re
import unicodedata

# What shows nothing and splits words or turns them round: zero width, directions, tags. Emoji's joiners stay.
_UNSEEN = re.compile(
    "[\u200b\u200c\u200e\u200f\u2060-\u2064\u202a-\u202e\u2066-\u2069\ufeff\U000e0000-\U000e007f]"
)
_JOINER = re.compile("(?<=[A-Za-z\u4e00-\u9fff])\u200d(?=[A-Za-z\u4e00-\u9fff])")
_COMMENT = re.compile(r"<!--")
_HIDDEN_STYLE = re.compile(
    r"display\s*:\s*none|visibility\s*:\s*hidden|opacity\s*:\s*0(?:\.0+)?\s*(?:;|[\"']|$)"
    r"|font-size\s*:\s*0(?:\.\d+)?(?:px|pt|em|rem|%)?\s*(?:;|[\"']|$)"
    r"|text-indent\s*:\s*-\d{3,}|(?:left|top)\s*:\s*-\d{3,}",
    re.IGNORECASE,
)
_COLOUR = re.compile(r"(?<![-\w])color\s*:\s*([^;\"']+)", re.IGNORECASE)
_GROUND = re.compile(r"background(?:-color)?\s*:\s*([^;\"']+)", re.IGNORECASE)
_WHITE = re.compile(
    r"^(?:white|#fff|#ffffff|rgba?\(\s*255\s*,\s*255\s*,\s*255.*\)|transparent|rgba\(.*,\s*0\s*\))$"
)

_SPEECH = (
    (
        "tells a model to ignore what it was told",
        re.compile(
            r"\b(?:ignore|disregard|forget|override|bypass|skip)\b(?:[\s\"'*_]+\w+){0,4}?[\s\"'*_]+"
            r"(?:instructions?|prompts?|rules?|directions?|guidelines?|context|constraints?|system|programming)\b"
            r"|\b(?:ignore|disregard|forget)\s+(?:all\s+|everything\s+)?(?:of\s+)?(?:the\s+)?(?:previous|above|prior|before)\b"
            r"|(?:忽略|无视|忘记|忘掉|不要理会|不用理会|绕过)[^。！？\n]{0,12}?(?:指令|指示|提示词?|规则|要求|命令|设定|约束)"
            r"|(?:忽略|无视)(?:以上|上述|上面|之前|前面|先前|此前)"
        ),
    ),
    (
        "speaks in a role of a conversation",
        re.compile(
            r"(?:^|\n)\W{0,4}(?:system|assistant|user|developer|human|ai)\s*:"
            r"|<\|?(?:im_start|im_end|system|assistant|user|endoftext|eot_id|start_header_id)\|?>|\[/?inst\]|<</?sys>>"
            r"|</?(?:system|instructions?|think)>|(?:^|\n)#{2,}\s*(?:system|instructions?)\b"
            r"|(?:^|\n)\W{0,4}(?:系统|助手|用户)(?:提示|消息)?\s*:"
        ),
    ),
    (
        "gives a model a new role",
        re.compile(
            r"\byou\s+are\s+(?:now|no\s+longer)\s+(?:an?\b|in\b|the\b|bound\b|restricted\b)"
            r"|\b(?:pretend|act|behave|role-?play)\s+(?:to\s+be|as)\s+(?:if\s+you|(?:\w+\s+){1,3}?(?:ai|model|assistant|bot)\b)"
            r"|\b(?:as|you\s+are)\s+an?\s+(?:ai|language\s+model|large\s+language)\b|\b(?:jailbreak|dan|developer|god)\s+mode\b"
            r"|你现在(?:是|扮演)|(?:请|现在)扮演|从现在(?:开始|起),?你|越狱模式|开发者模式"
        ),
    ),
    (
        "asks a model about its prompt",
        re.compile(
            r"\b(?:reveal|print|show|repeat|output|leak|display)\b(?:\W+\w+){0,4}?\W+(?:system\s+prompt|prompt|hidden\s+instructions)\b"
            r"|\bsystem\s+prompt\b|\bnew\s+instructions?\s*:|系统提示词?|提示词(?:是|内容)|新(?:的)?指令\s*:"
        ),
    ),
    (
        "tells a model what to say or to hide",
        re.compile(
            r"\b(?:do\s+not|don't|never)\s+(?:tell|inform|warn)\s+(?:the\s+)?(?:user|customer|human|client)s?\b"
            r"|\b(?:tell|instruct)\s+the\s+(?:user|customer|client)\s+(?:to|that|they)\b"
            r"|\b(?:respond|reply|answer)\s+(?:only\s+)?(?:with|by)\s+(?:saying|the\s+(?:word|text|following)|only)\b"
            r"|\bwhen\s+the\s+(?:user|customer)\s+asks\b(?:\W+\w+){0,8}?\W+(?:say|reply|respond|answer|tell)\b"
            r"|(?:不要|别|切勿|不得)(?:告诉|告知|提醒)(?:客户|用户|顾客)"
            r"|告诉(?:用户|客户|顾客)(?:把|将|去|提供|发送|转账|点击|输入)|(?:只|必须)(?:回复|回答|输出)[:\"“]"
        ),
    ),
)


def hidden_style(style: str) -> bool:
    """Whether CSS makes text that a reader does not see: not shown, no size, off the page, white on white."""
    if _HIDDEN_STYLE.search(style):
        return True
    colour, ground = _COLOUR.search(style), _GROUND.search(style)
    if colour is None:
        return False
    ink = colour.group(1).strip().lower().removesuffix("!important").strip()
    paper = ground.group(1).strip().lower() if ground else "white"
    return ink == paper or (bool(_WHITE.match(ink)) and (bool(_WHITE.match(paper)) or ground is None))


def suspicious(text: str) -> str | None:
    """Why a text must not reach a model, in words fit for a log line; None when nothing speaks against it.

    The reason never repeats the text.
    """
    if _UNSEEN.search(text) or _JOINER.search(text):
        return "holds characters that do not show"
    if _COMMENT.search(text):
        return "holds an HTML comment"
    folded = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    if "style" in folded and any(
        hidden_style(style) for style in re.findall(r"style\s*=\s*[\"']([^\"']*)", folded)
    ):
        return "holds text that a reader does not see"
    folded = re.sub(r"[^\S\n]+", " ", folded)
    return next((reason for reason, pattern in _SPEECH if pattern.search(folded)), None)
