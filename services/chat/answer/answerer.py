"""One answer: the passage's own sentences, or a model's that the passages bear out; nothing else.

no hits ──────────────────────────────▶ nothing: the caller says that it does not know
extractive ──▶ the passage's sentences
generated ──▶ model's pieces ──▶ sentences ──check──▶ handed out
                                    │ first flaw, a loop, a deadline; or what answers best was not said
                                    ▼
                         the passage's sentences that were not said yet
"""

import re
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from services.chat.answer.facts import Fact, facts_in
from services.chat.answer.grounding import Stem, check, content_words
from services.chat.answer.prompt import Prompt, Prompts, Said
from services.chat.answer.sentences import SentenceStream, sentences_of
from services.chat.asked import asked_of
from services.chat.domain import PLACEHOLDER, Generator, Hit, Language, Origin, Sentence
from weir.errors import WeirError
from weir.inference.thinking import ThinkingSplitter

# Of a passage at most; what a customer reads in a chat.
_SENTENCES_MAX = 3
# Of a model's answer: whoever has said this much goes on for ever.
_GENERATED_MAX = 6
_TOKENS_MAX = 256
# Thoughts included, whatever the server takes for the end.
_WRITTEN_CHARS_MAX = 20_000
# Of the words of the passage's nearest sentence, in what a model said.
_HELD_MIN = 0.5
_DOES_NOT_KNOW = re.compile(r"\b(?:do not|don't) know\b|不知道", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Turn:
    """What is answered; everything in it is masked.

    summary: of what was said before `history`.
    values: the placeholders that were given; another one in an answer is made up.
    """

    question: str
    language: Language
    hits: Sequence[Hit]
    history: Sequence[Said] = ()
    summary: str = ""
    values: frozenset[str] = frozenset()


@dataclass(slots=True)
class Account:
    """How an answer came about, for the reply and the audit; filled while it is made.

    flaw: why a model's sentence was not shown: a word of `Flaw`, or canary, placeholder, too_long.
    degraded: why there was no model, or empty. thought: what it thought; never shown.
    """

    prompt: Prompt | None = None
    flaw: str = ""
    degraded: str = ""
    thought: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class _Said:
    text: str
    words: set[str]
    facts: frozenset[Fact]


class Answerer:
    """Answers turns.

    Args:
        generator: None answers by passages alone.
        prompts: needed with a generator.
        canary: see `Prompts`. stem: of an English word.
    """

    def __init__(
        self,
        generator: Generator | None = None,
        prompts: Prompts | None = None,
        *,
        canary: str = "",
        stem: Stem = str.lower,
    ) -> None:
        if (generator is None) != (prompts is None):
            raise ValueError("a generator and its prompts belong together")
        self._generator, self._prompts, self._canary, self._stem = generator, prompts, canary, stem

    async def __call__(self, turn: Turn, account: Account) -> AsyncGenerator[Sentence, None]:
        """The sentences of the answer, each as soon as it may be shown; none when nothing was found."""
        said = list[_Said]()
        if turn.hits and self._generator is not None and self._prompts is not None:
            async with aclosing(self._generated(turn, account)) as sentences:
                async for sentence in sentences:
                    # A small model says things twice.
                    if not any(_plain(sentence.text) == _plain(each.text) for each in said):
                        said.append(self._read(sentence.text))
                        yield sentence
            if said and not (account.flaw or account.degraded) and self._answers(turn, said):
                return
        for sentence in passage_sentences(turn.question, turn.hits, self._stem):
            own = self._read(sentence.text)
            if not any(own.words <= each.words and own.facts <= each.facts for each in said):
                yield sentence

    def _answers(self, turn: Turn, said: Sequence["_Said"]) -> bool:
        """Whether what a model said holds what the passage says nearest to the question.

        A sentence may be borne out and be about something else: the stolen card's price for the lost one's.
        """
        asked = content_words(asked_of(turn.question), self._stem)
        own = [self._read(each.text) for each in passage_sentences(turn.question, turn.hits, self._stem)]
        near = [len(asked & each.words) for each in own]
        if not max(near):
            return True
        words = set[str]().union(*(each.words for each in said))
        facts = frozenset[Fact]().union(*(each.facts for each in said))
        return any(
            each.facts <= facts and len(each.words & words) >= _HELD_MIN * len(each.words)
            for each, count in zip(own, near, strict=True)
            if count == max(near)
        )

    def _read(self, sentence: str) -> "_Said":
        return _Said(sentence, content_words(sentence, self._stem), frozenset(facts_in(sentence)))

    async def _generated(self, turn: Turn, account: Account) -> AsyncGenerator[Sentence, None]:
        assert self._generator is not None
        assert self._prompts is not None
        account.prompt = self._prompts(turn.question, turn.hits, turn.history, turn.language, turn.summary)
        count = 0
        try:
            pieces = self._generator(account.prompt.text, tokens_max=_TOKENS_MAX)
            async with aclosing(pieces), aclosing(self._written(pieces, account)) as sentences:
                async for sentence in sentences:
                    if (good := self._judged(sentence, turn, account, count)) is None:
                        return
                    count += 1
                    yield good
        except WeirError as error:
            account.degraded = getattr(error, "degraded_reason", "model_error")

    async def _written(self, pieces: AsyncIterator[str], account: Account) -> AsyncGenerator[str, None]:
        """The sentences of what a model says, each as soon as it is whole; its thoughts go to the account."""
        assert self._prompts is not None
        thinking, stream = ThinkingSplitter(begins_inside=self._prompts.thinks_first), SentenceStream()
        written = 0
        async for piece in pieces:
            written += len(piece)
            if written > _WRITTEN_CHARS_MAX:
                account.flaw = "too_long"
                return
            parts = thinking.push(piece)
            account.thought += parts.thought
            for sentence in stream.push(parts.said):
                yield sentence
        rest = thinking.finish()
        account.thought += rest.thought
        for sentence in [*stream.push(rest.said), *stream.finish()]:
            yield sentence

    def _judged(self, sentence: str, turn: Turn, account: Account, count: int) -> Sentence | None:
        """The sentence when it may be shown; else nothing, and the account says why."""
        if self._canary and self._canary in sentence:
            account.flaw = "canary"
        elif not set(PLACEHOLDER.findall(sentence)) <= turn.values:
            account.flaw = "placeholder"
        elif count >= _GENERATED_MAX:
            account.flaw = "too_long"
        elif _DOES_NOT_KNOW.search(sentence):
            account.flaw = "does_not_know"
        else:
            verdict = check(sentence, [hit.passage for hit in turn.hits], self._stem)
            if verdict.is_supported:
                return Sentence(sentence, Origin.GENERATED, verdict.sources)
            account.flaw = str(verdict.flaw)
        return None


def passage_sentences(question: str, hits: Sequence[Hit], stem: Stem = str.lower) -> list[Sentence]:
    """Of the best passage the sentences that answer best, in the order in which they stand there.

    They are neighbours, so that none is torn from what it depends on.
    """
    if not hits:
        return []
    passage, asked = hits[0].passage, content_words(asked_of(question), stem)
    sentences = sentences_of(" ".join(passage.text.split()))
    if len(sentences) <= _SENTENCES_MAX:
        chosen = sentences
    else:
        near = [len(asked & content_words(sentence, stem)) for sentence in sentences]
        starts = range(len(sentences) - _SENTENCES_MAX + 1)
        best = max(starts, key=lambda start: (sum(near[start : start + _SENTENCES_MAX]), -start))
        chosen = sentences[best : best + _SENTENCES_MAX]
    return [Sentence(sentence, Origin.PASSAGE, (passage.id,)) for sentence in chosen]


def _plain(text: str) -> str:
    return "".join(letter for letter in text.lower() if letter.isalnum())
