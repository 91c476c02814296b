"""Frames drawn at random, and what holds of a connection whatever it is sent."""

import struct


def frame(kind, flags=0, stream=0, payload=b""):
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload


def make_frame(rng, last):
    """A frame that is valid on stream `last`, or nearly so, so that a test reaches deep."""
    is_wild = rng.random() < 0.02
    stream = rng.choice((0, 1, 2, last, last + 2)) if is_wild else last
    block = b"\x83\x86\x84\x00\x01a\x01b"
    early = b"\x83\x86\x44\x06/early"
    kind = rng.randrange(10) if is_wild else rng.choice((0, 0, 0, 0, 1, 1, 2, 3, 4, 6, 8, 8, 8, 200))
    number = rng.choice((1, 7, 100, 1 << 16, rng.choice((0, (1 << 31) - 1)) if is_wild else 5))
    payloads = {
        0: rng.randbytes(rng.choice((0, 1, 9, 300, 16384))),
        1: rng.choice((block, block, b"\x40\x01x\x01y" if is_wild else block, early)),
        2: bytes(5),
        3: bytes(4),
        4: struct.pack(">HI", rng.choice((1, 3, 4, 6)), rng.choice((0, 1, 65535, 16384))) * rng.randrange(3),
        6: bytes(8),
        7: bytes(8),
        8: struct.pack(">I", number),
    }
    payload = payloads.get(kind, b"something")
    if is_wild and rng.random() < 0.5:
        payload = payload[:-1]
    if (kind in (4, 6, 7) or (kind == 8 and rng.random() < 0.5)) and not is_wild:
        stream = 0
    if kind == 1 and not is_wild:
        stream = last + 2
    flags = rng.choice((0, 1, 8, 32, 255)) if is_wild else rng.choice((4, 4, 5)) if kind == 1 else rng.random() < 0.2
    return frame(kind, int(flags), stream, payload)


def check_invariants(connection):
    streams = connection.streams
    assert connection.unsent_bytes == sum(len(one.unsent) for one in streams.values() if one.unsent is not None)
    assert set(connection.sending) == {one.id for one in streams.values() if one.unsent is not None}
    assert set(connection.uploads.uploads) <= {one.id for one in streams.values() if one.upload is not None}
    granted = [upload.granted for upload in connection.uploads.uploads.values()]
    assert connection.uploads.granted == sum(granted[1:])
    assert connection.uploads.granted <= connection.limits.upload_pool_bytes
    assert connection.body_bytes == sum(len(one.upload.body) for one in streams.values() if one.upload is not None)
    assert len(streams) <= connection.limits.max_streams
    assert all(number <= connection.last_id for number in streams)
    if connection.is_dead:
        assert not streams
