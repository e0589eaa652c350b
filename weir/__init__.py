"""Weir: decide on a bank's live events. The SDK's public names are imported from here.

`from weir import Publisher, Transaction` loads what it names; `import weir` alone stays light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weir.client.chat import AgentReply, ChatMessage, HandOver, HandOvers, Replies, Reply
    from weir.client.decisions import BadRecord, Decisions, Last
    from weir.client.publisher import Publisher
    from weir.client.records import Channel, Decision, Label, LabelSource, Outcome, Reason, Transaction

_HOME = {
    "AgentReply": "weir.client.chat",
    "BadRecord": "weir.client.decisions",
    "Channel": "weir.client.records",
    "ChatMessage": "weir.client.chat",
    "Decision": "weir.client.records",
    "Decisions": "weir.client.decisions",
    "HandOver": "weir.client.chat",
    "HandOvers": "weir.client.chat",
    "Label": "weir.client.records",
    "LabelSource": "weir.client.records",
    "Last": "weir.client.decisions",
    "Outcome": "weir.client.records",
    "Publisher": "weir.client.publisher",
    "Reason": "weir.client.records",
    "Replies": "weir.client.chat",
    "Reply": "weir.client.chat",
    "Transaction": "weir.client.records",
}

__all__ = [
    "AgentReply",
    "BadRecord",
    "Channel",
    "ChatMessage",
    "Decision",
    "Decisions",
    "HandOver",
    "HandOvers",
    "Label",
    "LabelSource",
    "Last",
    "Outcome",
    "Publisher",
    "Reason",
    "Replies",
    "Reply",
    "Transaction",
]


def __getattr__(name: str) -> Any:
    """A public name, from the module that is its home (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'weir' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
