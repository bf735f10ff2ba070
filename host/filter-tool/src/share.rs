//! `push`, `pull` and `keygen`: components in OCI registries, and the keys that sign them.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use rbdkit_oci::{Access, Digest, PlainHttp, PrivateKey, PublicKey, Reference, Source};
use rbdkit_sandbox::Description;
use serde_json::{Value, json};

use crate::component::load_bytes;
use crate::error::{Error, Result};
use crate::inspect::Format;

/// How to talk to the registry.
#[derive(Args)]
pub struct RegistryOptions {
    /// Talk to registries on other machines without TLS
    #[arg(long)]
    plain_http: bool,
    /// Give up after this many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

impl RegistryOptions {
    fn access(&self) -> Access {
        let plain_http = if self.plain_http { PlainHttp::Allowed } else { PlainHttp::Refused };
        Access { plain_http, timeout: Duration::from_secs(self.timeout) }
    }

    fn format(&self) -> Format {
        if self.json { Format::Json } else { Format::Text }
    }
}

/// Pushes a component. It has to be one that the server would load.
pub fn push(file: &Path, reference: &str, sign: Option<&Path>, options: &RegistryOptions) -> Result<()> {
    let failed = |source| Error::Registry { doing: "push to", reference: reference.to_owned(), source };
    let target = Reference::parse(reference)?;
    let key = sign.map(PrivateKey::read).transpose()?;
    let bytes = crate::component::read(file)?;
    let module = load_bytes(&file.display().to_string(), &bytes)?;
    let annotations = annotations(module.description());
    let digest = rbdkit_oci::push(&bytes, annotations, &target, options.access(), key.as_ref()).map_err(failed)?;
    let signer = key.map(|key| key.public()).transpose()?;
    let shared = Shared { done: Done::Pushed, reference: &target, digest, component: &bytes, file, signer };
    report(&shared, options.format());
    Ok(())
}

/// What a registry's pages show of a component.
fn annotations(about: &Description) -> BTreeMap<String, String> {
    let all = [("title", &about.name), ("version", &about.version), ("description", &about.longname)];
    let given = all.into_iter().filter(|(_, text)| !text.is_empty());
    given.map(|(key, text)| (format!("org.opencontainers.image.{key}"), text.clone())).collect()
}

/// Pulls a component into a file.
pub fn pull(reference: &str, file: Option<PathBuf>, key: Option<&Path>, options: &RegistryOptions) -> Result<()> {
    let failed = |source| Error::Registry { doing: "pull", reference: reference.to_owned(), source };
    let target = Reference::parse(reference)?;
    let key = key.map(PublicKey::read).transpose()?;
    let pulled = rbdkit_oci::pull(&target, options.access(), key.as_ref()).map_err(failed)?;
    let name = target.name.rsplit('/').next().unwrap_or_default();
    let file = file.unwrap_or_else(|| PathBuf::from(format!("{name}.wasm")));
    write(&file, &pulled.component).map_err(Error::file("cannot write", &file))?;
    let (digest, component) = (pulled.digest, &pulled.component);
    let done = Done::Pulled(pulled.source);
    report(&Shared { done, reference: &target, digest, component, file: &file, signer: key }, options.format());
    Ok(())
}

/// Writes the whole file or nothing. What is not a regular file (a pipe, a device) is written to.
fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
        return fs::write(path, bytes);
    }
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(bytes)?;
    file.as_file().set_permissions(Permissions::from_mode(0o644))?;
    file.persist(path)?;
    Ok(())
}

/// What was done with a component.
enum Done {
    Pushed,
    Pulled(Source),
}

struct Shared<'a> {
    done: Done,
    reference: &'a Reference,
    digest: Digest,
    component: &'a [u8],
    file: &'a Path,
    signer: Option<PublicKey>,
}

fn report(shared: &Shared<'_>, format: Format) {
    let Shared { done, reference, digest, component, file, signer } = shared;
    let pinned = reference.pinned(*digest).to_string();
    let signer = signer.as_ref().map(|key| (key.fingerprint(), key.path()));
    let size = component.len();
    if format == Format::Json {
        let signer = signer.map_or(
            Value::Null,
            |(fingerprint, path)| json!({"key": path.display().to_string(), "fingerprint": fingerprint.to_string()}),
        );
        say!(
            "{:#}",
            json!({
                "reference": pinned, "digest": digest.to_string(), "size": size,
                "sha256": Digest::of(component).hex(), "file": file.display().to_string(), "signer": signer,
            })
        );
        return;
    }
    let path = rbdkit_plugin_api::text::one_line(&file.display().to_string());
    match done {
        Done::Pushed => say!("pushed:     {path} ({size} bytes) to {reference}"),
        Done::Pulled(Source::Registry) => say!("pulled:     {reference} ({size} bytes) into {path}"),
        Done::Pulled(Source::Cache) => say!("pulled:     {reference} ({size} bytes) from the cache into {path}"),
    }
    say!("digest:     {digest}");
    if let Some((fingerprint, key)) = signer {
        say!("signed by:  {fingerprint} ({})", rbdkit_plugin_api::text::one_line(&key.display().to_string()));
    }
    say!("use it:     rbdkit --wasm-filter {pinned} PLUGIN");
}

/// Makes a pair of keys: `PREFIX.key` and `PREFIX.pub`.
pub fn keygen(prefix: &Path) -> Result<()> {
    let with = |end: &str| {
        let mut path = prefix.as_os_str().to_owned();
        path.push(end);
        PathBuf::from(path)
    };
    let (private, public) = (with(".key"), with(".pub"));
    let key = rbdkit_oci::make_keys(&private, &public)?;
    let shown = |path: &Path| rbdkit_plugin_api::text::one_line(&path.display().to_string());
    say!("private:    {}  (keep it secret: rbdkit-filter push --sign)", shown(&private));
    say!("public:     {}  (give it away: --filter-key)", shown(&public));
    say!("its digest: {}", key.fingerprint());
    Ok(())
}
