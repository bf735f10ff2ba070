//! The parameters, and the settings that follow from them.

use std::path::PathBuf;
use std::time::Duration;

use object_store::path::Path;
use rbdkit_plugin_api::schema::ParamSpec;
use rbdkit_plugin_api::{ConfigError, Param, units};
use zeroize::Zeroizing;

use crate::http::HttpSettings;

/// The name of the plugin, for messages.
const NAME: &str = "object";

/// The words of `store=`.
const SERVICES: [(&str, Service); 4] =
    [("s3", Service::S3), ("gcs", Service::Google), ("azure", Service::Azure), ("file", Service::File)];

/// The smallest objects: a sector.
const MIN_OBJECT: u64 = 512;

/// The largest objects. A write to a part of one holds all of it in memory.
pub(crate) const MAX_OBJECT: u64 = 256 << 20;

/// The service that a store is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Service {
    /// S3, and everything that speaks it.
    S3,
    /// Google Cloud Storage.
    Google,
    /// Azure Blob Storage.
    Azure,
    /// Files of a directory.
    File,
}

/// How the disk lies in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// It is one object.
    One,
    /// It is many objects of one size, as nbdkit's S3 plugin has them.
    Many { size: u64, object_size: u64 },
}

/// The settings that follow from all parameters together.
pub(crate) struct Settings {
    pub(crate) service: Service,
    /// The bucket or container; for files the directory.
    pub(crate) bucket: String,
    pub(crate) key: Path,
    pub(crate) layout: Layout,
    pub(crate) access_key: Option<Zeroizing<String>>,
    pub(crate) secret_key: Option<Zeroizing<String>>,
    pub(crate) session_token: Option<Zeroizing<String>>,
    pub(crate) json_credentials: Option<PathBuf>,
    pub(crate) endpoint: Option<String>,
    pub(crate) region: Option<String>,
    pub(crate) anonymous: bool,
    pub(crate) http: HttpSettings,
    /// How long a request that failed is tried again.
    pub(crate) retry_time: Duration,
}

impl Settings {
    /// The disk, for messages.
    pub(crate) fn shown(&self) -> String {
        let scheme = match self.service {
            Service::S3 => "s3",
            Service::Google => "gs",
            Service::Azure => "az",
            Service::File => return format!("{}/{}", self.bucket, self.key),
        };
        format!("{scheme}://{}/{}", self.bucket, self.key)
    }
}

/// The parameters as they are given.
#[derive(Default)]
pub(crate) struct Config {
    url: Option<(Service, String, String)>,
    service: Option<Service>,
    bucket: Option<String>,
    key: Option<String>,
    size: Option<u64>,
    object_size: Option<u64>,
    access_key: Option<Zeroizing<String>>,
    secret_key: Option<Zeroizing<String>>,
    session_token: Option<Zeroizing<String>>,
    json_credentials: Option<PathBuf>,
    endpoint: Option<String>,
    region: Option<String>,
    anonymous: bool,
    connections: Option<u32>,
    timeout: Option<Duration>,
    retry_time: Option<Duration>,
    cainfo: Option<PathBuf>,
}

/// The declarations.
pub(crate) fn params() -> Vec<ParamSpec> {
    let services = SERVICES.map(|(name, _)| name);
    vec![
        ParamSpec::string("url")
            .placeholder("URL")
            .magic()
            .help("The disk: s3://BUCKET/KEY, gs://BUCKET/KEY, az://CONTAINER/KEY or file:///DIRECTORY/KEY"),
        ParamSpec::string("bucket").placeholder("BUCKET").help("Instead of the URL: the bucket or container"),
        ParamSpec::string("key")
            .placeholder("KEY")
            .help("With bucket: the object, or what the objects' names begin with"),
        ParamSpec::choice("store", &services).help("With bucket: what the store speaks; by default s3"),
        ParamSpec::size("size").placeholder("SIZE").help("The size of a disk of many objects, with object-size"),
        ParamSpec::size("object-size")
            .placeholder("SIZE")
            .help("The disk is many objects of this size and can be written; without it, it is one object"),
        ParamSpec::string("access-key")
            .alias("access_key")
            .placeholder("KEY")
            .secret()
            .help("The access key; for azure the name of the account"),
        ParamSpec::string("secret-key")
            .alias("secret_key")
            .placeholder("KEY")
            .secret()
            .help("The secret key that belongs to it"),
        ParamSpec::string("session-token")
            .alias("session_token")
            .placeholder("TOKEN")
            .secret()
            .help("With access-key: the token of temporary credentials"),
        ParamSpec::path("json-credentials").placeholder("FILE").help("For gcs: the file of the service account's key"),
        ParamSpec::bool("anonymous").default_value("false").help("Send no credentials"),
        ParamSpec::string("endpoint-url")
            .alias("endpoint_url")
            .placeholder("URL")
            .help("The address of the store, if it is not the service's own"),
        ParamSpec::string("region").placeholder("NAME").help("For s3: the region of the bucket"),
        ParamSpec::path("cainfo").placeholder("FILE").help("The file of the certificate authorities to trust"),
        ParamSpec::string("connections")
            .placeholder("N")
            .default_value("64")
            .help("Requests under way at once, 1 to 1024"),
        ParamSpec::string("timeout")
            .placeholder("SECONDS")
            .default_value("30")
            .help("Give up an attempt that makes no progress for this time"),
        ParamSpec::string("retry-time")
            .placeholder("SECONDS")
            .default_value("120")
            .help("Try a failed request again for this time"),
    ]
}

fn secret(param: Param<'_>) -> Result<Zeroizing<String>, ConfigError> {
    let wrong = || ConfigError::new(format!("{}: is not UTF-8 text", param.key));
    Ok(Zeroizing::new(param.value.to_str().ok_or_else(wrong)?.to_owned()))
}

fn seconds(param: Param<'_>, least: u64) -> Result<Duration, ConfigError> {
    let seconds = units::parse_whole(param.text()?, 86_400).ok().filter(|seconds| *seconds >= least);
    let seconds = seconds.ok_or_else(|| param.error(format!("is not a number of seconds from {least} to 86400")))?;
    Ok(Duration::from_secs(seconds))
}

/// What a URL names: service, bucket or directory, key.
fn url(text: &str) -> Result<(Service, String, String), String> {
    let (scheme, rest) = text.split_once("://").ok_or("is not a URL such as s3://BUCKET/KEY")?;
    let service = match scheme {
        "s3" | "s3a" => Service::S3,
        "gs" | "gcs" => Service::Google,
        "az" | "azure" => Service::Azure,
        "file" => Service::File,
        _ => return Err("has to begin with s3://, gs://, az:// or file://".into()),
    };
    if rest.contains('@') && service != Service::File {
        return Err(
            "cannot have credentials in it: use the environment, a profile, or access-key= and secret-key=".into()
        );
    }
    let (bucket, key) = match service {
        Service::File => rest.rsplit_once('/').ok_or("names no file")?,
        _ => rest.split_once('/').ok_or("names no object: s3://BUCKET/KEY")?,
    };
    if bucket.is_empty() && service != Service::File {
        return Err("names no bucket".into());
    }
    if service == Service::File && !rest.starts_with('/') {
        return Err("has to have an absolute path: file:///DIRECTORY/FILE".into());
    }
    let bucket = if bucket.is_empty() { "/" } else { bucket };
    Ok((service, bucket.to_owned(), key.to_owned()))
}

impl Config {
    pub(crate) fn set(&mut self, param: Param<'_>) -> Result<(), ConfigError> {
        match param.key {
            "url" => self.url = Some(url(param.text()?).map_err(|wrong| param.error(wrong))?),
            "bucket" => self.bucket = Some(param.text()?.to_owned()),
            "key" => self.key = Some(param.text()?.to_owned()),
            "store" => {
                let word = param.text()?;
                let service = SERVICES.iter().find(|(name, _)| *name == word);
                self.service = Some(service.ok_or_else(|| param.not_one_of(&SERVICES.map(|(name, _)| name)))?.1);
            }
            "size" => self.size = Some(param.size()?),
            "object-size" => self.object_size = Some(param.size()?),
            "access-key" | "access_key" => self.access_key = Some(secret(param)?),
            "secret-key" | "secret_key" => self.secret_key = Some(secret(param)?),
            "session-token" | "session_token" => self.session_token = Some(secret(param)?),
            "json-credentials" => self.json_credentials = Some(param.path().to_owned()),
            "anonymous" => self.anonymous = param.bool()?,
            "endpoint-url" | "endpoint_url" => self.endpoint = Some(endpoint(param)?),
            "region" => self.region = Some(param.text()?.to_owned()),
            "cainfo" => self.cainfo = Some(param.path().to_owned()),
            "connections" => {
                let number = units::parse_whole(param.text()?, 1024).ok().filter(|number| *number > 0);
                self.connections = Some(number.ok_or_else(|| param.error("is not a number from 1 to 1024"))? as u32);
            }
            "timeout" => self.timeout = Some(seconds(param, 1)?),
            "retry-time" => self.retry_time = Some(seconds(param, 0)?),
            _ => return Err(param.unknown(NAME)),
        }
        Ok(())
    }

    /// The settings.
    ///
    /// # Errors
    /// One line that says which parameters do not fit together.
    pub(crate) fn settings(&self) -> Result<Settings, ConfigError> {
        let wrong = |what: &str| ConfigError::new(format!("{NAME}: {what}"));
        let (service, bucket, key) = match (&self.url, &self.bucket, &self.key) {
            (Some(_), Some(_), _) | (Some(_), _, Some(_)) => {
                return Err(wrong("the URL names bucket and key: leave out bucket= and key="));
            }
            (Some((service, bucket, key)), None, None) => match self.service {
                Some(other) if other != *service => return Err(wrong("the URL and store= name different services")),
                _ => (*service, bucket, key),
            },
            (None, Some(bucket), Some(key)) => {
                let google = self.json_credentials.as_ref().map(|_| Service::Google);
                (self.service.or(google).unwrap_or(Service::S3), bucket, key)
            }
            (None, Some(_), None) => return Err(wrong("bucket= needs key=")),
            (None, None, _) => {
                return Err(wrong("the disk has to be given: s3://BUCKET/KEY, or bucket=BUCKET key=KEY"));
            }
        };
        let is_bucket = |name: &str| !name.is_empty() && !name.contains(['/', '?', '#', '%', '@', ' ']);
        if service != Service::File && !is_bucket(bucket) {
            return Err(ConfigError::new(format!("bucket={bucket}: is not the name of a bucket")));
        }
        let path = Path::parse(key).ok().filter(|path| !path.as_ref().is_empty() && path.as_ref() == key);
        let path = path.ok_or_else(|| {
            ConfigError::new(format!(
                "key={key}: is not a name that this plugin can use: its parts, between single slashes, cannot be \
                 empty, '.' or '..'"
            ))
        })?;
        let layout = self.layout()?;
        if service == Service::File && layout != Layout::One {
            return Err(wrong("files have no conditional writes: object-size= cannot be used with file://"));
        }
        if self.access_key.is_some() != self.secret_key.is_some() {
            return Err(wrong("access-key= and secret-key= have to be given together"));
        }
        if self.session_token.is_some() && self.access_key.is_none() {
            return Err(wrong("session-token= needs access-key= and secret-key="));
        }
        if self.json_credentials.is_some() && service != Service::Google {
            return Err(wrong("json-credentials= can only be used with Google Cloud Storage (gs:// or store=gcs)"));
        }
        if service == Service::Google && self.access_key.is_some() {
            return Err(wrong("Google Cloud Storage takes json-credentials=, not access-key="));
        }
        let http = HttpSettings {
            connections: self.connections.unwrap_or(64),
            timeout: self.timeout.unwrap_or(Duration::from_secs(30)),
            cainfo: self.cainfo.clone(),
        };
        Ok(Settings {
            service,
            bucket: bucket.clone(),
            key: path,
            layout,
            access_key: self.access_key.clone(),
            secret_key: self.secret_key.clone(),
            session_token: self.session_token.clone(),
            json_credentials: self.json_credentials.clone(),
            endpoint: self.endpoint.clone(),
            region: self.region.clone(),
            anonymous: self.anonymous,
            http,
            retry_time: self.retry_time.unwrap_or(Duration::from_secs(120)),
        })
    }

    fn layout(&self) -> Result<Layout, ConfigError> {
        let wrong = |what: String| Err(ConfigError::new(format!("{NAME}: {what}")));
        let (size, object_size) = match (self.size, self.object_size) {
            (None, None) => return Ok(Layout::One),
            (Some(size), Some(object_size)) => (size, object_size),
            _ => return wrong("size= and object-size= have to be given together".into()),
        };
        if !(MIN_OBJECT..=MAX_OBJECT).contains(&object_size) {
            return wrong(format!("object-size={object_size}: is not from {MIN_OBJECT} to {MAX_OBJECT}"));
        }
        if size % object_size != 0 || size > i64::MAX as u64 {
            return wrong(format!("size={size}: has to be a multiple of object-size={object_size}, below 2^63"));
        }
        Ok(Layout::Many { size, object_size })
    }
}

fn endpoint(param: Param<'_>) -> Result<String, ConfigError> {
    let text = param.text()?;
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    match host.map(|host| host.trim_end_matches('/')) {
        Some(host) if !host.is_empty() && !host.contains(['@', '?', '#', ' ']) && text.parse::<http::Uri>().is_ok() => {
            Ok(text.trim_end_matches('/').to_owned())
        }
        _ => Err(param.error("is not an address such as https://HOST[:PORT]")),
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    fn settings(given: &[(&str, &str)]) -> Result<Settings, String> {
        let mut config = Config::default();
        for (key, value) in given {
            config.set(Param { key, value: OsStr::new(value) }).map_err(|error| error.to_string())?;
        }
        config.settings().map_err(|error| error.to_string())
    }

    #[test]
    fn a_url_and_nbdkits_parameters_name_the_same_disk() {
        let by_url = settings(&[("url", "s3://b/dir/k")]).unwrap();
        let by_name = settings(&[("bucket", "b"), ("key", "dir/k")]).unwrap();
        assert_eq!((by_url.shown(), by_url.layout), (by_name.shown(), by_name.layout));
        assert_eq!(by_url.shown(), "s3://b/dir/k");
        let many = settings(&[("url", "az://c/k"), ("size", "8M"), ("object-size", "4M")]).unwrap();
        assert_eq!(many.layout, Layout::Many { size: 8 << 20, object_size: 4 << 20 });
        assert_eq!(settings(&[("bucket", "b"), ("key", "k"), ("json-credentials", "f")]).unwrap().shown(), "gs://b/k");
        assert_eq!(settings(&[("url", "file:///images/disk")]).unwrap().bucket, "/images");
    }

    #[test]
    fn each_mistake_is_one_line() {
        let url = ("url", "s3://b/k");
        for (given, line) in [
            (&[][..], "object: the disk has to be given: s3://BUCKET/KEY, or bucket=BUCKET key=KEY"),
            (&[("url", "b/k")], "url=b/k: is not a URL such as s3://BUCKET/KEY"),
            (&[("url", "ftp://b/k")], "url=ftp://b/k: has to begin with s3://, gs://, az:// or file://"),
            (&[("url", "s3://b")], "url=s3://b: names no object: s3://BUCKET/KEY"),
            (
                &[("url", "s3://me:hush@b/k")],
                "url=s3://***@b/k: cannot have credentials in it: use the environment, a profile, or access-key= and \
                 secret-key=",
            ),
            (
                &[("bucket", "b"), ("key", "a//b")],
                "key=a//b: is not a name that this plugin can use: its parts, between single slashes, cannot be empty, \
                 '.' or '..'",
            ),
            (&[("bucket", "a/b"), ("key", "k")], "bucket=a/b: is not the name of a bucket"),
            (&[("bucket", "b")], "object: bucket= needs key="),
            (&[url, ("key", "k")], "object: the URL names bucket and key: leave out bucket= and key="),
            (&[url, ("store", "gcs")], "object: the URL and store= name different services"),
            (&[url, ("size", "1M")], "object: size= and object-size= have to be given together"),
            (
                &[url, ("size", "1M"), ("object-size", "3k")],
                "object: size=1048576: has to be a multiple of object-size=3072, below 2^63",
            ),
            (
                &[url, ("size", "1G"), ("object-size", "1G")],
                "object: object-size=1073741824: is not from 512 to 268435456",
            ),
            (&[url, ("access-key", "A")], "object: access-key= and secret-key= have to be given together"),
            (&[url, ("session-token", "A")], "object: session-token= needs access-key= and secret-key="),
            (
                &[url, ("json-credentials", "f")],
                "object: json-credentials= can only be used with Google Cloud Storage (gs:// or store=gcs)",
            ),
            (
                &[("url", "file:///d/k"), ("size", "1M"), ("object-size", "1M")],
                "object: files have no conditional writes: object-size= cannot be used with file://",
            ),
            (&[("endpoint-url", "host:1")], "endpoint-url=host:1: is not an address such as https://HOST[:PORT]"),
            (&[("connections", "0")], "connections=0: is not a number from 1 to 1024"),
            (&[("timeout", "0")], "timeout=0: is not a number of seconds from 1 to 86400"),
        ] {
            assert_eq!(settings(given).err().as_deref(), Some(line), "{given:?}");
        }
    }
}
