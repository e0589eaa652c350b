"""A signal ends what runs, even one that came where Python drops exceptions."""

import asyncio
import signal

import pytest

from infra.local.interruption import interruption

BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


class Destroyed:
    """Signalled in its destructor, where an exception would be printed and dropped."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number

    def __del__(self) -> None:
        signal.raise_signal(self.number)


@BOTH
def test_a_signal_within_a_destructor_is_not_lost_and_prints_nothing(number, capfd):
    ran = []

    async def main() -> None:
        await asyncio.sleep(0)
        ran.append(True)

    with interruption() as asked:
        Destroyed(number)
        with pytest.raises(KeyboardInterrupt):
            asked.check()
        with pytest.raises(KeyboardInterrupt):
            asked.run(main())
    assert not ran
    assert capfd.readouterr() == ("", "")


@BOTH
def test_a_signal_interrupts_what_does_not_wait_for_it(number):
    with interruption(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)


@BOTH
def test_what_runs_is_cancelled_and_may_tidy_up(number):
    tidied = []

    async def main() -> None:
        asyncio.get_running_loop().call_soon(signal.raise_signal, number)
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            tidied.append(True)

    with interruption() as asked, pytest.raises(KeyboardInterrupt):
        asked.run(main())
    assert tidied == [True]


def test_the_last_steps_are_done_whole_and_the_handlers_come_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with interruption() as asked:
        asked.no_more()
        signal.raise_signal(signal.SIGTERM)
        asked.check()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_what_ends_by_itself_is_no_interruption():
    ran = []

    async def main() -> None:
        ran.append(True)

    with interruption() as asked:
        asked.run(main())
    assert ran == [True]
    assert not asked.asked
