"""The bank's side of the protocol: it answers the coordinator, and shows it nothing but what a round needs.

Steps: `hello` (keys), `share` (secrets shared out), `train` (an update, under masks in secure aggregation),
`unmask` (shares of one secret a bank, once a round), `judge` (a last vote). What must outlast a message lies
in `state`, plain values that stay in the bank's own process.
"""

from base64 import b64decode, b64encode
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from hashlib import sha256
from secrets import token_bytes
from typing import TYPE_CHECKING, Any

import numpy as np

from services.training.additive import Floats
from services.training.errors import TrainingError
from services.training.federate import aggregate, masks
from services.training.federate.errors import UpdateRefused
from services.training.federate.layout import Layout
from services.training.federate.plan import Message, Plan

if TYPE_CHECKING:
    from services.training.federate.local import CellRows


@dataclass(frozen=True, slots=True)
class BankRows:
    """One bank's rows of the agreed days; `validation` votes."""

    train: "CellRows"
    validation: "CellRows"


@dataclass(slots=True)
class Bank:
    """load: reads this bank's own rows; called in no step but `train` and `judge`."""

    name: str
    load: Callable[[Plan], BankRows]
    state: MutableMapping[str, Any] = field(default_factory=dict)

    def answer(self, message: Message) -> Message:
        """The reply to one message; an error of this bank's own is a reply with `error`, one line."""
        try:
            step = str(message.head.get("step"))
            if step not in _STEPS:
                raise UpdateRefused(f"There is no step {step!r}: the coordinator runs another version.")
            return _STEPS[step](self, message)
        except TrainingError as error:
            return Message({"error": str(error)})

    def _hello(self, message: Message) -> Message:
        self.state.clear()
        seal = masks.new_key()
        self.state.update(
            {
                "plan": message.head["plan"],
                "me": message.head["you"],
                "run": message.head["run"],
                "seal_key": seal[0].hex(),
                "own": {},
                "boxes": {},
                "told": [],
                "gone": [],
            }
        )
        return Message({"name": self.name, "layout": Plan.layout().id, "keys": {"seal": seal[1].hex()}})

    def _share(self, message: Message) -> Message:
        """Shares of the first round's secrets."""
        head = message.head
        if head["threshold"] * 2 <= len(head["keys"]):
            raise UpdateRefused("Half of the banks could take a mask off: the threshold is too low.")
        self.state.update({"keys": head["keys"], "threshold": head["threshold"]})
        return Message(self._fresh(1, list(head["keys"])))

    def _train(self, message: Message) -> Message:
        # Each message starts a process, and most need no LightGBM.
        from services.training.federate import local

        plan, layout, vector = self._given(message)
        round_ = int(message.head["round"])
        rows = self.load(plan)
        said = self._vote(vector, rows, layout)
        seed = self._seed(plan, round_)
        gains = np.empty(0)
        if message.head["gains"]:
            gains = local.pair_gains(vector, rows.train, layout, plan.recipe, seed)
        parts = aggregate.Parts(
            float(rows.train.weight.sum()),
            local.boost(vector, rows.train, layout, plan.recipe, plan.steps, seed),
            local.cell_counts(rows.train, layout),
            gains,
        )
        head = {"vote": said, "layout": layout.id}
        if plan.aggregation == "robust":
            return Message(head, parts.packed().astype("<f8").tobytes())
        self.state["boxes"] |= message.head["boxes"]
        members = [str(each) for each in message.head["members"]]
        if len(members) < self.state["threshold"] or set(members) & set(self.state["gone"]):
            raise UpdateRefused("The coordinator names banks whose masks are gone, or too few of them.")
        self.state["members"] = {**self.state.get("members", {}), str(round_): members}
        words = masks.masked(
            masks.to_words(parts.packed()),
            int(self.state["me"]),
            bytes.fromhex(self.state["own"][str(round_)]["key"]),
            {int(each): bytes.fromhex(message.head["masks"][each]) for each in members},
            bytes.fromhex(self.state["own"][str(round_)]["seed"]),
            purpose(self.state["run"], round_),
        )
        return Message(head, words.astype("<u8").tobytes())

    def _unmask(self, message: Message) -> Message:
        """For each bank of the round one share: of its own seed if it sent, of its mask key if it did not."""
        round_ = str(message.head["round"])
        sent, lost = ([str(each) for each in message.head[name]] for name in ("sent", "lost"))
        members = self.state.get("members", {}).get(round_, [])
        if (
            round_ in self.state["told"]
            or sorted(sent + lost) != sorted(members)
            or str(self.state["me"]) not in sent
            or len(sent) < self.state["threshold"]
        ):
            raise UpdateRefused("The coordinator asks for more shares than would take masks off a sum.")
        self.state["told"] = [*self.state["told"], round_]
        self.state["gone"] = [*self.state["gone"], *lost]
        seeds = {each: self._opened(each, round_).hex() for each in sent}
        keys = {each: self._opened(each, key_of(round_)).hex() for each in lost}
        return Message({"seeds": seeds, "keys": keys, **self._fresh(int(round_) + 1, sent)})

    def _judge(self, message: Message) -> Message:
        """The vote on the last model: `alone` if as many rounds on this bank's own rows do better."""
        # As in `_train`.
        from services.training.federate import local

        plan, layout, vector = self._given(message)
        rows = self.load(plan)
        said = self._vote(vector, rows, layout)
        own = local.alone(rows.train, layout, plan, self._seed(plan, 0))
        ours, mine = (local.losses(each, rows.validation, layout) for each in (vector, own))
        if said != "worse" and aggregate.vote(mine, ours, rows.validation.weight) == "worse":
            said = "alone"
        return Message({"vote": said})

    def _seed(self, plan: Plan, round_: int) -> int:
        """By name: the bank's number is the transport's, and another in each run."""
        drawn = sha256(f"{plan.seed}/{round_}/{self.name}".encode()).digest()
        return int.from_bytes(drawn[:4], "big") >> 1

    def _given(self, message: Message) -> tuple[Plan, Layout, Floats]:
        plan, layout = Plan.from_json(self.state["plan"]), Plan.layout()
        pairs = tuple((int(first), int(second)) for first, second in message.head["pairs"])
        layout = Layout(layout.features, layout.spec, pairs)
        vector = np.frombuffer(message.vector, "<f8").astype(np.float64)
        if layout.id != message.head["layout"] or vector.shape != (layout.size,):
            raise UpdateRefused("The coordinator's model has other features or cells than this bank's.")
        return plan, layout, vector

    def _vote(self, vector: Floats, rows: BankRows, layout: Layout) -> str:
        # As in `_train`.
        from services.training.federate.local import losses

        before = None
        if kept := self.state.get("judged"):
            pairs = tuple((int(first), int(second)) for first, second in kept["pairs"])
            then = np.frombuffer(b64decode(kept["vector"]), "<f8").astype(np.float64)
            before = losses(then, rows.validation, Layout(layout.features, layout.spec, pairs))
        now = losses(vector, rows.validation, layout)
        packed = b64encode(vector.astype("<f8").tobytes()).decode()
        self.state["judged"] = {"pairs": layout.pairs, "vector": packed}
        return aggregate.vote(before, now, rows.validation.weight)

    def _fresh(self, round_: int, holders: list[str]) -> dict[str, Any]:
        """A round's seed and mask key, shared out; and the key's public half.

        Both are new each round: of a bank that drops out the key is told, and of rounds in which it sent, the
        seeds have been. One key for all rounds would open those to whoever kept what it sent.
        """
        number, seed, (private, public) = str(round_), token_bytes(masks.SECRET_BYTES), masks.new_key()
        self.state["own"] = {**self.state["own"], number: {"seed": seed.hex(), "key": private.hex()}}
        boxes = {
            number: self._boxes(number, seed, holders),
            key_of(number): self._boxes(key_of(number), private, holders),
        }
        return {"boxes": boxes, "masks": {number: public.hex()}}

    def _boxes(self, kind: str, secret: bytes, holders: list[str]) -> dict[str, str]:
        """A share for each holder, sealed for it; one's own too, so that all are handled alike."""
        shares = masks.shared(secret, self.state["threshold"], map(int, holders))
        seal = bytes.fromhex(self.state["seal_key"])
        return {
            holder: masks.sealed(
                shares[int(holder)],
                seal,
                bytes.fromhex(self.state["keys"][holder]["seal"]),
                self._about(kind, str(self.state["me"]), holder),
            ).hex()
            for holder in holders
        }

    def _opened(self, sender: str, kind: str) -> bytes:
        box = self.state["boxes"].get(f"{kind}/{sender}")
        if box is None:
            raise UpdateRefused("A bank's share did not arrive, so its mask cannot be taken off.")
        return masks.opened(
            bytes.fromhex(box),
            bytes.fromhex(self.state["seal_key"]),
            bytes.fromhex(self.state["keys"][sender]["seal"]),
            self._about(kind, sender, str(self.state["me"])),
        )

    def _about(self, kind: str, sender: str, holder: str) -> str:
        return f"{self.state['run']}/{kind}/{sender}/{holder}"


def purpose(run: str, round_: int) -> str:
    """Names the masks of one round of one run."""
    return f"mask {run} {round_}"


def key_of(round_: object) -> str:
    """What shares of a round's mask keys are filed under; those of its seeds are under its number."""
    return f"key {round_}"


_STEPS: dict[str, Callable[[Bank, Message], Message]] = {
    "hello": Bank._hello,
    "share": Bank._share,
    "train": Bank._train,
    "unmask": Bank._unmask,
    "judge": Bank._judge,
}
