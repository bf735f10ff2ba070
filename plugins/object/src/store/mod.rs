//! A store: requests for objects, which are tried again until they work or time is up.
//!
//! Every request that changes something carries a condition: the tag of the object that it
//! replaces, or that there is none. So no request overwrites what somebody else has written
//! meanwhile.
//!
//! object_store could try requests again itself. It does not here, because it would hide whether an
//! attempt that failed may have reached the store. After such an attempt the answer "the object is
//! another one" may be about our own object ([`Attempted::unsure`]).
//!
//! | module | subject |
//! |---|---|
//! | [`backend`] | the services: S3, Google Cloud Storage, Azure, files |
//! | [`azure`] | a conditional DELETE for Azure |
//! | [`profile`] | the files of AWS's tools |
//! | [`failure`], [`backoff`] | errors, and waits between attempts |

mod azure;
pub(crate) mod backend;
mod backoff;
pub(crate) mod failure;
mod profile;

use std::future::Future;
use std::ops::Range;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use http::{HeaderName, HeaderValue};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectMeta, ObjectStoreExt, PutMode, PutOptions, PutPayload, UpdateVersion};
use rbdkit_plugin_api::{Errno, Flag, StopScope, read_lock, write_lock};
use tokio::time::{Instant, sleep};

use crate::http::attempt::Attempt;
use backend::{Backend, Kind, Maker};
pub(crate) use backoff::FIRST as FIRST_WAIT;
pub(crate) use failure::Failure;

/// What tells one version of an object from others.
pub(crate) type Tag = UpdateVersion;

/// What a request asks of the object that it changes.
#[derive(Clone, Debug)]
pub(crate) enum Condition {
    /// There is none.
    Absent,
    /// It is this version.
    Is(Tag),
}

impl From<Option<Tag>> for Condition {
    fn from(tag: Option<Tag>) -> Condition {
        tag.map_or(Condition::Absent, Condition::Is)
    }
}

/// An object without its bytes.
#[derive(Clone, Debug)]
pub(crate) struct Object {
    pub(crate) size: u64,
    pub(crate) tag: Tag,
    /// When it was written, by the store's clock.
    pub(crate) modified: String,
}

impl From<&ObjectMeta> for Object {
    fn from(meta: &ObjectMeta) -> Object {
        let tag = Tag { e_tag: meta.e_tag.clone(), version: meta.version.clone() };
        Object { size: meta.size, tag, modified: meta.last_modified.to_string() }
    }
}

/// The result of a request, with all its attempts.
pub(crate) struct Attempted<T> {
    pub(crate) result: Result<T, Failure>,
    /// An attempt failed that may have reached the store.
    pub(crate) unsure: bool,
}

/// When operations end although their requests have not.
#[derive(Debug, Default)]
pub(crate) struct Stops {
    reads: Flag,
    writes: Flag,
}

impl Stops {
    pub(crate) fn set(&self, scope: StopScope) {
        self.reads.set();
        if scope == StopScope::Everything {
            self.writes.set();
        }
    }
}

/// Which kind of operation a request belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Read,
    Write,
}

/// A store.
pub(crate) struct Store {
    maker: Box<dyn Maker>,
    backend: RwLock<Arc<Backend>>,
    patience: Patience,
    stops: Stops,
}

/// How long failed requests are tried again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// The first wait.
    pub(crate) first: Duration,
    /// All attempts together.
    pub(crate) all: Duration,
}

impl Store {
    pub(crate) fn new(maker: Box<dyn Maker>, patience: Patience) -> Result<Store, String> {
        let backend = RwLock::new(Arc::new(maker.make(None)?));
        Ok(Store { maker, backend, patience, stops: Stops::default() })
    }

    pub(crate) fn stop(&self, scope: StopScope) {
        self.stops.set(scope);
    }

    /// Tries a call until it works, will not work, or time is up.
    async fn attempts<T, F>(
        &self,
        purpose: Purpose,
        condition: Option<(HeaderName, HeaderValue)>,
        call: impl Fn(Arc<Backend>) -> F,
    ) -> Attempted<T>
    where
        F: Future<Output = object_store::Result<T>>,
    {
        let flag = if purpose == Purpose::Read { &self.stops.reads } else { &self.stops.writes };
        let mut unsure = false;
        let all = async {
            let begun = Instant::now();
            let (mut failures, mut renewed) = (0, false);
            loop {
                let backend = Arc::clone(&read_lock(&self.backend));
                let (result, seen) = Attempt::new(condition.clone()).run(call(backend)).await;
                let failure = match result {
                    Ok(value) => return Ok(value),
                    Err(error) => Failure::new(&error, &seen),
                };
                let why = match failure {
                    Failure::Transient(why) => why,
                    // New credentials, or the right region; once.
                    Failure::Expired(_) | Failure::Elsewhere(_) if !renewed => {
                        renewed = true;
                        let region =
                            if let Failure::Elsewhere(region) = &failure { Some(region.clone()) } else { None };
                        let made = self.maker.make(region).map_err(|_| failure.clone())?;
                        *write_lock(&self.backend) = Arc::new(made);
                        continue;
                    }
                    failure => return Err(failure),
                };
                // An answer that is an error says that nothing was done; a broken connection does
                // not.
                unsure |= seen.sent && seen.status.is_none_or(|status| !status.is_client_error());
                let wait = backoff::wait(self.patience.first, failures).max(seen.retry_after.unwrap_or_default());
                failures += 1;
                if begun.elapsed() + wait > self.patience.all {
                    return Err(Failure::Transient(format!("{why} (tried {failures} times)")));
                }
                tracing::debug!("object: {why}; trying again in {} ms", wait.as_millis());
                sleep(wait).await;
            }
        };
        let result = tokio::select! {
            biased;
            () = flag.wait() => Err(Failure::Final(Errno::Eshutdown, "the request was given up".into())),
            result = all => result,
        };
        Attempted { result, unsure }
    }

    /// Asks for an object without its bytes.
    pub(crate) async fn head(&self, purpose: Purpose, key: &Path) -> Result<Object, Failure> {
        let head = self.attempts(purpose, None, |backend| async move { backend.store.head(key).await }).await;
        head.result.map(|meta| Object::from(&meta))
    }

    /// Reads a range. `take` gets each part with its place in the range; after a failed attempt it
    /// begins anew. Another size than one of `sizes` is a change. With a tag the object has to be
    /// that version.
    pub(crate) async fn read(
        &self,
        purpose: Purpose,
        key: &Path,
        range: Range<u64>,
        expected: ([u64; 2], Option<&Tag>),
        take: &(dyn Fn(u64, &[u8]) + Send + Sync),
    ) -> Result<Object, Failure> {
        let (sizes, tag) = expected;
        let wanted = range.end - range.start;
        let get = |backend: Arc<Backend>| {
            let range = range.clone();
            async move {
                let if_match = tag.and_then(|tag| tag.e_tag.clone());
                let options = GetOptions { range: Some(GetRange::Bounded(range)), if_match, ..GetOptions::default() };
                let answer = backend.store.get_opts(key, options).await?;
                let object = Object::from(&answer.meta);
                let mut at = 0;
                let mut parts = answer.into_stream();
                while let Some(part) = parts.try_next().await? {
                    let end = at + part.len() as u64;
                    if end > wanted {
                        break;
                    }
                    take(at, &part);
                    at = end;
                }
                match at == wanted || !sizes.contains(&object.size) {
                    true => Ok(object),
                    false => {
                        Err(object_store::Error::Generic { store: "store", source: "an answer ended early".into() })
                    }
                }
            }
        };
        let object = self.attempts(purpose, None, get).await.result?;
        match sizes.contains(&object.size) && tag.is_none_or(|tag| tag.e_tag.is_none() || tag.e_tag == object.tag.e_tag)
        {
            true => Ok(object),
            false => Err(Failure::Changed),
        }
    }

    /// Reads a short object whole.
    pub(crate) async fn read_whole(
        &self,
        purpose: Purpose,
        key: &Path,
        longest: u64,
    ) -> Result<(Object, Bytes), Failure> {
        let get = |backend: Arc<Backend>| async move {
            let answer = backend.store.get_opts(key, GetOptions::default()).await?;
            let object = Object::from(&answer.meta);
            if object.size > longest {
                return Ok((object, Bytes::new()));
            }
            Ok((object, answer.bytes().await?))
        };
        self.attempts(purpose, None, get).await.result
    }

    /// Puts an object.
    pub(crate) async fn put(&self, key: &Path, bytes: Bytes, condition: &Condition) -> Attempted<Tag> {
        let put = |backend: Arc<Backend>| {
            let payload = PutPayload::from_bytes(bytes.clone());
            let mode = match condition {
                Condition::Absent => PutMode::Create,
                Condition::Is(tag) => PutMode::Update(tag.clone()),
            };
            async move { backend.store.put_opts(key, payload, PutOptions::from(mode)).await }
        };
        let attempted = self.attempts(Purpose::Write, None, put).await;
        Attempted { result: attempted.result.map(Tag::from), unsure: attempted.unsure }
    }

    /// Deletes this version of an object.
    pub(crate) async fn delete(&self, key: &Path, tag: &Tag) -> Attempted<()> {
        let kind = read_lock(&self.backend).kind();
        let condition = match kind {
            Kind::Google => tag.version.as_deref().map(|version| ("x-goog-if-generation-match", version)),
            Kind::S3 | Kind::Azure | Kind::Other => tag.e_tag.as_deref().map(|tag| ("if-match", tag)),
        };
        let condition = condition
            .and_then(|(name, value)| Some((HeaderName::from_static(name), HeaderValue::from_str(value).ok()?)));
        let Some(condition) = condition else {
            let text = "the store gives objects no tags, so none can be deleted safely".to_owned();
            return Attempted { result: Err(Failure::Final(Errno::Enotsup, text)), unsure: false };
        };
        let delete = |backend: Arc<Backend>| async move { backend.delete(key).await };
        self.attempts(Purpose::Write, Some(condition), delete).await
    }

    /// The objects whose names begin with `prefix/` and come after `after`, in ascending order: as
    /// many as `most`, and none after one that is beyond `end`.
    pub(crate) async fn list(
        &self,
        purpose: Purpose,
        prefix: &Path,
        after: Option<&Path>,
        end: &str,
        most: usize,
    ) -> Result<Vec<(String, Object)>, Failure> {
        let list = |backend: Arc<Backend>| async move {
            let mut objects = match after {
                Some(after) => backend.store.list_with_offset(Some(prefix), after),
                None => backend.store.list(Some(prefix)),
            };
            let mut found = Vec::new();
            while found.len() < most
                && let Some(meta) = objects.try_next().await?
            {
                // Some stores begin at the first name all the same.
                if after.is_some_and(|after| meta.location <= *after) {
                    continue;
                }
                let is_last = meta.location.as_ref() > end;
                found.push((meta.location.to_string(), Object::from(&meta)));
                if is_last {
                    break;
                }
            }
            Ok(found)
        };
        self.attempts(purpose, None, list).await.result
    }
}

/// The store's address that the profile of AWS's tools names.
pub(crate) fn profile_endpoint() -> Option<String> {
    profile::Profile::of_environment().endpoint
}
