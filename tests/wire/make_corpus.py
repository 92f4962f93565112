"""Writes the corpus of hostile blobs: `python -m tests.wire.make_corpus`. The first word of a name says what `unpack`
makes of it: ok, invalid (InvalidTaskError), unreadable (DecodeError) or refused (ContentDisallowed, with JSON only)."""

from __future__ import annotations

import bz2
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.wire.messages import EMBED, message, protocol_1, seal

CORPUS = Path(__file__).parent / "corpus"


class Run:
    """Calls the shell when it is unpickled."""

    def __reduce__(self) -> Any:
        import os

        return os.system, ("exit 99",)


def changed(part: str, **fields: Any) -> dict[str, Any]:
    """A plain message with some headers or properties changed."""
    found = message()
    found[part] |= fields
    return found


def blobs() -> Iterator[tuple[str, bytes]]:
    """Name and content of every file."""
    plain = seal(message())
    deep = b"[" * 10_000 + b"]" * 10_000
    yield "ok plain", plain
    yield "ok protocol 1", seal(protocol_1())
    yield "ok custom headers", seal(changed("headers", delivery_tag=5, priority="x", traceparent="00-ab", args=[1]))
    yield "ok nul bytes", seal(changed("headers", id="\0", task="a\0b") | {"body": [["\0"], {"\0": 1}, EMBED]})
    yield (
        "ok lone surrogates",
        seal(changed("headers", id="\ud800", origin="\udc00") | {"body": [["\ud800"], {}, EMBED]}),
    )
    yield "ok huge int argument", seal(message(), b"[[" + b"9" * 4000 + b"], {}, {}]")
    yield "ok duplicate keys", plain.replace(b'"lang": "py"', b'"lang": "py", "id": "first"')
    yield "ok hostile eta for the parent", seal(changed("headers", eta="9999-99-99"))
    yield "ok losses that are none", seal(changed("headers", **{"x-celeriac-losses": [-1, "x", {}]}))
    yield "ok many headers", seal(changed("headers", **{f"h{number}": number for number in range(5000)}))
    yield "ok spaces everywhere", json.dumps(json.loads(plain), indent=4).encode()
    yield "invalid empty", b""
    yield "invalid garbage", b"\x00\x01\xfe\xff" * 64
    yield "invalid cut", plain[:400]
    yield "invalid cut in the last byte", plain[:-1]
    yield "invalid not utf-8", plain.replace(b"gen1@host", b"\xff\xfe\xfd")
    yield "invalid byte order mark", b"\xef\xbb\xbf" + plain
    yield "invalid utf-16", plain.decode().encode("utf-16")
    yield "invalid list", b"[" + plain + b"]"
    yield "invalid text", json.dumps(plain.decode()).encode()
    yield "invalid depth", b"[" * 50_000
    yield "invalid depth in headers", plain.replace(b'"lang": "py"', b'"lang": ' + deep)
    yield "invalid depth in properties", plain.replace(b'"delivery_mode": 2', b'"delivery_mode": ' + deep)
    yield "invalid no headers", json.dumps(message() | {"headers": None}).encode()
    yield (
        "invalid future protocol",
        seal(message() | {"headers": {"protocol": 3, "call": {"name": "t"}}, "body": {"v": 3}}),
    )
    yield "invalid base64", json.dumps(message() | {"body": "****"}).encode()
    yield "invalid body encoding", json.dumps(changed("properties", body_encoding="rot13") | {"body": "x"}).encode()
    yield "invalid body is a number", seal(message() | {"body": 5})
    yield "invalid body of two", seal(message() | {"body": [[], {}]})
    yield "invalid arguments are a map", seal(message() | {"body": [{}, {}, {}]})
    yield "invalid retries", seal(changed("headers", retries=10**400))
    yield "invalid time limit", seal(changed("headers", timelimit=[1e308, -5]))
    yield "invalid id", seal(changed("headers", id={"$ne": None}))
    yield "invalid unknown tag in a header", seal(changed("headers", x={"__type__": "nosuch", "__value__": 1}))
    yield "unreadable body", seal(message(), b"{garbage")
    yield "unreadable depth in the body", seal(message(), b"[[" + deep + b"], {}, {}]")
    yield "unreadable unknown tag", seal(message() | {"body": [[{"__type__": "nosuch", "__value__": 1}], {}, EMBED]})
    yield "unreadable tag", seal(message() | {"body": [[{"__type__": "uuid", "__value__": {"int": "x"}}], {}, EMBED]})
    yield "unreadable compression", seal(changed("headers", compression="application/x-nosuch"))
    yield "unreadable compressed", seal(changed("headers", compression="application/x-gzip"), b"garbage")
    yield "unreadable bzip2 bomb", seal(changed("headers", compression="bzip2"), bz2.compress(b"\0" * (300 << 20)))
    yield "refused pickle", seal(message() | {"content-type": "application/x-python-serialize"}, pickle.dumps(Run()))
    yield (
        "refused pickle of protocol 1",
        seal(protocol_1() | {"content-type": "application/x-python-serialize"}, pickle.dumps(Run())),
    )
    yield (
        "refused yaml",
        seal(message() | {"content-type": "application/x-yaml"}, b"!!python/object/apply:os.getcwd []"),
    )
    yield "refused unknown content type", seal(message() | {"content-type": "text/html"}, b"<script>")


def main() -> None:
    CORPUS.mkdir(exist_ok=True)
    for name, blob in blobs():
        (CORPUS / (name.replace(" ", "-") + ".bin")).write_bytes(blob)


if __name__ == "__main__":
    main()
