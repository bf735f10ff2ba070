// @NAME@: XORs every byte with a number, in both directions.
//
// The functions are those of wit/deps/rbdkit-filter/filter.wit, in camel case; bindings/rbdkit.d.ts declares them for the
// editor. An error is thrown: `throw "einval"`. Anything else that is thrown is a fault: the request fails, and the
// server's log has the stack. A function cannot be async. Integers are numbers, which are exact up to 2^53, so offsets
// beyond 8 PiB do not work. There is no console: import * as log from "rbdkit:filter/log@0.1.0".
import * as next from "rbdkit:filter/next@0.1.0";
import * as buffer from "rbdkit:filter/buffer@0.1.0";

// The request's own buffer: a read fills it, and for a write it holds what the client wrote.
const PAYLOAD = 0;

// The number, as a key of one byte.
const key = new Uint8Array([255]);

/** @type {rbdkit.Filter} */
export const filter = {
  describe() {
    return {
      name: "@NAME@",
      version: "0.1.0",
      longname: "exclusive-or with a number",
      help: "Changes every byte on its way in and out.",
      threadModel: "parallel",
      unexported: "opaque",
      recovery: "stateless",
      stateVersion: 1,
      params: [
        {
          name: "key", aliases: [], kind: "int", choices: [], default: "255",
          required: false, repeat: false, passOn: false, help: "The number, 0 to 255.",
        },
      ],
    };
  },

  configure(params) {
    for (const [name, value] of params) {
      if (name !== "key") continue;
      if (Number(value) > 255) throw `key=${value}: is not from 0 to 255`;
      key[0] = Number(value);
    }
  },
};

/** @type {rbdkit.Reads} */
export const reads = {
  pread(offset, length, flags) {
    // The layer below fills the request's buffer, which stays in the host.
    next.pread(offset, length, PAYLOAD, 0);
    buffer.xor(PAYLOAD, 0, length, key, 0);
  },
};

/** @type {rbdkit.Writes} */
export const writes = {
  pwrite(offset, length, flags) {
    buffer.xor(PAYLOAD, 0, length, key, 0);
    next.pwrite(offset, length, PAYLOAD, 0, flags);
  },
};
