"""Matroska files that take FFmpeg long, or much memory."""

import struct


def element(name: str, *content: bytes) -> bytes:
    """A Matroska element, its size in 8 bytes."""
    data = b"".join(content)
    return bytes.fromhex(name) + (len(data) | 1 << 56).to_bytes(8, "big") + data


def matroska(tags: int = 0, frames: int = 0, codec: bytes = b"A_AAC") -> bytes:
    """A track of sound with frames of one byte, and tags, each of which FFmpeg compares with those before it."""
    head = element("1A45DFA3", element("4282", b"webm"))
    rate = element("E1", element("B5", struct.pack(">d", 48_000.0)))
    track = element("AE", element("D7", b"\1"), element("83", b"\2"), element("86", codec), rate)
    named = [element("7373", element("67C8", element("45A3", b"K%d" % n), element("4487", b"v"))) for n in range(tags)]
    sound = b"\xa3\x85\x81\0\0\x80!" * frames
    parts = element("1654AE6B", track), element("1254C367", *named), element("1F43B675", element("E7", b"\0"), sound)
    return head + element("18538067", *parts)
