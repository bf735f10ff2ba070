//! A conditional DELETE for Azure.
//!
//! object_store deletes blobs in batches, to which it adds no condition. And a key of the account
//! signs the condition too, so that it cannot be added later. So this request is made here, and
//! signed by object_store.

use http::Method;
use http::header::IF_MATCH;
use object_store::azure::{AzureAuthorizer, AzureCredential, MicrosoftAzure};
use object_store::client::{HttpClient, HttpRequest, HttpRequestBody};
use object_store::path::Path;

use crate::http::attempt;

/// What the request needs besides the store.
#[derive(Debug)]
pub(super) struct AzureDelete {
    pub(super) client: HttpClient,
    pub(super) account: String,
    /// The container's address.
    pub(super) container: String,
}

fn failed(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> object_store::Error {
    object_store::Error::Generic { store: "MicrosoftAzure", source: source.into() }
}

impl AzureDelete {
    /// Deletes a blob under the condition of this attempt.
    pub(super) async fn delete(&self, store: &MicrosoftAzure, key: &Path) -> object_store::Result<()> {
        let mut address = format!("{}/{}", self.container, escape(key.as_ref()));
        let credential = store.credentials().get_credential().await?;
        if let AzureCredential::SASToken(pairs) = &*credential {
            let pairs: Vec<String> =
                pairs.iter().map(|(name, value)| format!("{}={}", escape(name), escape_all(value))).collect();
            address = format!("{address}?{}", pairs.join("&"));
        }
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        *request.method_mut() = Method::DELETE;
        *request.uri_mut() = address.parse().map_err(failed)?;
        let (_, tag) = attempt::condition().ok_or_else(|| failed("a DELETE without a condition"))?;
        request.headers_mut().insert(IF_MATCH, tag);
        AzureAuthorizer::new(&credential, &self.account).try_authorize(&mut request)?;
        let answer = self.client.execute(request).await.map_err(failed)?;
        let status = answer.status();
        let text = answer.into_body().bytes().await.map_err(failed)?;
        match status.is_success() {
            true => Ok(()),
            false => Err(failed(String::from_utf8_lossy(&text).into_owned())),
        }
    }
}

/// Percent-encodes what cannot stand in a path.
fn escape(text: &str) -> String {
    encode(text, b"-._~/")
}

fn escape_all(text: &str) -> String {
    encode(text, b"-._~")
}

fn encode(text: &str, kept: &[u8]) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte.is_ascii_alphanumeric() || kept.contains(&byte) {
            true => encoded.push(byte.into()),
            false => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}
