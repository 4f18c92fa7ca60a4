"""Conversations go on from what the server itself said, and a slow server is not spared its load."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from loadtest.html_report import render
from loadtest.run import run_load
from loadtest.text_report import terminal
from loadtest.workloads import make_workload
from models.support.errors import UsageError
from tests.loadtest.conftest import config_for
from tests.loadtest.server import Plan, Server

Serve = Callable[..., Server]


def echo(request: dict[str, Any]) -> Plan:
    """Answer with something that only this request can have led to."""
    return Plan(pieces=("heard: ", request["messages"][-1]["content"]))


def said(server: Server) -> list[list[dict[str, str]]]:
    return [request["messages"] for _, request in server.requests]


def is_held(messages: list[dict[str, str]]) -> bool:
    """Is every assistant's message what the server answered to the user's message before it?"""
    roles = [m["role"] for m in messages]
    asked, answers = messages[0::2], messages[1::2]
    fits = all(a["content"] == "heard: " + q["content"] for q, a in zip(asked, answers, strict=False))
    return fits and roles == ["user", "assistant"] * (len(messages) // 2) + ["user"]


@pytest.mark.parametrize("stream", [True, False])
def test_each_turn_carries_the_servers_own_answers(serve: Serve, stream: bool) -> None:
    server = serve(echo)
    options = {"conversations": 4, "turns": 3, "words": 3}
    config = config_for(server, "chat", workload_options=options, concurrency=1, requests=12, stream=stream)
    report = run_load(config)
    sent = said(server)[1:]  # the first is the check before the run
    assert all(is_held(messages) for messages in sent)
    assert sorted(len(messages) for messages in sent) == [1, 1, 1, 1, 3, 3, 3, 3, 5, 5, 5, 5]
    assert sorted(report.records["turn"].tolist()) == [0] * 4 + [1] * 4 + [2] * 4
    assert len({messages[0]["content"] for messages in sent}) == 4
    assert report.data["workload"][0]["conversations"] == {"begun": 4, "ended": 4, "abandoned": 0}
    assert "chats       4 begun, 4 ended, 0 given up" in terminal(report.data)
    assert "Conversations: 4 begun, 4 ended" in render(report.data)
    names = {report.items[0][int(row["item"])] for row in report.records}
    assert names == {f"chat-{c}-{t}" for c in range(4) for t in range(3)}


def test_an_open_loop_goes_on_with_live_conversations(serve: Serve) -> None:
    server = serve(echo)
    options = {"conversations": 30, "turns": 4, "words": 3, "live": 3}
    report = run_load(config_for(server, "chat", workload_options=options, rate=40, requests=40, check_model=False))
    assert all(is_held(messages) for messages in said(server))
    turns = report.records["turn"]
    assert (turns[:3] == 0).all() and turns.max() == 3
    assert 9 <= (turns == 0).sum() <= 20  # 40 requests in conversations of 4 turns, a few still under way


def test_a_slow_server_gets_new_conversations_in_an_open_loop(serve: Serve) -> None:
    """While all replies are outstanding, what falls due begins a new conversation; nothing waits for the server."""
    server = serve(Plan(first_s=3.0))
    options = {"conversations": 30, "turns": 4, "live": 2}
    config = config_for(server, "chat", workload_options=options, rate=20, requests=20, check_model=False, timeout_s=30)
    report = run_load(config)
    early = report.records[report.records["intended"] < 0.8]
    assert len(early) > 8 and (early["turn"] == 0).all()
    assert report.data["workload"][0]["conversations"]["begun"] >= len(early) > options["live"]


def test_a_failed_turn_ends_its_conversation(serve: Serve) -> None:
    def second_fails(request: dict[str, Any]) -> Plan:
        return echo(request) if len(request["messages"]) < 3 else Plan(status=400, body=b"no")

    options = {"conversations": 5, "turns": 3}
    data = run_load(
        config_for(serve(second_fails), "chat", workload_options=options, concurrency=1, requests=10, check_model=False)
    ).data
    assert data["errors"] == 5
    assert data["workload"][0]["conversations"] == {"begun": 5, "ended": 0, "abandoned": 5}


def test_an_empty_answer_is_not_sent_back_empty(serve: Serve) -> None:
    server = serve(Plan(pieces=("",)))
    options = {"conversations": 1, "turns": 2}
    config = config_for(server, "chat", workload_options=options, concurrency=1, requests=2, check_model=False)
    run_load(config.model_copy(update={"stream": False}))
    assert said(server)[1][1] == {"role": "assistant", "content": "..."}


def test_conversations_that_begin_again_are_marked_as_a_whole(serve: Serve) -> None:
    options = {"conversations": 2, "turns": 2, "words": 3}

    def run(**values: Any) -> tuple[dict[str, Any], list[list[dict[str, str]]]]:
        server = serve(echo)
        loads = {"workload_options": options, "concurrency": 1, "requests": 12, "check_model": False, **values}
        return run_load(config_for(server, "chat", **loads)).data["workload"][0], said(server)

    about, sent = run()
    assert (about["cache_busted"], about["repeats"]) == (8, 0)
    assert all(is_held(messages) for messages in sent)
    firsts = [messages[0]["content"] for messages in sent]
    assert len(set(firsts)) == 6  # six conversations, each of whose two turns begins with the same words
    assert all(firsts[i] == firsts[i + 1] for i in range(0, 12, 2))
    about, sent = run(cache_bust=False)
    assert (about["cache_busted"], about["repeats"]) == (0, 8)
    assert len({messages[0]["content"] for messages in sent}) == 2


def test_several_processes_hold_different_conversations(serve: Serve) -> None:
    server = serve(echo)
    options = {"conversations": 8, "turns": 2, "words": 3}
    config = config_for(
        server, "chat", workload_options=options, concurrency=2, requests=16, processes=2, check_model=False
    )
    data = run_load(config).data
    assert data["requests"] == 16 and data["workload"][0]["conversations"]["ended"] == 8
    assert all(is_held(messages) for messages in said(server))
    assert len({messages[0]["content"] for messages in said(server)}) == 8


def test_fixed_answers_send_the_same_whatever_the_server_says(serve: Serve) -> None:
    options = {"conversations": 3, "turns": 2, "words": 3, "answer_words": 5, "answers": "fixed"}
    runs = []
    for reply in ("yes", "no"):
        server = serve(Plan(pieces=(reply,)))
        run_load(config_for(server, "chat", workload_options=options, concurrency=1, requests=6, check_model=False))
        runs.append(said(server))
    assert runs[0] == runs[1] and len(runs[0][-1]) == 3


def test_both_kinds_ask_the_same_questions() -> None:
    options: dict[str, Any] = {"conversations": 2, "turns": 2, "live": 1, "image_size": "16x16"}
    held, fixed = make_workload("chat", **options), make_workload("chat", **options, answers="fixed")
    asked = [held.item(i).messages[-1] for i in range(4)]
    assert asked == [fixed.item(i).messages[-1] for i in range(4)]
    assert held.item(0).shape == fixed.item(0).shape
    assert held.item(1).shape.images == fixed.item(1).shape.images == 1  # it is sent again with every turn
    with pytest.raises(UsageError, match="server or fixed"):
        make_workload("chat", answers="mine")
