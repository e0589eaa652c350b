"""A member that is to leave its group leaves by handing over, also when it is told so while it joins."""

import asyncio
from types import SimpleNamespace

import pytest
from aiokafka import TopicPartition
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.consumer.subscription_state import SubscriptionState
from aiokafka.protocol.group import JoinGroupRequest
from faust.types import TP

from weir.streams._consumer_thread import BatchConsumerThread
from weir.streams.assignor import WarmAssignor, Warmth
from weir.streams.membership import CooperativeCoordinator

TOPIC = "payments"


class Told:
    """The reader, and what it was told."""

    def __init__(self):
        self.assigned_as = []

    async def revoked(self, lost):
        pass

    async def evicted(self, lost):
        pass

    async def assigned(self, now, settled):
        self.assigned_as.append((now, settled))

    def renumbered(self):
        pass


class Broker:
    """Answers a member that is alone in its group; holds a join back for as long as it is told to."""

    def __init__(self):
        self.joined_as, self.may_answer, self.asked = [], asyncio.Event(), asyncio.Event()
        self.may_answer.set()

    async def answer(self, coordinator, request):
        if isinstance(request, JoinGroupRequest):
            (name, data), *_ = request._group_protocols
            self.joined_as.append(data)
            self.asked.set()
            await self.may_answer.wait()
            return SimpleNamespace(
                error_code=0,
                member_id="me",
                leader_id="me",
                generation_id=len(self.joined_as),
                group_protocol=name,
                members=[("me", data)],
                API_VERSION=4,
            )
        ((_, assignment),) = request._group_assignment
        return SimpleNamespace(error_code=0, member_assignment=assignment)


@pytest.fixture
def broker(monkeypatch):
    broker = Broker()

    async def send(coordinator, request):
        return await broker.answer(coordinator, request)

    monkeypatch.setattr(GroupCoordinator, "_send_req", send)
    return broker


@pytest.fixture
async def member(broker):
    """A member whose rounds the test drives itself."""
    cluster = SimpleNamespace(
        add_listener=lambda call: None,
        partitions_for_topic=lambda topic: {0, 1},
        topics=lambda **options: {TOPIC},
        request_update=lambda: None,
    )
    subscription, told = SubscriptionState(), Told()
    holder = []
    assignor = WarmAssignor(
        lambda: Warmth(held=frozenset(map(tuple, holder[0].held)), leaving=holder[0].leaving),
        lambda assignment: None,
    )
    client = SimpleNamespace(
        cluster=cluster, set_topics=lambda topics: None, _maybe_wait_metadata=lambda: asyncio.sleep(0)
    )
    coordinator = CooperativeCoordinator(
        client,
        subscription,
        reader=told,
        group_id="group",
        heartbeat_interval_ms=3_600_000,
        assignors=[assignor],
    )
    holder.append(coordinator)
    coordinator._coordination_task.cancel()
    subscription.subscribe({TOPIC})
    yield coordinator, told
    await coordinator._stop_heartbeat_task()
    await coordinator._stop_commit_offsets_refresh_task()


async def test_being_told_to_leave_while_it_joins_leads_to_another_round(member, broker):
    """aiokafka forgets what it is asked between a join and its answer."""
    coordinator, told = member
    subscription = coordinator._subscription.subscription
    assert await coordinator._do_rejoin_group(subscription)
    everything = frozenset({TopicPartition(TOPIC, 0), TopicPartition(TOPIC, 1)})
    assert told.assigned_as == [(everything, True)]
    assert not coordinator.need_rejoin(subscription)

    broker.may_answer.clear()
    broker.asked.clear()
    joining = asyncio.create_task(coordinator._do_rejoin_group(subscription))
    await broker.asked.wait()
    await coordinator.rejoin(leaving=True)
    broker.may_answer.set()
    assert await joining
    # This round knew nothing of it: it settles nothing, and another one follows.
    assert told.assigned_as[-1][1] is False
    assert coordinator.need_rejoin(subscription)
    assert await coordinator._do_rejoin_group(subscription)
    assert len(set(broker.joined_as[-2:])) == 2
    assert told.assigned_as[-1][1] is True
    assert not coordinator.need_rejoin(subscription)


def test_a_look_at_a_partition_that_has_gone_meanwhile_ends_no_worker():
    """Faust looks from the main thread at what this one may have given away in the moment before."""
    thread = BatchConsumerThread.__new__(BatchConsumerThread)
    thread.app = SimpleNamespace(tables=SimpleNamespace(changelog_topics=set()))
    thread._consumer = SimpleNamespace()
    thread.verify_event_path(0.0, TP(TOPIC, 0))
