"""Compression under kombu's names. Unfolding stops at a limit, so that a small message can't fill the memory."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import Any

from celeriac.errors import DecodeError, ImproperlyConfigured

LIMIT = 256 << 20
"""How many bytes `decompress` gives at most, unless told otherwise."""
GZIP = "application/x-gzip"
BZIP2 = "application/x-bz2"
LZMA = "application/x-lzma"
BROTLI = "application/x-brotli"
ZSTD = "application/zstd"
_METHODS = {
    "gzip": GZIP, "zlib": GZIP, "bzip2": BZIP2, "bzip": BZIP2, "lzma": LZMA, "xz": LZMA, "brotli": BROTLI,
    "zstd": ZSTD, "zstandard": ZSTD,
}  # fmt: skip


def compression_type(name: str) -> str:
    """The header value of a compression name (or of a header value). Raises ImproperlyConfigured."""
    method = _METHODS.get(name, name)
    if method not in _METHODS.values():
        raise ImproperlyConfigured(f"no compression is called {name!r}; known are {', '.join(sorted(_METHODS))}")
    return method


def compress(data: bytes, name: str) -> tuple[bytes, str]:
    """Compressed bytes and the value of header `compression`. Name "gzip" gives a zlib stream, as everywhere in Celery.
    Raises ImproperlyConfigured for an unknown method, or one whose library is missing."""
    method = compression_type(name)
    if method == GZIP:
        return zlib.compress(data), method
    if method == BZIP2:
        return bz2.compress(data), method
    if method == LZMA:
        return lzma.compress(data), method
    if method == BROTLI:
        packed: bytes = _brotli().compress(data)
        return packed, method
    return _zstd_compress(data), method


def decompress(data: bytes, header_value: str, limit: int = LIMIT) -> bytes:
    """The bytes that were compressed. Raises DecodeError when there are more than `limit`, when the method is unknown,
    its library is missing, or the data is damaged."""
    method = _METHODS.get(header_value, header_value)
    reader = _READERS.get(method)
    if reader is None:
        raise DecodeError(f"unknown compression {header_value[:100]!r}")
    try:
        plain = reader(data, limit)
    except DecodeError:
        raise
    except ImproperlyConfigured as exc:
        raise DecodeError(str(exc)) from None
    except MemoryError:
        raise DecodeError(f"{method} data needs too much memory") from None
    except Exception as exc:
        raise DecodeError(f"damaged {method} data: {exc}") from exc
    if len(plain) > limit:
        raise DecodeError(f"{method} data unfolds to more than {limit} bytes")
    return plain


def _read_zlib(data: bytes, limit: int) -> bytes:
    # 47: zlib and gzip, told apart by their first bytes.
    unpacker = zlib.decompressobj(47)
    plain = unpacker.decompress(data, limit + 1)
    if len(plain) <= limit and not unpacker.eof:
        raise DecodeError("zlib data ends too early")
    return plain


def _read_streams(make: Callable[[], Any], data: bytes, limit: int) -> bytes:
    """All streams that stand one after another, as `bz2.decompress` and `lzma.decompress` read them."""
    parts: list[bytes] = []
    size = 0
    while True:
        unpacker = make()
        while not unpacker.eof and size <= limit:
            try:
                part = unpacker.decompress(data, limit + 1 - size)
            except Exception:
                if parts and data:
                    return b"".join(parts)  # what follows a whole stream is no other one: padding
                raise
            data = b""
            if not part and not unpacker.eof:
                raise DecodeError("compressed data ends too early")
            parts.append(part)
            size += len(part)
        data = unpacker.unused_data if unpacker.eof else b""
        if not data or size > limit:
            return b"".join(parts)


def _read_bz2(data: bytes, limit: int) -> bytes:
    return _read_streams(bz2.BZ2Decompressor, data, limit)


def _read_lzma(data: bytes, limit: int) -> bytes:
    # A header may ask for a dictionary of 4 GiB.
    return _read_streams(lambda: lzma.LZMADecompressor(memlimit=limit + (128 << 20)), data, limit)


def _brotli() -> Any:
    try:
        import brotli  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        try:
            import brotlicffi as brotli  # type: ignore[import-not-found,import-untyped,no-redef,unused-ignore]
        except ImportError:
            raise ImproperlyConfigured("compression brotli needs Brotli: pip install 'celeriac[brotli]'") from None
    return brotli


def _read_brotli(data: bytes, limit: int) -> bytes:
    unpacker = _brotli().Decompressor()
    if not hasattr(unpacker, "can_accept_more_data"):  # before 1.2 what one step gives has no limit
        return _read_pieces(unpacker.process, data, limit, 8, unpacker.is_finished)
    parts: list[bytes] = [unpacker.process(data, output_buffer_limit=limit + 1)]
    size = len(parts[0])
    while size <= limit and not unpacker.is_finished():
        if unpacker.can_accept_more_data():
            raise DecodeError("brotli data ends too early")
        parts.append(unpacker.process(b"", output_buffer_limit=limit + 1 - size))
        size += len(parts[-1])
    return b"".join(parts)


def _read_pieces(
    step: Callable[[bytes], bytes], data: bytes, limit: int, length: int, finished: Callable[[], bool]
) -> bytes:
    """Unpack in pieces so small that one of them can't unfold to too much."""
    parts: list[bytes] = []
    size = 0
    for start in range(0, len(data), length):
        parts.append(step(data[start : start + length]))
        size += len(parts[-1])
        if size > limit or finished():
            return b"".join(parts)
    raise DecodeError("compressed data ends too early")


def _zstd_compress(data: bytes) -> bytes:
    library, module = _zstd()
    packed: bytes = module.ZstdCompressor().compress(data) if library == "zstandard" else module.compress(data)
    return packed


def _zstd() -> tuple[str, Any]:
    for library in ("compression.zstd", "backports.zstd", "zstandard"):
        try:
            return library, __import__(library, fromlist=["_"])
        except ImportError:
            continue
    raise ImproperlyConfigured("compression zstd needs zstandard: pip install 'celeriac[zstd]'")


def _read_zstd(data: bytes, limit: int) -> bytes:
    library, module = _zstd()
    if library == "zstandard":
        unpacker = module.ZstdDecompressor().decompressobj()
        return _read_pieces(unpacker.decompress, data, limit, 256, lambda: unpacker.eof)
    return _read_streams(module.ZstdDecompressor, data, limit)


_READERS: dict[str, Callable[[bytes, int], bytes]] = {
    GZIP: _read_zlib, BZIP2: _read_bz2, LZMA: _read_lzma, BROTLI: _read_brotli, ZSTD: _read_zstd,
}  # fmt: skip
