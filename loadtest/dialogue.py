"""Conversations that are really held: every turn carries what the server itself has answered before.

A turn can only be sent when the reply to the one before is there.  In a closed loop each user holds one conversation
after another.  In an open loop the clock decides when a request is due, and the conversations decide which: about
`live` of them are under way, the one whose reply came first goes on first, and when all are still waiting for the
server a new one begins, so that a slow server is never spared its load.
"""

from __future__ import annotations

import hashlib
from collections import deque

import orjson

from loadtest.apis import Api, Message, Part
from loadtest.client import Target, request_head
from loadtest.config import RunConfig, TrafficClass
from loadtest.workloads.base import Conversations, Item

NOTHING = "..."  # stands for an empty answer: some APIs refuse a message without text


class Talk:
    """One conversation under way.  `said` ends with what the user says next; `payload` is that request."""

    __slots__ = ("begins", "busted", "payload", "said", "turn", "user")

    def __init__(self, begins: int, user: int, said: tuple[Message, ...], busted: bool):
        self.begins, self.user, self.said, self.busted = begins, user, said, busted
        self.turn = 0
        self.payload = b""


class Dialogues:
    """Hands out the next request of a conversation (see `loadtest.source.Source`, whose place this takes).

    Args:
        worker, workers: this process holds conversations worker, worker + workers, ...
    """

    scored = False
    wants_text = True

    def __init__(
        self,
        workload: Conversations,
        config: RunConfig,
        traffic: TrafficClass,
        api: Api,
        target: Target,
        key: str,
        worker: int = 0,
        workers: int = 1,
    ):
        self.workload, self.config, self.traffic, self.api = workload, config, traffic, api
        path = api.path(target.base, config.model, config.stream)
        self.head = request_head(target, path, {**api.headers(key), **traffic.headers})
        self.live = max(1, -(-workload.live // workers))
        self.busts = self.repeats = 0
        self.counts = {"begun": 0, "ended": 0, "abandoned": 0}
        self._seed = f"{config.seed}/{traffic.name}".encode()
        self._number, self._step = worker, workers
        self._held: dict[int, Talk] = {}  # by user of a closed loop
        self._ready: deque[Talk] = deque()  # open loop: answered, so that the next turn can be sent
        self._under_way = 0

    def item(self, index: int) -> Item:
        """Return an item of the workload."""
        return self.workload.item(index)

    def check(self, index: int, text: str) -> int:
        """Return -1: turns of a conversation have no truth."""
        return -1

    def sample(self) -> bytes:
        """Return the first request of the workload, without beginning a conversation."""
        return self._payload(self.workload.item(0), self.workload.item(0).messages)

    def request(self, number: int, user: int = -1) -> tuple[int, bytes, Talk | None]:
        """Return (item index, whole HTTP request, conversation).  `user` is -1 in an open loop."""
        if user >= 0:
            talk = self._held.get(user) or self._begin(user)
        elif self._ready and self._under_way >= self.live:
            talk = self._ready.popleft()
        else:
            talk = self._begin(user)
        again = talk.begins >= len(self.workload)
        self.busts += talk.busted
        self.repeats += again and not talk.busted
        return talk.begins % len(self.workload) + talk.turn, talk.payload, talk

    def answered(self, talk: Talk, text: str | None) -> None:
        """Go on with what the server said; None: the request failed, and the user gives up."""
        if text is None or talk.turn + 1 == self.workload.turns:
            self.counts["abandoned" if text is None else "ended"] += 1
            self._under_way -= 1
            self._held.pop(talk.user, None)
            return
        talk.turn += 1
        item = self.workload.item(talk.begins % len(self.workload) + talk.turn)
        talk.said = (*talk.said, Message("assistant", (Part("text", text or NOTHING),)), *item.messages)
        talk.payload = self._payload(item, talk.said)  # now, not when it is due
        if talk.user < 0:
            self._ready.append(talk)

    def _begin(self, user: int) -> Talk:
        begins = self._number * self.workload.turns
        self._number += self._step
        item = self.workload.item(begins % len(self.workload))
        bust = begins >= len(self.workload) and self.config.cache_bust
        said = self._marked(item.messages, begins) if bust else item.messages
        talk = Talk(begins, user, said, bust)
        talk.payload = self._payload(item, said)
        self.counts["begun"] += 1
        self._under_way += 1
        if user >= 0:
            self._held[user] = talk
        return talk

    def _marked(self, messages: tuple[Message, ...], begins: int) -> tuple[Message, ...]:
        """Return the messages with a unique mark in front; all turns of the conversation keep it."""
        digest = hashlib.blake2b(self._seed + begins.to_bytes(8, "little"), digest_size=6).hexdigest()
        first, *others = messages
        return (Message(first.role, (Part("text", f"[{digest}]"), *first.parts)), *others)

    def _payload(self, item: Item, said: tuple[Message, ...]) -> bytes:
        options = self.traffic.options(self.config.temperature) | item.options
        body = orjson.dumps(self.api.body(self.config.model, said, options, self.config.stream))
        return b"%s%d\r\n\r\n%s" % (self.head, len(body), body)
