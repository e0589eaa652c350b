"""What a conversation is, and all conversations of a worker, which can be rolled back."""

from services.chat.conversation.table import Conversations, Link
from services.chat.conversation.value import Conversation, Said, decode, encode

__all__ = ["Conversation", "Conversations", "Link", "Said", "decode", "encode"]
