//! `build`: from a directory to a component, with the toolchains that are there.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, anyhow, bail};

const TARGET: &str = "wasm32-unknown-unknown";

/// Builds what the directory holds: a Cargo.toml, a filter.c or a filter.js. Of a file, a core module that some other toolchain made, it makes a
/// component.
pub fn build(place: &Path) -> Result<()> {
    let dir = place.canonicalize().with_context(|| format!("cannot open {}", place.display()))?;
    if dir.is_file() {
        let module = crate::inspect::read(&dir)?;
        let component = componentize(&module).with_context(|| format!("{}", dir.display()))?;
        return write(&dir.with_extension("component.wasm"), &component);
    }
    let (name, component) = if dir.join("Cargo.toml").exists() {
        rust(&dir)?
    } else if dir.join("filter.c").exists() {
        c(&dir)?
    } else if dir.join("filter.js").exists() {
        js(&dir)?
    } else {
        bail!("{} holds neither a Cargo.toml, a filter.c nor a filter.js: rbdkit-filter new makes one", dir.display());
    };
    write(&dir.join(format!("{name}.wasm")), &component)
}

/// The hidden argument of the child that makes a component of a module.
const ARGUMENT: &str = "--rbdkit-componentize";

/// Its exit status if it says on standard error what is wrong.
const REFUSED: i32 = 3;

/// What the program does first of all: if it was started by [`componentize`] it reads a module, writes a component and ends with this status.
pub fn serve_if_asked() -> Option<ExitCode> {
    if std::env::args_os().nth(1)? != ARGUMENT {
        return None;
    }
    // Its exit status says enough.
    std::panic::set_hook(Box::new(|_| {}));
    let work = || -> Result<()> {
        let mut module = Vec::new();
        std::io::stdin().lock().read_to_end(&mut module)?;
        Ok(std::io::stdout().lock().write_all(&rbdkit_componentize::componentize(&module)?)?)
    };
    Some(work().map_or_else(
        |error| {
            let _ = write!(std::io::stderr(), "{error:#}");
            ExitCode::from(REFUSED as u8)
        },
        |()| ExitCode::SUCCESS,
    ))
}

/// Makes a component of a module, in a child: what a module says of its types is not made for being wrong, and some make the encoder panic or
/// leave its stack.
fn componentize(module: &[u8]) -> Result<Vec<u8>> {
    let mut child = Command::new("/proc/self/exe")
        .arg(ARGUMENT)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start this program once more")?;
    if let Some(mut input) = child.stdin.take() {
        // It reads all before it writes anything. One that has ended already says why.
        let _ = input.write_all(module);
    }
    let output = child.wait_with_output()?;
    match output.status.code() {
        Some(0) => Ok(output.stdout),
        Some(REFUSED) => Err(anyhow!("{}", String::from_utf8_lossy(&output.stderr))),
        _ => Err(anyhow!("no component can be made of it: it is damaged")),
    }
}

fn write(output: &Path, component: &[u8]) -> Result<()> {
    std::fs::write(output, component).with_context(|| format!("cannot write {}", output.display()))?;
    say!("{}: {} bytes", output.display(), component.len());
    Ok(())
}

fn directory_name(dir: &Path) -> Result<String> {
    let name = dir.file_name().context("the root directory cannot be a filter")?;
    Ok(name.to_string_lossy().into_owned())
}

fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command.status().with_context(|| format!("cannot run {program}"))?;
    if !status.success() {
        bail!("{program} failed ({status})");
    }
    Ok(())
}

fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        bail!("{program} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_string())
}

/// The standard library for the target comes from the toolchain, or is built from Debian's rust-web-src.
fn rust(dir: &Path) -> Result<(String, Vec<u8>)> {
    let sysroot = PathBuf::from(output(Command::new("rustc").args(["--print", "sysroot"]))?);
    let target_dir = dir.join("target");
    let mut cargo = Command::new("cargo");
    cargo.current_dir(dir).args(["build", "--release", "--target", TARGET]).env("CARGO_TARGET_DIR", &target_dir);
    if !sysroot.join("lib/rustlib").join(TARGET).join("lib").exists() {
        let debian = Path::new("/usr/bin/rustc");
        let library = Path::new("/usr/lib/rustlib/src/rust/library/std/Cargo.toml");
        if !debian.exists() || !library.exists() {
            bail!(
                "no standard library for {TARGET}: rustup target add {TARGET}, or on Debian apt-get install rustc-web rust-web-src"
            );
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
    run(&mut cargo)?;
    let manifest = std::fs::read_to_string(dir.join("Cargo.toml"))?;
    let package = manifest
        .lines()
        .find_map(|line| line.strip_prefix("name = ").map(|name| name.trim().trim_matches('"').to_string()))
        .context("Cargo.toml names no package")?;
    let module = target_dir.join(TARGET).join("release").join(format!("{}.wasm", package.replace('-', "_")));
    let bytes = std::fs::read(&module).with_context(|| format!("cannot read {}", module.display()))?;
    let name = package.strip_prefix("rbdkit-filter-").unwrap_or(&package).to_string();
    Ok((name, componentize(&bytes)?))
}

/// clang and wasi-libc, with bindings made here. What the C library wants of WASI the host has stubs for.
fn c(dir: &Path) -> Result<(String, Vec<u8>)> {
    let made = dir.join("target");
    std::fs::create_dir_all(&made)?;
    let mut resolve = wit_bindgen_core::wit_parser::Resolve::default();
    let (package, _) = resolve.push_path(dir.join("wit")).context("cannot read wit/")?;
    let world = resolve.select_world(&[package], None)?;
    let mut files = wit_bindgen_core::Files::default();
    wit_bindgen_c::Opts::default().build().generate(&mut resolve, world, &mut files)?;
    let mut inputs = vec![dir.join("filter.c")];
    for (name, bytes) in files.iter() {
        let path = made.join(name);
        std::fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        if name.ends_with(".c") || name.ends_with(".o") {
            inputs.push(path);
        }
    }
    let module = made.join("module.wasm");
    run(Command::new("clang")
        .args(["--target=wasm32-wasi", "--sysroot=/usr", "-O2", "-mexec-model=reactor"])
        // The stack is linear memory that every instance has: 64 KiB rather than clang's megabytes.
        .args(["-Wl,-z,stack-size=65536", "-Wl,--strip-all", "-I"])
        .arg(&made)
        .args(inputs)
        .arg("-o")
        .arg(&module))
    .context("on Debian: apt-get install clang lld wasi-libc libclang-rt-14-dev-wasm32")?;
    let bytes = std::fs::read(&module)?;
    Ok((directory_name(dir)?, componentize(&bytes)?))
}

/// npm's componentize-qjs: a JavaScript engine and the source in one component. WASI is left to the host's stubs: with the tool's own (`--stub-wasi`)
/// an uncaught exception would be a trap without a word, and so would the time of day.
fn js(dir: &Path) -> Result<(String, Vec<u8>)> {
    let name = directory_name(dir)?;
    let component = dir.join("target").join("component.wasm");
    std::fs::create_dir_all(dir.join("target"))?;
    run(Command::new("npx")
        .current_dir(dir)
        .args(["--yes", "componentize-qjs@0.4.5", "--wit", "wit", "--js", "filter.js", "-n", "mine", "--sync", "-o"])
        .arg(&component))
    .context("npx comes with npm (Debian: apt-get install npm)")?;
    let bytes = std::fs::read(&component).with_context(|| format!("cannot read {}", component.display()))?;
    Ok((name, bytes))
}
