"""Server-sent events, cut out of a byte stream without decoding it.

Works on bytes only, so a UTF-8 character or a line end split between two TCP segments needs no special care:
an event is handed out when its blank line has arrived.
"""

from __future__ import annotations


class EventScanner:
    """Cuts `data:` payloads out of a stream of bytes.

    Comments, `event:`, `id:` and `retry:` fields are dropped (the JSON payloads carry their own type).  LF, CRLF and
    CR line ends are all accepted, as the specification asks.

    Args:
        limit: largest event in bytes that is held; a longer one raises ValueError (a server that never ends
            its event must not fill the client's memory).
    """

    __slots__ = ("limit", "tail")

    def __init__(self, limit: int = 16 << 20):
        self.limit = limit
        self.tail = b""

    def reset(self) -> None:
        """Forget an unfinished event; call it between responses."""
        self.tail = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the payloads of all events that `data` completes, in order.

        Raises:
            ValueError: an event is longer than `limit`.
        """
        if self.tail:
            data = self.tail + data
        if b"\r" in data:
            # A CR at the very end may be half of a CRLF: keep it for the next call.
            held = b"\r" if data.endswith(b"\r") else b""
            data = data[: len(data) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        else:
            held = b""
        *events, rest = data.split(b"\n\n")
        self.tail = rest + held
        if len(self.tail) > self.limit:
            raise ValueError(f"one server-sent event is longer than {self.limit} bytes")
        payloads = []
        for event in events:
            if event.startswith(b"data: ") and b"\n" not in event:  # the form that servers send nearly always
                payloads.append(event[6:])
                continue
            lines = []
            for field in event.split(b"\n"):
                if field.startswith(b"data:"):
                    lines.append(field[6:] if field.startswith(b"data: ") else field[5:])
            if lines:
                payloads.append(b"\n".join(lines))
        return payloads
