"""Ask the stack about a picture: `ask.py BASE_URL MODEL`.  Exit code 0 when it answers.  Standard library only."""

import base64
import json
import os
import struct
import sys
import time
import urllib.error
import urllib.request
import zlib


def png(size: int = 64) -> bytes:
    """Return a white square with a red one in it."""
    rows = bytearray()
    for y in range(size):
        rows.append(0)
        for x in range(size):
            rows += b"\xff\x00\x00" if 16 <= x < 48 and 16 <= y < 48 else b"\xff\xff\xff"

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(rows))) + chunk(b"IEND", b"")
    )


def main() -> int:
    """Ask for up to two minutes."""
    base, model = sys.argv[1:3]
    url = "data:image/png;base64," + base64.b64encode(png()).decode()
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "what color is the shape?"}]
    body = {"model": model, "messages": [{"role": "user", "content": parts}], "max_tokens": 16, "temperature": 0}
    headers = {"content-type": "application/json"}
    if os.environ.get("OPENAI_API_KEY"):
        headers["authorization"] = "Bearer " + os.environ["OPENAI_API_KEY"]
    request = urllib.request.Request(base + "/v1/chat/completions", json.dumps(body).encode(), headers)
    deadline = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                text = json.load(answer)["choices"][0]["message"]["content"]
            break
        except urllib.error.HTTPError as error:
            said = f"{error.code}: {error.read(300).decode(errors='replace')}"
            if error.code < 500 or time.monotonic() > deadline:
                print(f"{base} refused the question: {said}")
                return 1
        except OSError as error:
            said = str(error)
            if time.monotonic() > deadline:
                print(f"{base} does not answer: {said}")
                return 1
        time.sleep(float(os.environ.get("EVERY_S", "2")))
    print(f"{model} answers: {text!r}")
    return 0 if text and text.strip() else 1


if __name__ == "__main__":
    sys.exit(main())
