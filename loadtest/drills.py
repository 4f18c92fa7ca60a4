"""The drills: what breaks, and what should then happen.  One class per kind, all registered in `DRILLS`."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from loadtest.client import Kind
from loadtest.faultproxy import Fault, FaultProxy
from loadtest.rehearse import Check, Drill, Parts, Setting, Verdict, failed, p50, run_steady
from models.support.errors import UsageError


class BadInput(Drill):
    """Broken requests come in beside steady traffic for a while: each is refused by a 4xx, and nobody else notices."""

    def __init__(self, name: str, expectation: str, kind: str, refused: bool = True):
        super().__init__(name, expectation)
        self.kind, self.refused = kind, refused

    def run(self, setting: Setting) -> Verdict:
        """Run the drill."""
        bad = {
            "name": "broken",
            "workload": "broken",
            "workload_options": {"kind": self.kind},
            "rate": setting.bad_rate,
            "arrival": "constant",
            "begin_s": setting.part_s,
            "end_s": 2 * setting.part_s,
        }
        records = run_steady(setting, setting.config["url"], bad)
        sent = records[records["cls"] == 1]
        parts = Parts(records, setting.part_s)
        check = Check()
        check.usual(parts, setting)
        refused = int(((sent["kind"] == Kind.STATUS) & (sent["status"] >= 400) & (sent["status"] < 500)).sum())
        crashed = int((sent["status"] >= 500).sum())
        lost = int(np.isin(sent["kind"], (Kind.CONNECT, Kind.RESET, Kind.CUT, Kind.TIMEOUT, Kind.PROTOCOL)).sum())
        if self.refused:
            check.that(refused == len(sent) > 0, f"{refused} of {len(sent)} broken requests got a 4xx")
        else:
            answered = int((sent["kind"] == Kind.OK).sum())
            check.that(answered == len(sent) > 0, f"{answered} of {len(sent)} got an answer")
        check.that(crashed == 0, f"{crashed} got a 5xx")
        check.that(lost == 0, f"{lost} got no complete reply")
        count, n = failed(parts.during), len(parts.during)
        check.that(count <= setting.tolerate * n, f"during: {count} of {n} steady requests failed beside them")
        check.same_speed(parts.before, parts.during, "during", setting)
        broken = {"requests": len(sent), "refused": refused, "5xx": crashed, "lost": lost}
        return parts.verdict(self, check, broken=broken)


class Upstream(Drill):
    """A fault between two parties, by the proxy.

    With a proxy in front of the stack's own upstream, the stack has to hide the fault.  Without one the proxy stands
    in front of the server: the fault must be seen as what it is, and be over when it is over.
    """

    def __init__(self, name: str, expectation: str, fault: Fault, seen: tuple[Kind, int]):
        super().__init__(name, expectation)
        self.fault, self.seen = fault, seen

    def run(self, setting: Setting) -> Verdict:
        """Run the drill."""
        with _proxy(setting) as (proxy, url):
            before = proxy.injected

            def begin() -> None:
                proxy.fault = self.fault

            def end() -> None:
                proxy.fault = None

            try:
                records = run_steady(setting, url, at=begin, back=end)
            finally:
                proxy.fault = None
            injected = proxy.injected - before
        parts = Parts(records, setting.part_s)
        check = Check()
        check.usual(parts, setting)
        check.that(injected > 0, f"{injected} faults were injected")
        if setting.proxy is not None:
            count, n = failed(parts.during), len(parts.during)
            check.that(
                count <= setting.tolerate * n, f"during: {count} of {n} steady requests failed (the stack hides it)"
            )
        elif self.fault.kind == "slow":
            slow = p50(parts.during) or 0.0
            check.that(slow >= 500 * self.fault.delay_s, f"during: P50 {slow} ms shows the delay")
        else:
            kind, status = self.seen
            wrong = parts.during[parts.during["kind"] != Kind.OK]
            named = (
                int(((wrong["kind"] == kind) & (wrong["status"] == status)).sum())
                if status
                else int((wrong["kind"] == kind).sum())
            )
            check.that(
                named > 0 and named >= 0.9 * len(wrong), f"during: {named} of {len(wrong)} failures are named right"
            )
        return parts.verdict(self, check)


@contextmanager
def _proxy(setting: Setting) -> Iterator[tuple[FaultProxy, str]]:
    if setting.proxy is not None:
        yield setting.proxy, setting.config["url"]
        return
    with FaultProxy(setting.config["url"]) as proxy:
        yield proxy, proxy.url


class Command(Drill):
    """Something is stopped by a command of the user's: a replica, the cache store."""

    def __init__(self, name: str, expectation: str, stop: str, start: str = ""):
        super().__init__(name, expectation)
        self.stop, self.start = stop, start

    def missing(self, setting: Setting) -> str:
        """Return why this drill cannot run."""
        return "" if self.stop in setting.commands else f"no command given (--{self.stop}-command)"

    def run(self, setting: Setting) -> Verdict:
        """Run the drill."""
        back = setting.commands.get(self.start) if self.start else None
        records = run_steady(
            setting,
            setting.config["url"],
            at=lambda: _shell(self.stop, setting.commands[self.stop], setting.part_s),
            back=(lambda: _shell(self.start, back, setting.part_s)) if back else None,
        )
        parts = Parts(records, setting.part_s)
        check = Check()
        check.usual(parts, setting)
        count, n = failed(parts.during), len(parts.during)
        check.that(count <= setting.tolerate * n, f"during: {count} of {n} steady requests failed")
        return parts.verdict(self, check)


def _shell(name: str, command: str, limit_s: float) -> None:
    try:
        subprocess.run(command, shell=True, check=True, capture_output=True, text=True, timeout=max(5.0, limit_s))
    except subprocess.SubprocessError as error:
        text = getattr(error, "stderr", None) or str(error)
        raise UsageError(
            f"the command failed: {str(text).strip()[:200]}",
            field=f"--{name}-command",
            value=command,
            fix="run the command by hand: it must end with 0",
        ) from error


DRILLS: dict[str, Drill] = {
    d.name: d
    for d in (
        BadInput("corrupted-image", "each gets a 4xx, steady traffic is untouched", "corrupted-image"),
        BadInput("truncated-image", "each gets a 4xx, steady traffic is untouched", "truncated-image"),
        BadInput("not-an-image", "each gets a 4xx, steady traffic is untouched", "not-an-image"),
        BadInput("oversized-prompt", "each gets a 4xx, steady traffic is untouched", "oversized-prompt"),
        BadInput("contradiction", "each is answered, steady traffic is untouched", "contradiction", refused=False),
        Upstream("upstream-slow", "slow while it lasts, back after", Fault("slow", delay_s=1.0), (Kind.OK, 200)),
        Upstream("upstream-429", "429 while it lasts, back after", Fault("status", status=429), (Kind.STATUS, 429)),
        Upstream(
            "upstream-500", "500 while it lasts, back after", Fault("status", 0.5, status=500), (Kind.STATUS, 500)
        ),
        Upstream("upstream-cut", "cut replies are errors, back after", Fault("cut", 0.5, after=120), (Kind.CUT, 0)),
        Command("replica-killed", "the others take over, and it comes back", "kill"),
        Command("cache-gone", "requests are answered without the cache", "cache-stop", "cache-start"),
    )
}


def rehearse(names: list[str], setting: Setting) -> Iterator[Verdict]:
    """Run drills one after another, each one's verdict as soon as it is known.

    Raises:
        UsageError: an unknown drill, or a server that is not usable.
    """
    for name in names:
        if name not in DRILLS:
            raise UsageError("unknown drill", field="--drill", value=name, fix=f"use {', '.join(DRILLS)}")
    for name in names:
        drill = DRILLS[name]
        reason = drill.missing(setting)
        yield Verdict(name, drill.expectation, "skipped", [reason]) if reason else drill.run(setting)
