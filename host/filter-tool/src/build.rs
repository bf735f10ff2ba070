//! `build`: makes a component from a directory, with the installed toolchains.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use rbdkit_plugin_api::own_program;

use crate::component;
use crate::error::{Error, Hint, Result};

const TARGET: &str = "wasm32-unknown-unknown";

/// Builds the filter in a directory with a Cargo.toml, a filter.c or a filter.js. If `place` is a
/// file, it is a core module of another toolchain and becomes a component. Returns the component's
/// path.
pub fn build(place: &Path) -> Result<PathBuf> {
    let dir = place.canonicalize().map_err(Error::file("cannot open", place))?;
    if dir.is_file() {
        let module = component::read(&dir)?;
        let component =
            componentize(&module).map_err(|source| Error::Module { path: dir.clone(), source: Box::new(source) })?;
        return write(dir.with_extension("component.wasm"), &component);
    }
    let (name, component) = if dir.join("Cargo.toml").exists() {
        rust(&dir)?
    } else if dir.join("filter.c").exists() {
        c(&dir)?
    } else if dir.join("filter.js").exists() {
        js(&dir)?
    } else {
        return Err(Error::NothingToBuild(dir));
    };
    write(dir.join(format!("{name}.wasm")), &component)
}

/// The hidden argument of the child that makes a component from a module.
const ARGUMENT: &str = "--rbdkit-componentize";

/// Its exit status if it has written to standard error why it refuses the module.
const REFUSED: i32 = 3;

/// The program calls this first. If [`componentize`] started it, it reads a module, writes a
/// component and returns the exit status.
pub fn serve_if_asked() -> Option<ExitCode> {
    if std::env::args_os().nth(1)? != ARGUMENT {
        return None;
    }
    // The exit status is enough to report a panic.
    std::panic::set_hook(Box::new(|_| {}));
    let work = || -> Result<()> {
        let mut module = Vec::new();
        std::io::stdin().lock().read_to_end(&mut module)?;
        Ok(std::io::stdout().lock().write_all(&rbdkit_componentize::componentize(&module)?)?)
    };
    Some(work().map_or_else(
        |error| {
            let _ = write!(std::io::stderr(), "{}", error.with_causes());
            ExitCode::from(REFUSED as u8)
        },
        |()| ExitCode::SUCCESS,
    ))
}

/// Makes a component from a module, in a child process, because the encoder panics or overflows its
/// stack on some modules with wrong types.
fn componentize(module: &[u8]) -> Result<Vec<u8>> {
    let mut child = own_program()
        .map(Command::new)?
        .arg(ARGUMENT)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| Error::Start { program: "this program once more".into(), hint: Hint(""), source })?;
    if let Some(mut input) = child.stdin.take() {
        // The child reads all before it writes anything. A child that has ended already says why.
        let _ = input.write_all(module);
    }
    let output = child.wait_with_output()?;
    match output.status.code() {
        Some(0) => Ok(output.stdout),
        Some(REFUSED) => Err(Error::Refused(String::from_utf8_lossy(&output.stderr).into_owned())),
        _ => Err(Error::Damaged),
    }
}

fn write(output: PathBuf, component: &[u8]) -> Result<PathBuf> {
    std::fs::write(&output, component).map_err(Error::file("cannot write", &output))?;
    say!("{}: {} bytes", output.display(), component.len());
    Ok(output)
}

/// Wraps the error of a library that reads the contract or makes bindings for it.
fn contract(doing: &'static str) -> impl Fn(Box<dyn std::error::Error + Send + Sync>) -> Error {
    move |source| Error::Contract { doing, source }
}

fn directory_name(dir: &Path) -> Result<String> {
    let name = dir.file_name().ok_or(Error::RootDirectory)?;
    Ok(name.to_string_lossy().into_owned())
}

/// Runs a program to its end. The user sees its output.
fn run(command: &mut Command, hint: Hint) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Error::Failed { program, hint, how: status.to_string() }),
        Err(source) => Err(Error::Start { program, hint, source }),
    }
}

/// Runs a program to its end and returns what it prints.
fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_string();
    match command.output() {
        Ok(output) if output.status.success() => Ok(text(&output.stdout)),
        Ok(output) => Err(Error::Failed { program, hint: Hint(""), how: text(&output.stderr) }),
        Err(source) => Err(Error::Start { program, hint: Hint(""), source }),
    }
}

/// Builds with cargo. The standard library for the target comes from the toolchain, or is built
/// from Debian's rust-web-src.
fn rust(dir: &Path) -> Result<(String, Vec<u8>)> {
    let sysroot = PathBuf::from(output(Command::new("rustc").args(["--print", "sysroot"]))?);
    let target_dir = dir.join("target");
    let mut cargo = Command::new("cargo");
    cargo.current_dir(dir).args(["build", "--release", "--target", TARGET]).env("CARGO_TARGET_DIR", &target_dir);
    if !sysroot.join("lib/rustlib").join(TARGET).join("lib").exists() {
        let debian = Path::new("/usr/bin/rustc");
        let library = Path::new("/usr/lib/rustlib/src/rust/library/std/Cargo.toml");
        if !debian.exists() || !library.exists() {
            return Err(Error::NoStandardLibrary { target: TARGET });
        }
        let version = output(Command::new("rustc").arg("-vV"))?;
        let host = version.lines().find_map(|line| line.strip_prefix("host: ")).unwrap_or("x86_64-unknown-linux-gnu");
        let linker = sysroot.join("lib/rustlib").join(host).join("bin/rust-lld");
        cargo
            .arg("-Zbuild-std=std,panic_abort")
            .env("RUSTC", debian)
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker);
    }
    run(&mut cargo, Hint(""))?;
    let manifest = dir.join("Cargo.toml");
    let manifest = std::fs::read_to_string(&manifest).map_err(Error::file("cannot read", &manifest))?;
    let package = manifest
        .lines()
        .find_map(|line| line.strip_prefix("name = ").map(|name| name.trim().trim_matches('"').to_string()))
        .ok_or(Error::NoPackage)?;
    let module = target_dir.join(TARGET).join("release").join(format!("{}.wasm", package.replace('-', "_")));
    let bytes = std::fs::read(&module).map_err(Error::file("cannot read", &module))?;
    let name = package.strip_prefix("rbdkit-filter-").unwrap_or(&package).to_string();
    Ok((name, componentize(&bytes)?))
}

/// Builds with clang and wasi-libc, and with bindings that are made here. The host has stubs for
/// the functions of WASI that the C library imports.
fn c(dir: &Path) -> Result<(String, Vec<u8>)> {
    let made = dir.join("target");
    std::fs::create_dir_all(&made).map_err(Error::file("cannot make", &made))?;
    let mut resolve = wit_bindgen_core::wit_parser::Resolve::default();
    let (package, _) =
        resolve.push_path(dir.join("wit")).map_err(|error| contract("cannot read wit/")(error.into()))?;
    let bindings = contract("cannot make bindings for wit/");
    let world = resolve.select_world(&[package], None).map_err(|error| bindings(error.into()))?;
    let mut files = wit_bindgen_core::Files::default();
    wit_bindgen_c::Opts::default()
        .build()
        .generate(&mut resolve, world, &mut files)
        .map_err(|error| bindings(error.into()))?;
    let mut inputs = vec![dir.join("filter.c")];
    for (name, bytes) in files.iter() {
        let path = made.join(name);
        std::fs::write(&path, bytes).map_err(Error::file("cannot write", &path))?;
        if name.ends_with(".c") || name.ends_with(".o") {
            inputs.push(path);
        }
    }
    let module = made.join("module.wasm");
    let clang = Hint("on Debian: apt-get install clang lld wasi-libc libclang-rt-14-dev-wasm32");
    run(
        Command::new("clang")
            .args(["--target=wasm32-wasi", "--sysroot=/usr", "-O2", "-mexec-model=reactor"])
            // The stack is in the linear memory of every instance, so it has 64 KiB instead of
            // clang's megabytes.
            .args(["-Wl,-z,stack-size=65536", "-Wl,--strip-all", "-I"])
            .arg(&made)
            .args(inputs)
            .arg("-o")
            .arg(&module),
        clang,
    )?;
    let bytes = std::fs::read(&module).map_err(Error::file("cannot read", &module))?;
    Ok((directory_name(dir)?, componentize(&bytes)?))
}

/// Builds with npm's componentize-qjs, which puts a JavaScript engine and the source into one
/// component. The host's stubs serve WASI. With the tool's own stubs (`--stub-wasi`) an uncaught
/// exception would trap without a message, and so would reading the clock.
fn js(dir: &Path) -> Result<(String, Vec<u8>)> {
    let name = directory_name(dir)?;
    let made = dir.join("target");
    let component = made.join("component.wasm");
    std::fs::create_dir_all(&made).map_err(Error::file("cannot make", &made))?;
    run(
        Command::new("npx")
            .current_dir(dir)
            .args([
                "--yes",
                "componentize-qjs@0.4.5",
                "--wit",
                "wit",
                "--js",
                "filter.js",
                "-n",
                "mine",
                "--sync",
                "-o",
            ])
            .arg(&component),
        Hint("npx comes with npm, on Debian: apt-get install npm"),
    )?;
    let bytes = std::fs::read(&component).map_err(Error::file("cannot read", &component))?;
    Ok((name, bytes))
}
