//! Compiles the functions of nbdkit's interface that take a variable number of arguments.

fn main() {
    println!("cargo::rerun-if-changed=src/shim.c");
    cc::Build::new().file("src/shim.c").flag("-std=gnu11").warnings(true).compile("rbdkit_foreign_shim");
}
