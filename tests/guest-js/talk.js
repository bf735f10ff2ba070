// A filter in JavaScript that asks for the time and for random numbers, and makes a mistake at offset 4096.

import log from "rbdkit:filter/log@0.1.0";
import next from "rbdkit:filter/next@0.1.0";

export const filter = {
    describe() {
        return {
            name: "talk",
            version: "0.1.0",
            longname: "talks",
            help: "",
            threadModel: "serialize-all-requests",
            unexported: "transparent",
            recovery: "stateless",
            stateVersion: 0,
            params: [],
        };
    },

    configure(_params) {},
};

export const reads = {
    pread(offset, length, _flags) {
        if (offset === 0) {
            const random = Math.random();
            log.warn(`time: ${Date.now() > Date.UTC(2020)}, random: ${random >= 0 && random < 1}`);
            log.info("ready");
        }
        if (offset === 4096) {
            // A mistake that every program may have.
            null.length;
        }
        next.pread(offset, length, 0, 0);
    },
};
