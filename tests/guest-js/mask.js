// A filter in JavaScript: it masks each byte of a disk with a key (exclusive or), so that the layer below holds
// other bytes than clients see.
//
//   rbdkit --wasm-filter mask.wasm file disk.img mask-key=85
//
// Numbers are exact up to 2^53, and so are offsets up to 8 PiB, which is larger than the disks of this filter.

import log from "rbdkit:filter/log@0.1.0";
import next from "rbdkit:filter/next@0.1.0";
import buffer from "rbdkit:filter/buffer@0.1.0";

// How many bytes of a request are in the guest at once.
const PIECE = 65536;

// configure sets it once, so all instances of the parallel filter have the same.
let key = 0;

export const filter = {
    describe() {
        const keyParam = {
            name: "mask-key",
            aliases: [],
            kind: "int",
            choices: [],
            default: null,
            required: true,
            repeat: false,
            passOn: false,
            help: "The key, from 0 to 255.",
        };
        return {
            name: "mask",
            version: "0.1.0",
            longname: "masks each byte with a key",
            help: "",
            threadModel: "parallel",
            unexported: "opaque",
            recovery: "stateless",
            stateVersion: 0,
            params: [keyParam],
        };
    },

    // The thrown string is the error message for the user.
    configure(params) {
        for (const [name, value] of params) {
            if (name === "mask-key") {
                key = Number(value);
            }
        }
        if (!(key <= 255)) {
            throw "mask-key: must be from 0 to 255";
        }
        log.debug(`the key is ${key}`);
    },
};

function maskPayload(length) {
    for (let at = 0; at < length; at += PIECE) {
        const bytes = buffer.read(0, at, Math.min(PIECE, length - at));
        for (let i = 0; i < bytes.length; i++) {
            bytes[i] ^= key;
        }
        buffer.write(0, at, bytes);
    }
}

// An imported function throws its error, and what an exported function throws is its error. So an error of the layer
// below is the filter's error.
export const reads = {
    pread(offset, length, _flags) {
        next.pread(offset, length, 0, 0);
        maskPayload(length);
    },
};

export const writes = {
    pwrite(offset, length, flags) {
        maskPayload(length);
        next.pwrite(offset, length, 0, 0, flags);
    },
};
