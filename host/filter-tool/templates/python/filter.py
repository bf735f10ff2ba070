"""@NAME@: XORs every byte with a number, in both directions.

The functions are those of wit/deps/rbdkit-filter/filter.wit; bindings/wit_world has them in Python. An error is raised:
raise Err(Errno.EIO). Any other exception is a fault: the request fails, and the server's log has the traceback, and
what is printed on standard error. Import everything at the top of the file: the component keeps what is loaded when it
is built, and there are no files, no network and no threads when it runs. Data has to be of the type bytes.
"""

from componentize_py_types import Err
from wit_world import exports
from wit_world.imports import buffer, next
from wit_world.imports.types import CommandFlags, Description, Param, Recovery, ThreadModel, Unexported

# The request's own buffer: a read fills it, and for a write it holds what the client wrote.
PAYLOAD = 0

# The number, as a key of one byte.
key = b"\xff"


class Filter(exports.Filter):
    def describe(self) -> Description:
        return Description(
            name="@NAME@",
            version="0.1.0",
            longname="exclusive-or with a number",
            help="Changes every byte on its way in and out.",
            thread_model=ThreadModel.PARALLEL,
            unexported=Unexported.OPAQUE,
            recovery=Recovery.STATELESS,
            state_version=1,
            params=[
                Param(
                    name="key", aliases=[], kind="int", choices=[], default="255",
                    required=False, repeat=False, pass_on=False, help="The number, 0 to 255.",
                ),
            ],
        )

    def configure(self, params: list[tuple[str, str]]) -> None:
        global key
        for name, value in params:
            if name == "key":
                if int(value) > 255:
                    raise Err(f"key={value}: is not from 0 to 255")
                key = bytes([int(value)])


class Reads(exports.Reads):
    def pread(self, offset: int, length: int, flags: CommandFlags) -> None:
        # The layer below fills the request's buffer, which stays in the host.
        next.pread(offset, length, PAYLOAD, 0)
        buffer.xor(PAYLOAD, 0, length, key, 0)


class Writes(exports.Writes):
    def pwrite(self, offset: int, length: int, flags: CommandFlags) -> None:
        buffer.xor(PAYLOAD, 0, length, key, 0)
        next.pwrite(offset, length, PAYLOAD, 0, flags)
