//! Certificates and keys for the tests, made by GnuTLS's own programs.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rbdkit_tests::{TempDir, tool};

/// A directory with the files that nbdkit and libnbd look for.
pub struct Pki {
    directory: TempDir,
    /// The options of certtool for a key.
    key: &'static [&'static str],
}

/// What the certificate of a server says besides its name.
const SERVER: &str = "tls_www_server\nencryption_key\nsigning_key\n";
const CLIENT: &str = "tls_www_client\nencryption_key\nsigning_key\n";

/// The client's name, which has every part that nbdkit's instructions have.
pub const CLIENT_NAME: &str = "CN=client.example.com,O=BigCo,L=New York,ST=New York,C=US";

impl Pki {
    /// An authority, a server called localhost, and a client, with elliptic keys.
    pub fn new() -> Pki {
        Pki::with(&["--key-type=ecdsa", "--curve=secp256r1"])
    }

    fn with(key: &'static [&'static str]) -> Pki {
        let pki = Pki { directory: TempDir::new(), key };
        pki.key("ca-key.pem");
        pki.template("ca", "cn = Test CA\nca\ncert_signing_key\ncrl_signing_key\nexpiration_days = 10\n");
        pki.certtool(&["--generate-self-signed", "--load-privkey=ca-key.pem", "--outfile=ca-cert.pem"], "ca");
        pki.server("localhost", "dns_name = localhost\nip_address = 127.0.0.1\n");
        pki.client("expiration_days = 10\n");
        pki
    }

    /// One with RSA, which the tests share that do not change it.
    pub fn shared() -> &'static Pki {
        static SHARED: OnceLock<Pki> = OnceLock::new();
        SHARED.get_or_init(|| Pki::with(&["--key-type=rsa", "--bits=2048"]))
    }

    /// Makes a certificate for a server. `more` are further lines of its template.
    pub fn server(&self, name: &str, more: &str) {
        self.issue("server", &format!("organization = BigCo\ncn = {name}\nexpiration_days = 10\n{SERVER}{more}"));
    }

    /// Makes a certificate for the client.
    pub fn client(&self, more: &str) {
        let name = "country = US\nstate = New York\nlocality = New York\norganization = BigCo\n";
        self.issue("client", &format!("{name}cn = client.example.com\n{CLIENT}{more}"));
    }

    /// Revokes the client's certificate.
    pub fn revoke_client(&self) {
        self.template("crl", "crl_next_update = 10\ncrl_number = 1\n");
        let authority = ["--load-ca-privkey=ca-key.pem", "--load-ca-certificate=ca-cert.pem"];
        let revoked = ["--generate-crl", "--load-certificate=client-cert.pem", "--outfile=ca-crl.pem"];
        self.certtool(&[&revoked[..], &authority].concat(), "crl");
    }

    fn issue(&self, role: &str, template: &str) {
        let (key, certificate) = (format!("{role}-key.pem"), format!("--outfile={role}-cert.pem"));
        self.key(&key);
        self.template(role, template);
        let key = format!("--load-privkey={key}");
        let authority = ["--load-ca-privkey=ca-key.pem", "--load-ca-certificate=ca-cert.pem"];
        self.certtool(&[&["--generate-certificate", &key, &certificate][..], &authority].concat(), role);
    }

    fn key(&self, name: &str) {
        let out = format!("--outfile={}", self.file(name).display());
        tool("certtool", [&["--generate-privkey", &out], self.key].concat()).ok();
    }

    fn template(&self, name: &str, text: &str) {
        self.directory.file(&format!("{name}.info"), text.as_bytes());
    }

    /// Runs certtool with paths in the directory.
    fn certtool(&self, arguments: &[&str], template: &str) {
        let inside = |argument: &&str| match argument.split_once('=') {
            Some((option, file)) => format!("{option}={}", self.file(file).display()),
            None => (*argument).to_string(),
        };
        let template = format!("--template={}", self.file(&format!("{template}.info")).display());
        tool("certtool", arguments.iter().map(inside).chain([template])).ok();
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The path of a file.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The option for the server.
    pub fn option(&self) -> String {
        format!("--tls-certificates={}", self.path().display())
    }

    /// A URI for a client that has these certificates.
    pub fn uri(&self, socket: &Path) -> String {
        format!("nbds+unix:///?socket={}&tls-certificates={}", socket.display(), self.path().display())
    }
}

/// A file of keys for alice, made by psktool, in a directory of its own.
pub struct Keys(TempDir);

impl Keys {
    pub fn new() -> Keys {
        let keys = Keys(TempDir::new());
        tool("psktool", ["-u", "alice", "-p", &keys.path().display().to_string()]).ok();
        keys
    }

    pub fn path(&self) -> PathBuf {
        self.0.join("keys.psk")
    }

    pub fn directory(&self) -> &Path {
        self.0.path()
    }

    /// The option for the server.
    pub fn option(&self) -> String {
        format!("--tls-psk={}", self.path().display())
    }

    /// A URI for a client that is this user.
    pub fn uri(&self, user: &str, socket: &Path) -> String {
        format!("nbds+unix://{user}@/?socket={}&tls-psk-file={}", socket.display(), self.path().display())
    }
}
