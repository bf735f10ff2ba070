//! The services that a store can be.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, AwsCredential};
use object_store::azure::{AzureConfigKey, MicrosoftAzure, MicrosoftAzureBuilder};
use object_store::client::HttpConnector;
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ClientOptions, ObjectStore, ObjectStoreExt, RetryConfig, StaticCredentialProvider};
use rbdkit_plugin_api::text::one_line_within;

use super::azure::AzureDelete;
use super::profile::Profile;
use crate::config::{Service, Settings};
use crate::http::Connector;

/// Makes a store, anew when its credentials have expired or its region was wrong.
pub(crate) trait Maker: Send + Sync {
    /// The store. `region` is what the store said of its region.
    fn make(&self, region: Option<String>) -> Result<Backend, String>;
}

/// How a conditional DELETE says its condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    S3,
    Google,
    Azure,
    /// Files.
    Other,
}

/// A store of object_store.
pub(crate) struct Backend {
    pub(crate) store: Arc<dyn ObjectStore>,
    kind: Kind,
    azure: Option<(Arc<MicrosoftAzure>, AzureDelete)>,
}

impl Backend {
    /// A store that takes the condition of a DELETE as an HTTP header.
    pub(crate) fn new(store: Arc<dyn ObjectStore>, kind: Kind) -> Backend {
        Backend { store, kind, azure: None }
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// Deletes an object under the condition of this attempt.
    pub(crate) async fn delete(&self, key: &Path) -> object_store::Result<()> {
        match &self.azure {
            Some((store, delete)) => delete.delete(store, key).await,
            None => self.store.delete(key).await,
        }
    }
}

/// Makes what the parameters name.
pub(crate) struct Configured {
    pub(crate) settings: Arc<Settings>,
    pub(crate) connector: Connector,
}

/// Requests are tried again by us.
const NO_RETRIES: fn() -> RetryConfig =
    || RetryConfig { max_retries: 0, retry_timeout: Duration::from_secs(60), ..RetryConfig::default() };

impl Maker for Configured {
    fn make(&self, region: Option<String>) -> Result<Backend, String> {
        let made = match self.settings.service {
            Service::S3 => self.s3(region),
            Service::Google => self.google(),
            Service::Azure => self.azure(),
            Service::File => LocalFileSystem::new_with_prefix(&self.settings.bucket)
                .map(|store| Backend::new(Arc::new(store), Kind::Other)),
        };
        made.map_err(|error| format!("object: {}", one_line_within(&error.to_string(), 300)))
    }
}

fn allows_http(endpoint: Option<&str>) -> bool {
    endpoint.is_some_and(|endpoint| endpoint.starts_with("http://"))
}

impl Configured {
    fn s3(&self, region: Option<String>) -> object_store::Result<Backend> {
        let settings = &*self.settings;
        let mut builder = AmazonS3Builder::from_env()
            .with_bucket_name(&settings.bucket)
            .with_retry(NO_RETRIES())
            .with_disable_bulk_delete(true)
            .with_http_connector(self.connector.clone());
        let is_set = |builder: &AmazonS3Builder, key| builder.get_config_value(&key).is_some();
        let by_role =
            is_set(&builder, AmazonS3ConfigKey::WebIdentityTokenFile) && is_set(&builder, AmazonS3ConfigKey::RoleArn);
        let profile = Profile::of_environment();
        let has_keys = is_set(&builder, AmazonS3ConfigKey::AccessKeyId);
        let given = (&settings.access_key, &settings.secret_key, &settings.session_token);
        let of_profile = (&profile.access_key, &profile.secret_key, &profile.session_token);
        // What the parameters say, then the environment, then the profile.
        let keys = match (given, of_profile) {
            ((Some(key), Some(secret), token), _) => Some((key, secret, token)),
            (_, (Some(key), Some(secret), token)) if !has_keys && !by_role => Some((key, secret, token)),
            _ => None,
        };
        if let Some((key, secret, token)) = keys {
            let token = token.as_ref().map(|token| token.to_string());
            let credential = AwsCredential { key_id: key.to_string(), secret_key: secret.to_string(), token };
            builder = builder.with_credentials(Arc::new(StaticCredentialProvider::new(credential)));
        }
        let known = region.or_else(|| settings.region.clone());
        if let Some(region) = known {
            builder = builder.with_region(region);
        } else if let (Some(region), false) = (&profile.region, is_set(&builder, AmazonS3ConfigKey::Region)) {
            builder = builder.with_region(region);
        }
        let of_environment = [AmazonS3ConfigKey::S3Endpoint, AmazonS3ConfigKey::Endpoint];
        let of_environment = of_environment.iter().find_map(|key| builder.get_config_value(key));
        let endpoint = settings.endpoint.clone().or(of_environment).or(profile.endpoint);
        if let Some(endpoint) = &endpoint {
            builder = builder.with_endpoint(endpoint).with_config(AmazonS3ConfigKey::S3Endpoint, endpoint);
        }
        // Credentials of a machine come over http://, whatever the store's address is.
        builder = builder.with_client_options(ClientOptions::new().with_allow_http(allows_http(endpoint.as_deref())));
        if settings.anonymous {
            builder = builder.with_skip_signature(true);
        }
        Ok(Backend::new(Arc::new(builder.build()?), Kind::S3))
    }

    fn google(&self) -> object_store::Result<Backend> {
        let settings = &*self.settings;
        let mut builder = GoogleCloudStorageBuilder::from_env()
            .with_bucket_name(&settings.bucket)
            .with_retry(NO_RETRIES())
            .with_http_connector(self.connector.clone());
        if let Some(file) = &settings.json_credentials {
            builder = builder.with_service_account_path(file.to_string_lossy());
        }
        let endpoint = settings.endpoint.clone().or_else(|| builder.get_config_value(&GoogleConfigKey::BaseUrl));
        if let Some(endpoint) = &endpoint {
            builder = builder.with_base_url(endpoint);
        }
        builder = builder.with_client_options(ClientOptions::new().with_allow_http(allows_http(endpoint.as_deref())));
        if settings.anonymous {
            builder = builder.with_skip_signature(true);
        }
        Ok(Backend::new(Arc::new(builder.build()?), Kind::Google))
    }

    fn azure(&self) -> object_store::Result<Backend> {
        let settings = &*self.settings;
        let mut builder = MicrosoftAzureBuilder::from_env()
            .with_container_name(&settings.bucket)
            .with_retry(NO_RETRIES())
            .with_http_connector(self.connector.clone());
        if let (Some(account), Some(key)) = (&settings.access_key, &settings.secret_key) {
            builder = builder.with_account(account.as_str()).with_access_key(key.as_str());
        }
        let account = builder.get_config_value(&AzureConfigKey::AccountName).unwrap_or_default();
        let endpoint = settings.endpoint.clone().or_else(|| builder.get_config_value(&AzureConfigKey::Endpoint));
        let container = match &endpoint {
            Some(endpoint) => format!("{}/{}", endpoint.trim_end_matches('/'), settings.bucket),
            None => format!("https://{account}.blob.core.windows.net/{}", settings.bucket),
        };
        if let Some(endpoint) = &endpoint {
            builder = builder.with_endpoint(endpoint.clone());
        }
        let options = ClientOptions::new().with_allow_http(allows_http(endpoint.as_deref()));
        let client = self.connector.connect(&options)?;
        builder = builder.with_client_options(options);
        if settings.anonymous {
            builder = builder.with_skip_signature(true);
        }
        let store = Arc::new(builder.build()?);
        let delete = AzureDelete { client, account, container };
        Ok(Backend {
            store: Arc::clone(&store) as Arc<dyn ObjectStore>,
            kind: Kind::Azure,
            azure: Some((store, delete)),
        })
    }
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Backend({:?})", self.kind)
    }
}
