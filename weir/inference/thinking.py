"""What a reasoning model thinks, apart from what it says, while both are still being written.

<think>…</think> answer        the thinking is kept for the audit and never shown
…</think> answer               the same: DeepSeek-R1's template has opened it, the text has no first tag
"""

from dataclasses import dataclass

OPEN, CLOSE = "<think>", "</think>"


@dataclass(frozen=True, slots=True)
class Parts:
    """What a piece of text came to; either may be empty."""

    thought: str
    said: str


class ThinkingSplitter:
    """Takes the text piece by piece, cut anywhere.

    Args:
        begins_inside: whether the prompt has opened the thinking already. A model that never closes it has
            said nothing.
    """

    def __init__(self, *, begins_inside: bool = False) -> None:
        self._depth = int(begins_inside)
        self._held = ""

    @property
    def is_thinking(self) -> bool:
        """Whether what comes next is thought, as far as is known."""
        return self._depth > 0

    def push(self, piece: str) -> Parts:
        """What is certain by now; a tag may be cut in two, so its beginning is held back."""
        text, thought, said = self._held + piece, "", ""
        while True:
            at, tag = min((_find(text, tag), tag) for tag in (OPEN, CLOSE))
            whole = at < len(text)
            end = at if whole else len(text) - _begun(text)
            if self._depth:
                thought += text[:end]
            else:
                said += text[:end]
            if not whole:
                self._held = text[end:]
                return Parts(thought, said)
            text = text[at + len(tag) :]
            # An end without a beginning changes nothing; thoughts within thoughts end one by one.
            self._depth = self._depth + 1 if tag == OPEN else max(self._depth - 1, 0)

    def finish(self) -> Parts:
        """What was held back, now that nothing follows: no tag after all."""
        rest, self._held = self._held, ""
        return Parts(rest, "") if self._depth else Parts("", rest)


def _find(text: str, tag: str) -> int:
    """Where the tag is, or the text's end."""
    found = text.find(tag)
    return len(text) if found < 0 else found


def _begun(text: str) -> int:
    """How many characters at the end may be the beginning of a tag."""
    return max(
        (size for tag in (OPEN, CLOSE) for size in range(1, len(tag)) if text.endswith(tag[:size])), default=0
    )
