"""An answer as a gRPC stream, for the bank's gateway; the contract is protos/weir/chat/v1/answers.proto."""

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio

from services.chat.streaming.live import Event, Finished, LiveAnswers, NotWatchable, Shown, TakenBack
from weir._proto.weir.chat.v1 import answers_pb2, answers_pb2_grpc
from weir.errors import AccessDenied, WeirError

_ID_CHARS_MAX = 200
_WAIT_S_MAX = 60.0


class AnswersServicer(answers_pb2_grpc.AnswersServicer):
    """Over the answers of one worker.

    Args:
        pseudonym: of a customer's id, as the answers know it.
        wait_s: how long an answer may take to begin, where a caller does not say.
    """

    def __init__(
        self, answers: LiveAnswers, pseudonym: Callable[[str], str], *, wait_s: float = 10.0
    ) -> None:
        self._answers, self._pseudonym, self._wait_s = answers, pseudonym, wait_s

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802 (the contract's name)
        """See protos/weir/chat/v1/answers.proto."""
        if not request.customer_id or not 0 < len(request.event_id) <= _ID_CHARS_MAX:
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, "Name an event and a customer by their ids."
            )
        wait_s = min(request.wait_seconds or self._wait_s, _WAIT_S_MAX)
        customer = self._pseudonym(request.customer_id)
        async with aclosing(self._answers.watch(request.event_id, customer, wait_s=wait_s)) as events:
            try:
                async for event in events:
                    yield _message(event)
            except WeirError as error:
                await context.abort(_code(error), str(error))


def _message(event: Event) -> Any:
    match event:
        case Shown(index, sentence):
            shown = answers_pb2.Sentence(
                index=index,
                text=sentence.text,
                origin=sentence.origin.value,
                sources=list(sentence.sources),
            )
            return answers_pb2.AnswerEvent(sentence=shown)
        case TakenBack(index):
            return answers_pb2.AnswerEvent(taken_back=answers_pb2.TakenBack(index=index))
        case Finished(outcome, count):
            finished = answers_pb2.Finished(outcome=outcome.value, sentence_count=count)
            return answers_pb2.AnswerEvent(finished=finished)


def _code(error: WeirError) -> grpc.StatusCode:
    match error:
        case NotWatchable():
            return grpc.StatusCode.NOT_FOUND
        case AccessDenied():
            return grpc.StatusCode.PERMISSION_DENIED
        case _:
            return grpc.StatusCode.RESOURCE_EXHAUSTED if error.retriable else grpc.StatusCode.INTERNAL


async def serve_answers(servicer: AnswersServicer, host: str, port: int) -> grpc.aio.Server:
    """A running server; stop it.

    Raises:
        OSError: the port is taken.
    """
    # Without it a second process would share the port, and callers would reach either.
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    answers_pb2_grpc.add_AnswersServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]  # generated
    try:
        server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise OSError(str(error)) from error
    await server.start()
    return server
