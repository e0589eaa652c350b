"""What a conversation was about, in the customer's own words: its most telling sentences, masked as they are.

Each sentence is worth the words that nobody has said before it; the newest count most. No model writes here:
nothing stands in a summary that was not said. Placeholders lose their number (`[CARD]`), for what they stood
for is forgotten with its turn.
"""

import re
from collections.abc import Sequence

from services.chat.answer.sentences import sentences_of
from services.chat.knowledge.tokens import tokens

# Of a placeholder.
_NUMBER = re.compile(r"(?<=[A-Z])_\d{1,6}(?=\])")
# Of a sentence, in a summary; what follows adds words rather than sense.
_SENTENCE_CHARS_MAX = 160
# How much less a sentence counts for each one after it.
_FADING = 0.9


def summary_of(before: str, texts: Sequence[str], chars_max: int) -> str:
    """The most telling sentences of a summary and of what was said after it, in their order.

    before: an earlier summary, or empty. texts: messages, oldest first. chars_max: of the result.
    """
    said = [*before.split("\n"), *(sentence for text in texts for sentence in sentences_of(text))]
    plain = (_NUMBER.sub("", sentence).strip()[:_SENTENCE_CHARS_MAX] for sentence in said)
    held = list(dict.fromkeys(sentence for sentence in plain if sentence))
    words = [frozenset(tokens(sentence)) for sentence in held]
    chosen: set[int] = set()
    known: set[str] = set()
    left = chars_max
    while True:
        worth = {
            at: len(words[at] - known) * _FADING ** (len(held) - 1 - at)
            for at in range(len(held))
            if at not in chosen and len(held[at]) + 1 <= left and words[at] - known
        }
        if not worth:
            return "\n".join(held[at] for at in sorted(chosen))
        best = max(worth, key=lambda at: (worth[at], at))
        chosen.add(best)
        known |= words[best]
        left -= len(held[best]) + 1
