"""The two Flower apps: a bank's, which answers messages, and the coordinator's, which runs the rounds.

Flower starts a process for each message, so a bank's secrets lie in its node's context, in the memory of its
own SuperNode, and its rows, as cells, in a file of its own scratch folder.
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Context, RecordDict
from flwr.app import Message as Envelope
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid, ServerApp

from services.training.errors import TrainingError
from services.training.federate.plan import Message, Plan
from weir.errors import WeirError

RESULT, PROGRESS = "result.json", "progress.txt"
_RECORD, _STATE = "weir", "state"
_POLL_S = 0.2
_FAILED = (ErrorCode.CLIENT_APP_RAISED_EXCEPTION, ErrorCode.LOAD_CLIENT_APP_EXCEPTION)

client_app = ClientApp()
server_app = ServerApp()


@client_app.query()
def answer(envelope: Envelope, context: Context) -> Envelope:
    """One message to a bank; its node's configuration names the bank, its data and its scratch folder."""
    from services.training.federate.bank import Bank

    config = {name: str(value) for name, value in context.node_config.items()}
    data, scratch = Path(config["data"]), Path(config["scratch"])
    kept: Mapping[str, Any] = context.state.config_records.get(_STATE, {})
    bank = Bank(
        config["bank"], lambda plan: _rows(plan, data, scratch), json.loads(str(kept.get("json", "{}")))
    )
    try:
        reply = bank.answer(_opened(envelope))
    except WeirError as error:
        reply = Message({"error": str(error)})
    context.state.config_records[_STATE] = ConfigRecord({"json": json.dumps(dict(bank.state))})
    return Envelope(_packed(reply), reply_to=envelope)


@server_app.main()
def coordinate(grid: Grid, context: Context) -> None:
    """All rounds; the outcome goes to `result.json` in the folder that the run's configuration names."""
    from services.training.federate.rounds import Coordinator

    config = context.run_config
    folder = Path(str(config["folder"]))
    folder.mkdir(parents=True, exist_ok=True)

    def say(line: str) -> None:
        with (folder / PROGRESS).open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    try:
        plan = Plan.from_json(str(config["plan"]))
        transport = FlowerTransport(grid, int(config["banks"]), float(config["patience-s"]))
        out = Coordinator(plan, transport, say).run().as_dict()
    except WeirError as error:
        out = {"error": str(error)}
    written = folder / f".{RESULT}"
    written.write_text(json.dumps(out), encoding="utf-8")
    written.replace(folder / RESULT)


class FlowerTransport:
    """Banks as Flower's nodes, numbered from 1 by their ids.

    patience_s: how long a bank may take for one answer, and for coming at all.
    """

    def __init__(
        self, grid: Grid, expected: int, patience_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.grid, self.expected, self.patience_s, self.clock = grid, expected, patience_s, clock
        self.nodes: dict[int, int] = {}

    def banks(self) -> list[int]:
        """Those connected, once all expected ones are, or those that are after the patience."""
        end = self.clock() + self.patience_s
        while len(found := sorted(self.grid.get_node_ids())) < self.expected and self.clock() < end:
            time.sleep(_POLL_S)  # Flower tells of a new node only when asked
        self.nodes = dict(enumerate(found, start=1))
        return list(self.nodes)

    def ask(self, requests: Mapping[int, Message]) -> dict[int, Message]:
        """Replies within the patience; a node that Flower gave up is not waited for."""
        envelopes = [
            Envelope(
                _packed(message), dst_node_id=self.nodes[bank], message_type="query", ttl=self.patience_s
            )
            for bank, message in requests.items()
        ]
        waiting = set(self.grid.push_messages(envelopes))
        bank_of = {node: bank for bank, node in self.nodes.items()}
        replies: dict[int, Message] = {}
        end = self.clock() + self.patience_s
        while waiting and self.clock() < end:
            for envelope in self.grid.pull_messages(waiting):
                waiting.discard(envelope.metadata.reply_to_message_id)
                bank = bank_of.get(envelope.metadata.src_node_id)
                if bank is None:
                    continue
                if not envelope.has_error():
                    replies[bank] = _opened(envelope)
                elif envelope.error.code in _FAILED:
                    replies[bank] = Message({"error": "its app failed; the log of its own node says why"})
            time.sleep(_POLL_S if waiting else 0)  # Flower has no call that waits for replies
        return replies


def _packed(message: Message) -> RecordDict:
    record = ConfigRecord({"head": json.dumps(message.head), "vector": message.vector})
    return RecordDict({_RECORD: record})


def _opened(envelope: Envelope) -> Message:
    record: Any = envelope.content.config_records[_RECORD]
    return Message(json.loads(record["head"]), bytes(record["vector"]))


def _rows(plan: Plan, data: Path, scratch: Path) -> Any:
    """The bank's rows of the plan's days, from its files once and then as cells from its scratch folder."""
    from services.training.data import read_events
    from services.training.federate.bank import BankRows
    from services.training.federate.local import CellRows
    from services.training.train import Table

    parts = ("train", "validation")
    layout = plan.layout()
    name = sha256(f"{data}|{layout.id}|{plan.split}|{plan.honest_max}|{plan.seed}".encode()).hexdigest()[:16]
    file = scratch / f"rows-{name}.npz"
    if not file.exists():
        events = read_events(data)
        table = Table(events, events.features(), layout.features, plan.split)
        columns: dict[str, Any] = {}
        for part in parts:
            window = getattr(plan.split, part)
            if not window.rows(events.event_ms).any():
                raise TrainingError(f"There are no payments in {window}, the agreed days to {part}.")
            rows = CellRows.of(table.known_rows(window, honest_max=plan.honest_max, seed=plan.seed), layout)
            columns |= {f"{part}_{key}": getattr(rows, key) for key in ("cells", "is_fraud", "weight")}
        scratch.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(os.open(scratch / f".{file.name}", os.O_CREAT | os.O_WRONLY, 0o600), "wb") as out:
            np.savez(out, **columns)
        (scratch / f".{file.name}").replace(file)
    with np.load(file, allow_pickle=False) as found:
        return BankRows(
            *(
                CellRows(*(found[f"{part}_{key}"] for key in ("cells", "is_fraud", "weight")))
                for part in parts
            )
        )
