"""A host for tests that run in ordinary Python: a disk below the filter, and one request at a time.

    host = FakeHost(disk=bytes(4096))
    with host.serving(params=[("key", "7")]):
        host.pwrite(0, b"hello")
        assert host.pread(0, 5) == b"hello"

It has the functions of `next`, `buffer`, `log` and `request` that filters use most; add what yours needs.
`rbdkit-filter check` tests the component itself, in the real host.
"""

import contextlib
import os
import sys
from unittest import mock

# `rbdkit-filter build` makes the bindings. Here each of their functions does nothing but raise NotImplementedError.
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "bindings"))

from componentize_py_types import Err  # noqa: E402
from wit_world.imports import buffer, log, next, request  # noqa: E402
from wit_world.imports.types import CommandFlags, Errno  # noqa: E402


class FakeHost:
    def __init__(self, disk: bytes):
        self.disk = bytearray(disk)
        self.buffers: dict[int, bytearray] = {}
        self.below: list[tuple] = []
        self.log: list[tuple[str, str]] = []
        # If it is set, every operation of the disk fails with it.
        self.error: Errno | None = None

    @contextlib.contextmanager
    def serving(self, params=()):
        """Configures the filter, with the functions of the host in the place of the bindings' own."""
        import filter

        with contextlib.ExitStack() as stack:
            for module, functions in {
                next: ["pread", "pwrite", "flush", "get_size"],
                buffer: ["len", "read", "write", "fill", "xor"],
            }.items():
                for name in functions:
                    stack.enter_context(mock.patch.object(module, name, getattr(self, f"_{short(module)}_{name}")))
            for level in ["error", "warn", "info", "debug"]:
                line = lambda message, level=level: self.log.append((level, message))  # noqa: E731
                stack.enter_context(mock.patch.object(log, level, line))
            stack.enter_context(mock.patch.object(request, "connection", lambda: 1))
            filter.Filter().configure(list(params))
            self.filter = filter
            yield self

    def pread(self, offset: int, length: int) -> bytes:
        self.buffers = {0: bytearray(length)}
        self.filter.Reads().pread(offset, length, CommandFlags(0))
        return bytes(self.buffers[0])

    def pwrite(self, offset: int, data: bytes) -> None:
        self.buffers = {0: bytearray(data)}
        self.filter.Writes().pwrite(offset, len(data), CommandFlags(0))

    def _operation(self, *what) -> None:
        self.below.append(what)
        if self.error is not None:
            raise Err(self.error)

    def _next_pread(self, offset, length, buf, at):
        self._operation("pread", offset, length)
        self.buffers[buf][at : at + length] = self.disk[offset : offset + length]

    def _next_pwrite(self, offset, length, buf, at, flags):
        self._operation("pwrite", offset, length)
        self.disk[offset : offset + length] = self.buffers[buf][at : at + length]

    def _next_flush(self):
        self._operation("flush")

    def _next_get_size(self):
        return len(self.disk)

    def _buffer_len(self, buf):
        return len(self.buffers[buf])

    def _buffer_read(self, buf, at, length):
        return bytes(self.buffers[buf][at : at + length])

    def _buffer_write(self, buf, at, data):
        assert type(data) is bytes, f"data has to be bytes, not {type(data).__name__}"
        self.buffers[buf][at : at + len(data)] = data

    def _buffer_fill(self, buf, at, length, byte):
        self.buffers[buf][at : at + length] = bytes([byte]) * length

    def _buffer_xor(self, buf, at, length, key, skip):
        assert type(key) is bytes, f"a key has to be bytes, not {type(key).__name__}"
        for i in range(length):
            self.buffers[buf][at + i] ^= key[(skip + i) % len(key)]


def short(module) -> str:
    return module.__name__.rsplit(".", 1)[-1]
