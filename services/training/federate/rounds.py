"""The coordinator's side: rounds of asking, averaging and voting over any transport. It never sees a payment.

In `secure` aggregation it sees sums only; then the banks' votes on each new model are what guards it. In
`robust` it sees every update, cuts long ones, takes the median, and leaves out a bank that lies
far off twice.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from secrets import token_hex
from typing import Any, Literal

import numpy as np

from services.training.additive import AdditiveModel, Floats
from services.training.federate import aggregate, local, masks
from services.training.federate.bank import key_of, purpose
from services.training.federate.errors import FederationStopped, UpdateRefused
from services.training.federate.layout import Layout
from services.training.federate.plan import Message, Plan, Transport

Ended = Literal["complete", "no_gain", "voted_down", "too_few", "refused"]

STALE_ROUNDS = 2  # without a majority that gained: the stage is over
_PLAIN = ("rounds", "ended", "notes", "lost", "outlier_rounds", "votes")
OUTLIER_ROUNDS = 2  # after so many a bank is left out


@dataclass(slots=True)
class Outcome:
    """vector and counts: the last model that stands. notes: what happened, one line each, for a person."""

    layout: Layout
    vector: Floats
    counts: Floats
    rounds: int = 0
    ended: Ended = "complete"
    notes: list[str] = field(default_factory=list)
    lost: dict[str, int] = field(default_factory=dict)
    outlier_rounds: dict[str, list[int]] = field(default_factory=dict)
    votes: list[dict[str, str]] = field(default_factory=list)

    @property
    def model(self) -> AdditiveModel:
        """Not calibrated; reasons against the rows of all banks."""
        return self.layout.model(self.vector, self.counts)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, every number kept to its last bit."""
        return {
            "features": list(self.layout.features),
            "feature_spec": self.layout.spec,
            "pairs": [list(pair) for pair in self.layout.pairs],
            "vector": self.vector.tolist(),
            "counts": self.counts.tolist(),
            **{name: getattr(self, name) for name in _PLAIN},
        }

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "Outcome":
        """What `as_dict` gave."""
        pairs = tuple((int(first), int(second)) for first, second in raw["pairs"])
        return cls(
            Layout(tuple(raw["features"]), str(raw["feature_spec"]), pairs),
            np.asarray(raw["vector"], np.float64),
            np.asarray(raw["counts"], np.float64),
            **{name: raw[name] for name in _PLAIN},
        )

    def require_good(self) -> None:
        """Nothing if the run came to a good end.

        Raises:
            FederationStopped: it did not; the line says why, and what still stands.
        """
        if self.ended not in ("complete", "no_gain"):
            kept = f"The model of round {self.rounds} is kept" if self.rounds else "No model was made"
            raise FederationStopped(f"{self.notes[-1]} {kept}.")


class Coordinator:
    """One run over `transport`; `say` hears each line as it happens."""

    def __init__(
        self, plan: Plan, transport: Transport, say: Callable[[str], None] = lambda line: None
    ) -> None:
        self.plan, self.transport, self.say = plan, transport, say
        self.run_id = token_hex(8)
        self.names: dict[int, str] = {}
        self.keys: dict[int, Mapping[str, str]] = {}
        self.boxes: dict[str, dict[int, Mapping[str, str]]] = {}
        self.masks: dict[str, dict[int, str]] = {}
        layout = plan.layout()
        self.out = Outcome(layout, local.start(layout), np.zeros(layout.cell_count))
        self.threshold = 0

    def run(self) -> Outcome:
        """The last model that stands, and how it ended; too few banks are an end, not an exception."""
        try:
            self._open()
            self._rounds()
            self._note(f"{self.out.rounds} rounds; the model of the last one stands.")
        except _Ended as end:
            self.out.ended = end.how
            self._note(str(end))
        return self.out

    def _open(self) -> None:
        head = {"step": "hello", "run": self.run_id, "plan": self.plan.as_json()}
        replies = self._ask({bank: Message({**head, "you": bank}) for bank in self.transport.banks()}, 0)
        for bank, reply in replies.items():
            if reply.head.get("layout") != self.out.layout.id:
                self._lose(bank, 0, "its features or cells are others than the coordinator's")
                continue
            if reply.head["name"] in self.names.values():
                self._lose(bank, 0, f"another bank is called {reply.head['name']} too")
                continue
            self.names[bank], self.keys[bank] = str(reply.head["name"]), reply.head["keys"]
        self._require(self.names)
        if self.plan.aggregation == "secure":
            self.threshold = max(len(self.names) // 2 + 1, 2)
            keys = {str(bank): pair for bank, pair in self.keys.items()}
            share = Message({"step": "share", "keys": keys, "threshold": self.threshold})
            self._keep_boxes(self._ask(dict.fromkeys(self.names, share), 0))

    def _rounds(self) -> None:
        """Single features until their rounds are full or nobody gains, then pairs; a last vote at the end."""
        left, stale = self.plan.rounds, 0
        pairs_to_come = bool(self.plan.rounds_pair and self.plan.pairs_max)
        before = self.out.layout, self.out.vector, self.out.counts
        while left:
            number, gains = self.out.rounds + 1, pairs_to_come and left == 1
            members, replies = self._train(number, gains)
            # Updates carry the votes on the model that they start from, so the vote costs no trip of its own.
            stale = self._weigh(replies, before, stale)
            if stale >= STALE_ROUNDS and not pairs_to_come:
                self.out.ended = "no_gain"
                self._note(f"Round {number}: for {stale} rounds most banks gained nothing, so it is enough.")
                break
            parts = self._combine(number, members, replies, gains)
            before = self.out.layout, self.out.vector, self.out.counts
            self.out.vector, self.out.counts = self.out.vector + parts.update, parts.counts
            self.out.rounds = number
            self.say(f"round {number}: the updates of {len(self.names)} banks are in the model")
            left -= 1
            if stale >= STALE_ROUNDS:
                left = min(left, 1)
            if gains and self._take_pairs(parts.gains):
                left, stale, pairs_to_come = self.plan.rounds_pair, 0, False
        head = {"step": "judge", **self._model_head()}
        message = Message(head, self.out.vector.astype("<f8").tobytes())
        self._weigh(self._ask(dict.fromkeys(self.names, message), self.out.rounds), before, stale)
        if aggregate.majority(self.out.votes[-1], "alone"):
            raise _Ended(
                "voted_down",
                "Most banks do better with a model of their own rows alone, so the common one is not worth "
                "having. An update may be poisoned: `--aggregation robust` can name whose.",
            )

    def _weigh(
        self, replies: Mapping[int, Message], before: tuple[Layout, Floats, Floats], stale: int
    ) -> int:
        """Rounds without gain so far, after these votes on the model that stands.

        Raises:
            _Ended: most banks find it worse; the model `before` stands again.
        """
        votes = {self.names[bank]: str(reply.head.get("vote")) for bank, reply in replies.items()}
        if set(votes.values()) == {"first"}:
            return 0
        self.out.votes.append(votes)
        counted = ", ".join(f"{count} {word}" for word, count in sorted(Counter(votes.values()).items()))
        self.say(f"round {self.out.rounds}: votes on it: {counted}")
        if aggregate.majority(votes, "worse"):
            number = self.out.rounds
            self.out.layout, self.out.vector, self.out.counts = before
            self.out.rounds = number - 1
            raise _Ended(
                "voted_down",
                f"Round {number}: most banks find the new model worse on their own rows, so the round is "
                "undone and the run ends. An update may be poisoned, in earlier rounds too: "
                "`--aggregation robust` can name whose.",
            )
        return 0 if aggregate.majority(votes, "better") else stale + 1

    def _model_head(self) -> dict[str, Any]:
        return {"layout": self.out.layout.id, "pairs": self.out.layout.pairs}

    def _train(self, number: int, gains: bool) -> tuple[list[int], dict[int, Message]]:
        """Who was asked for an update, and the replies."""
        members = list(self.names)
        head: dict[str, Any] = {"step": "train", "round": number, "gains": gains, **self._model_head()}
        vector = self.out.vector.astype("<f8").tobytes()
        if self.plan.aggregation == "robust":
            return members, self._ask(dict.fromkeys(members, Message(head, vector)), number)
        members = [bank for bank in members if bank in self.boxes.get(str(number), {})]
        self._require(members)
        kinds = [str(number), key_of(number)]
        requests = {
            bank: Message(
                {
                    **head,
                    "members": members,
                    "masks": {str(member): self.masks[str(number)][member] for member in members},
                    "boxes": {
                        f"{kind}/{sender}": boxes[str(bank)]
                        for kind in kinds
                        for sender, boxes in self.boxes[kind].items()
                        if str(bank) in boxes
                    },
                },
                vector,
            )
            for bank in members
        }
        return members, self._ask(requests, number)

    def _combine(
        self, number: int, members: list[int], replies: Mapping[int, Message], gains: bool
    ) -> aggregate.Parts:
        if self.plan.aggregation == "robust":
            return self._robust(number, replies, gains)
        return self._secure(number, members, replies, gains)

    def _secure(
        self, number: int, members: list[int], replies: Mapping[int, Message], gains: bool
    ) -> aggregate.Parts:
        size = aggregate.packed_size(self.out.layout, gains)
        received = {}
        for bank, reply in replies.items():
            if len(reply.vector) == 8 * size and reply.head.get("layout") == self.out.layout.id:
                received[bank] = np.frombuffer(reply.vector, "<u8").astype(np.uint64)
            else:
                self._lose(bank, number, "what it sent is no update of this model")
        self._require(received)
        lost = [bank for bank in members if bank not in received]
        head = {"step": "unmask", "round": number, "sent": list(received), "lost": lost}
        answers = self._ask(dict.fromkeys(received, Message(head)), number)
        self._keep_boxes(answers)
        try:
            # Keys of the lost are told once; asking the banks again would tell both secrets of one.
            seeds, keys = (
                {
                    bank: masks.joined(
                        {
                            holder: bytes.fromhex(answer.head[told][str(bank)])
                            for holder, answer in answers.items()
                        },
                        self.threshold,
                    )
                    for bank in chosen
                }
                for told, chosen in (("seeds", received), ("keys", lost))
            )
            publics = {bank: bytes.fromhex(self.masks[str(number)][bank]) for bank in members}
            words = masks.unmasked(received, seeds, keys, publics, purpose(self.run_id, number))
            return aggregate.unpacked(masks.from_words(words), self.out.layout, gains)
        except UpdateRefused as error:
            raise _Ended("refused", f"Round {number}: the sum of the updates is refused: {error}") from error

    def _robust(self, number: int, replies: Mapping[int, Message], gains: bool) -> aggregate.Parts:
        parts: dict[int, aggregate.Parts] = {}
        for bank, reply in replies.items():
            try:
                if reply.head.get("layout") != self.out.layout.id or len(reply.vector) % 8:
                    raise UpdateRefused("it is of another layout")
                values = np.frombuffer(reply.vector, "<f8").astype(np.float64)
                parts[bank] = aggregate.unpacked(values, self.out.layout, gains)
            except UpdateRefused as error:
                self._lose(bank, number, f"its update is refused: {error}")
        self._require(parts)
        updates = np.stack([each.update for each in parts.values()])
        counts = np.median([each.counts / each.weight for each in parts.values()], axis=0)
        far = aggregate.outliers(updates, self.out.layout.mass(counts))
        for bank in np.array(list(parts))[far].tolist():
            rounds = self.out.outlier_rounds.setdefault(self.names[bank], [])
            rounds.append(number)
            self._note(f"Round {number}: the update of bank {self.names[bank]} lies far from all others.")
            if len(rounds) >= OUTLIER_ROUNDS:
                del parts[bank]
                self._lose(bank, number, f"its updates lay far off in rounds {', '.join(map(str, rounds))}")
        self._require(parts)
        kept = list(parts.values())
        return aggregate.Parts(
            sum(each.weight for each in kept),
            aggregate.robust_mean(aggregate.clipped(np.stack([each.update for each in kept]))),
            np.sum([each.counts for each in kept], axis=0),
            np.median([each.gains for each in kept], axis=0),
        )

    def _take_pairs(self, gains: Floats) -> bool:
        every = local.pairs_of(self.out.layout)
        best = [int(index) for index in np.argsort(-gains, kind="stable")[: self.plan.pairs_max]]
        pairs = [every[index] for index in best if gains[index] > 0]
        if pairs:
            self.out.layout, self.out.vector = self.out.layout.with_pairs(self.out.vector, pairs)
        return bool(pairs)

    def _keep_boxes(self, replies: Mapping[int, Message]) -> None:
        for bank, reply in replies.items():
            for kind, boxes in reply.head["boxes"].items():
                self.boxes.setdefault(kind, {})[bank] = boxes
            for number, public in reply.head["masks"].items():
                self.masks.setdefault(number, {})[bank] = public

    def _ask(self, requests: Mapping[int, Message], number: int) -> dict[int, Message]:
        """Replies that are no errors; whoever gave none is out of the run."""
        replies = self.transport.ask(requests)
        good = {bank: reply for bank, reply in replies.items() if "error" not in reply.head}
        for bank in requests:
            if bank not in good:
                said = replies[bank].head["error"] if bank in replies else "it gave no answer in time"
                self._lose(bank, number, str(said))
        self._require(good)
        return good

    def _lose(self, bank: int, number: int, why: str) -> None:
        name = self.names.pop(bank, f"number {bank}")
        self.out.lost[name] = number
        self._note(f"Round {number}: bank {name} is out: {why.rstrip('.')}.")

    def _require(self, banks: Iterable[int]) -> None:
        left = len(list(banks))
        if left < self.plan.banks_min:
            raise _Ended(
                "too_few", f"{left} banks are left and {self.plan.banks_min} are needed, so the run ends."
            )

    def _note(self, line: str) -> None:
        self.out.notes.append(line)
        self.say(line)


class _Ended(Exception):
    def __init__(self, how: Ended, line: str) -> None:
        super().__init__(line)
        self.how = how
