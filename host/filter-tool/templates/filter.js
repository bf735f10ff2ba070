// @NAME@: XORs every byte with a key. This example changes data in both directions.
//
// The functions are those of wit/deps/rbdkit-filter/filter.wit, in camel case. Errors are thrown: `throw "einval"`.
// Anything else that is thrown is a fault: the request fails, and the server's log has the stack.
// Numbers are exact only up to 2^53, so offsets beyond 8 PiB do not work in JavaScript.
import * as next from "rbdkit:filter/next@0.1.0";
import * as buffer from "rbdkit:filter/buffer@0.1.0";

const PAYLOAD = 0;
// Data goes through the guest in pieces of this size, so that no request needs much memory.
const PIECE = 65536;

let key = 255;

export const filter = {
  describe() {
    return {
      name: "@NAME@",
      version: "0.1.0",
      longname: "exclusive-or with a key",
      help: "Changes every byte on its way in and out.",
      threadModel: "parallel",
      unexported: "opaque",
      recovery: "stateless",
      stateVersion: 1,
      params: [
        {
          name: "key", aliases: [], kind: "int", choices: [], default: "255",
          required: false, repeat: false, passOn: false, help: "The key, 0 to 255.",
        },
      ],
    };
  },

  configure(params) {
    for (const [name, value] of params) {
      if (name === "key") key = Number(value);
    }
    if (key > 255) throw "key: is not a number from 0 to 255";
  },
};

function change(length) {
  for (let at = 0; at < length; at += PIECE) {
    const bytes = buffer.read(PAYLOAD, at, Math.min(PIECE, length - at));
    for (let i = 0; i < bytes.length; i++) bytes[i] ^= key;
    buffer.write(PAYLOAD, at, bytes);
  }
}

export const reads = {
  pread(offset, length, flags) {
    next.pread(offset, length, PAYLOAD, 0);
    change(length);
  },
};

export const writes = {
  pwrite(offset, length, flags) {
    change(length);
    next.pwrite(offset, length, PAYLOAD, 0, flags);
  },
};
