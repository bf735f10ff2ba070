//! A store in memory with the habits of S3: a tag is a hash of the content, conditions are kept,
//! and requests fail in the ways in which a network makes them fail.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};
use http::{HeaderMap, StatusCode};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UpdateVersion,
};

use crate::http::attempt;

/// How often requests fail, in parts of a hundred.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Faults {
    /// The request does not reach the store.
    pub(super) refused: u64,
    /// It is carried out, and its answer is lost.
    pub(super) answer_lost: u64,
    /// A put whose answer is lost, and which the store carries out at some later time.
    pub(super) late: u64,
    /// The body of an answer ends in its middle.
    pub(super) cut: u64,
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<String, Bytes>,
    random: u64,
    faults: Faults,
    late: VecDeque<(String, Bytes, PutMode)>,
    ignores_condition_of_delete: bool,
    requests: u64,
}

/// The store.
#[derive(Clone, Debug, Default)]
pub(super) struct TestStore(Arc<Mutex<State>>);

impl fmt::Display for TestStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TestStore")
    }
}

fn tag(bytes: &[u8]) -> String {
    // FNV-1a: equal contents have equal tags, as with S3.
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    format!("\"{hash:016x}-{}\"", bytes.len())
}

fn failed(what: &'static str) -> Error {
    Error::Generic { store: "test", source: what.into() }
}

fn missing(key: &str) -> Error {
    Error::NotFound { path: key.into(), source: "missing".into() }
}

fn changed(key: &str) -> Error {
    Error::Precondition { path: key.into(), source: "changed".into() }
}

impl State {
    fn chance(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }

    fn next(&mut self) -> u64 {
        // splitmix64.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn put(&mut self, key: &str, bytes: Bytes, mode: &PutMode) -> Result<String> {
        let now = self.objects.get(key).map(|bytes| tag(bytes));
        let fits = match mode {
            PutMode::Overwrite => panic!("{key}: a put without a condition"),
            PutMode::Create => now.is_none(),
            PutMode::Update(UpdateVersion { e_tag, .. }) => now.is_some() && *e_tag == now,
        };
        if !fits {
            return Err(changed(key));
        }
        let tag = tag(&bytes);
        self.objects.insert(key.to_owned(), bytes);
        Ok(tag)
    }

    /// A request begins: what was held back may be carried out before it.
    fn begin(&mut self) -> Result<()> {
        self.requests += 1;
        while !self.late.is_empty() && self.chance(20) {
            if let Some((key, bytes, mode)) = self.late.pop_front() {
                let _ = self.put(&key, bytes, &mode);
            }
        }
        match self.chance(self.faults.refused) {
            true => Err(failed("refused")),
            false => Ok(()),
        }
    }

    fn delete(&mut self, key: &str) -> Result<()> {
        let (_, condition) = attempt::condition().expect("a DELETE without a condition");
        let now = self.objects.get(key).map(|bytes| tag(bytes)).ok_or_else(|| missing(key))?;
        if !self.ignores_condition_of_delete && condition.to_str().unwrap() != now {
            return Err(changed(key));
        }
        self.objects.remove(key);
        match self.chance(self.faults.answer_lost) {
            true => {
                attempt::is_sent();
                Err(failed("lost"))
            }
            false => Ok(()),
        }
    }
}

impl TestStore {
    pub(super) fn new(seed: u64, faults: Faults) -> TestStore {
        TestStore(Arc::new(Mutex::new(State { random: seed, faults, ..State::default() })))
    }

    /// The store does not know the condition of a DELETE.
    pub(super) fn ignoring_conditions_of_deletes() -> TestStore {
        TestStore(Arc::new(Mutex::new(State { ignores_condition_of_delete: true, ..State::default() })))
    }

    pub(super) fn object(&self, key: &str) -> Option<Bytes> {
        self.0.lock().unwrap().objects.get(key).cloned()
    }

    pub(super) fn set(&self, key: &str, bytes: &[u8]) {
        self.0.lock().unwrap().objects.insert(key.into(), Bytes::copy_from_slice(bytes));
    }

    /// Requests so far.
    pub(super) fn requests(&self) -> u64 {
        self.0.lock().unwrap().requests
    }

    fn meta(key: &str, bytes: &[u8]) -> ObjectMeta {
        ObjectMeta {
            location: Path::from(key),
            last_modified: std::time::SystemTime::UNIX_EPOCH.into(),
            size: bytes.len() as u64,
            e_tag: Some(tag(bytes)),
            version: None,
        }
    }
}

#[async_trait]
impl ObjectStore for TestStore {
    async fn put_opts(&self, key: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        tokio::task::yield_now().await;
        let mut state = self.0.lock().unwrap();
        state.begin()?;
        let bytes = Bytes::from(payload);
        let late = state.faults.late;
        if state.chance(late) {
            state.late.push_back((key.to_string(), bytes, options.mode));
            attempt::is_sent();
            return Err(failed("late"));
        }
        let put = state.put(key.as_ref(), bytes, &options.mode);
        let lost = state.faults.answer_lost;
        if state.chance(lost) {
            attempt::is_sent();
            return Err(failed("lost"));
        }
        put.map(|tag| PutResult { e_tag: Some(tag), version: None, extensions: Default::default() })
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(failed("not used"))
    }

    async fn get_opts(&self, key: &Path, options: GetOptions) -> Result<GetResult> {
        tokio::task::yield_now().await;
        let mut state = self.0.lock().unwrap();
        state.begin()?;
        let bytes = state.objects.get(key.as_ref()).cloned().ok_or_else(|| missing(key.as_ref()))?;
        let meta = TestStore::meta(key.as_ref(), &bytes);
        options.check_preconditions(&meta)?;
        let range = match &options.range {
            Some(range) => range.as_range(meta.size).map_err(|_| {
                attempt::answered(StatusCode::RANGE_NOT_SATISFIABLE, &HeaderMap::new());
                failed("range")
            })?,
            None => 0..meta.size,
        };
        let wanted = bytes.slice(range.start as usize..range.end as usize);
        let cut = state.faults.cut;
        let parts = match state.chance(cut) {
            true => vec![Ok(wanted.slice(..wanted.len() / 2)), Err(failed("cut"))],
            false => vec![Ok(wanted)],
        };
        let parts = if options.head { Vec::new() } else { parts };
        let payload = GetResultPayload::Stream(stream::iter(parts).boxed());
        Ok(GetResult { payload, meta, range, attributes: Default::default(), extensions: Default::default() })
    }

    fn delete_stream(&self, keys: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let store = self.clone();
        keys.and_then(move |key| {
            let store = store.clone();
            async move {
                tokio::task::yield_now().await;
                let mut state = store.0.lock().unwrap();
                state.begin()?;
                state.delete(key.as_ref()).map(|()| key)
            }
        })
        .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let prefix = format!("{}/", prefix.unwrap());
        let mut state = self.0.lock().unwrap();
        if let Err(error) = state.begin() {
            return stream::iter([Err(error)]).boxed();
        }
        let within = state.objects.iter().filter(|(key, _)| key.starts_with(&prefix));
        let found: Vec<_> = within.map(|(key, bytes)| Ok(TestStore::meta(key, bytes))).collect();
        stream::iter(found).boxed()
    }

    async fn list_with_delimiter(&self, _: Option<&Path>) -> Result<ListResult> {
        Err(failed("not used"))
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        Err(failed("not used"))
    }
}
