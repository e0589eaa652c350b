"""`weir chat` and `weir desk` as typed, against a real worker."""

import json
import os
import subprocess
import sys

import pytest

from tests.support.chat import chat_under_test
from weir.errors import ExitCode


@pytest.fixture(scope="module")
def chat(tmp_path_factory, kafka, keys, knowledge):
    with chat_under_test(tmp_path_factory.mktemp("chat"), kafka, keys, knowledge) as chat:
        yield chat.start()


def typed(chat, *arguments: str, said: str | None = None) -> "subprocess.CompletedProcess[str]":
    analyst = chat.keys.pki.roles["analyst"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WEIR_")}
    environment |= {
        "WEIR_CONFIG": str(chat.config()),
        "WEIR_KEYS_SSL_CERTIFICATE": str(analyst.certificate),
        "WEIR_KEYS_SSL_KEY": str(analyst.key),
    }
    return subprocess.run(
        [sys.executable, "-m", "weir", *arguments],
        env=environment,
        input=said,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_question_is_answered_with_its_sources(chat):
    done = typed(chat, "chat", "What does a replacement card cost?")
    assert done.returncode == ExitCode.OK, done.stderr
    assert "EUR 8" in done.stdout
    assert "sources: en/cards@1" in done.stdout


def test_a_conversation_of_several_lines_and_a_person(chat):
    lines = "My card 4111 1111 1111 1111 does not work\nfreeze my card\nyes\nI want to talk to a person\n"
    done = typed(chat, "chat", "--conversation", "typed", "--json", said=lines)
    assert done.returncode == ExitCode.OK, done.stderr
    replies = [json.loads(line) for line in done.stdout.splitlines()]
    assert [reply["outcome"] for reply in replies][1:] == ["CONFIRM", "DONE", "HANDED_OVER"]
    waiting = typed(chat, "desk", "tail", "--no-follow")
    assert "typed" in waiting.stdout
    assert "[CARD_1]" in waiting.stdout
    assert "4111" not in waiting.stdout
    assert typed(chat, "desk", "reply", "typed", "Hello, Ben here.").returncode == ExitCode.OK
    assert typed(chat, "desk", "reply", "typed", "--close").returncode == ExitCode.OK
    again = typed(chat, "chat", "--conversation", "typed", "What does a replacement card cost?")
    assert "EUR 8" in again.stdout


def test_a_reply_without_words_is_a_usage_error(chat):
    done = typed(chat, "desk", "reply", "typed")
    assert done.returncode == ExitCode.USAGE
    assert "Traceback" not in done.stderr
