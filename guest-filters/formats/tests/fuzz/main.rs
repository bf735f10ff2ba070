//! Fuzzing of each decoder with mutated images of the formats' own tools.

mod qcow2;
