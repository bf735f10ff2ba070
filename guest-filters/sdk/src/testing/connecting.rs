//! Clients before they connect.

use std::rc::Rc;

use crate::host::client::Peer;
use crate::{Errno, ExportEntry};

use super::call::Access;
use super::client::Client;
use super::exported::Exported;
use super::facts::ClientFacts;
use super::host::Served;
use super::imports::next_open;

/// A client that has not connected. [`Served::client`] makes it.
///
/// By default it comes from the test's own process over a Unix socket, without TLS, may write, and
/// asks for the export with the empty name.
#[must_use = "connect() connects it"]
pub struct Connecting<'s, F: Exported> {
    pub(super) served: &'s Served<F>,
    pub(super) facts: ClientFacts,
    pub(super) access: Access,
    pub(super) exportname: String,
}

impl<F: Exported> Clone for Connecting<'_, F> {
    fn clone(&self) -> Self {
        let (facts, exportname) = (self.facts.clone(), self.exportname.clone());
        Connecting { served: self.served, facts, access: self.access, exportname }
    }
}

impl<F: Exported> Served<F> {
    /// A client that is about to connect.
    pub fn client(&self) -> Connecting<'_, F> {
        let (facts, access) = (ClientFacts::default(), Access::ReadWrite);
        Connecting { served: self, facts, access, exportname: String::new() }
    }

    /// Connects a client, which may write.
    ///
    /// # Errors
    /// Those of the filter.
    pub fn connect(&self) -> Result<Client<'_, F>, Errno> {
        self.client().connect()
    }

    /// Connects a client that only reads.
    ///
    /// # Errors
    /// Those of the filter.
    pub fn connect_read_only(&self) -> Result<Client<'_, F>, Errno> {
        self.client().read_only().connect()
    }

    /// Connects a client to the export of this name.
    ///
    /// # Errors
    /// Those of the filter.
    pub fn connect_to(&self, exportname: &str) -> Result<Client<'_, F>, Errno> {
        self.client().export(exportname).connect()
    }

    /// The exports that a client sees which lists them.
    ///
    /// # Errors
    /// Those of the filter.
    pub fn list_exports(&self) -> Result<Vec<ExportEntry>, Errno> {
        self.client().list_exports()
    }

    /// The export that a client gets which asks for the empty name.
    ///
    /// # Errors
    /// Those of the filter.
    pub fn default_export(&self) -> Result<String, Errno> {
        self.client().default_export()
    }
}

impl<'s, F: Exported> Connecting<'s, F> {
    /// It only reads.
    pub fn read_only(mut self) -> Self {
        self.access = Access::ReadOnly;
        self
    }

    /// It asks for the export of this name.
    pub fn export(mut self, name: &str) -> Self {
        self.exportname = name.into();
        self
    }

    /// Its address. A client that is not on a Unix socket has no credentials.
    pub fn peer(mut self, peer: Peer) -> Self {
        if !matches!(peer, Peer::Unix) {
            self.facts.credentials = None;
        }
        self.facts.peer = peer;
        self
    }

    /// The process, user and group at the other end of the Unix socket.
    pub fn credentials(mut self, process: i64, user: i64, group: i64) -> Self {
        self.facts.credentials = Some((process, user, group));
        self
    }

    /// It uses TLS, and shows no certificate.
    pub fn tls(mut self) -> Self {
        self.facts.is_tls = true;
        self
    }

    /// It uses TLS, and its certificate has these names, as RFC 4514 writes them.
    pub fn certificate(mut self, subject: &str, issuer: &str) -> Self {
        (self.facts.tls_subject, self.facts.tls_issuer) = (Some(subject.into()), Some(issuer.into()));
        self.tls()
    }

    /// Its security context (SELinux, AppArmor).
    pub fn security_context(mut self, context: &str) -> Self {
        self.facts.security_context = Some(context.into());
        self
    }

    /// Connects.
    ///
    /// # Errors
    /// Those of the filter, and `Eshutdown` if it disconnected the client before the export was
    /// open.
    pub fn connect(self) -> Result<Client<'s, F>, Errno> {
        self.preconnect()?;
        self.open()
    }

    /// The second half of [`Connecting::connect`].
    pub(super) fn open(self) -> Result<Client<'s, F>, Errno> {
        Client::open(self.served, self.facts, self.access, self.exportname)
    }

    /// The exports that this client sees if it lists them.
    ///
    /// # Errors
    /// Those of the filter, and `Eshutdown` if it disconnected the client.
    pub fn list_exports(&self) -> Result<Vec<ExportEntry>, Errno> {
        let readonly = self.access == Access::ReadOnly;
        self.ask(|filter| {
            let listed = filter.list_exports(readonly, self.facts.is_tls);
            listed.unwrap_or_else(|| next_open::list_exports(readonly))
        })
    }

    /// The export that this client gets if it asks for the empty name.
    ///
    /// # Errors
    /// Those of the filter, and `Eshutdown` if it disconnected the client.
    pub fn default_export(&self) -> Result<String, Errno> {
        let readonly = self.access == Access::ReadOnly;
        self.ask(|filter| {
            let asked = filter.default_export(readonly, self.facts.is_tls);
            asked.unwrap_or_else(|| next_open::default_export(readonly))
        })
    }

    /// Whether this client may connect.
    pub(super) fn preconnect(&self) -> Result<(), Errno> {
        let readonly = self.access == Access::ReadOnly;
        self.ask(|filter| filter.preconnect(readonly).unwrap_or(Ok(())))
    }

    /// A call of the phase N for this client.
    fn ask<R>(&self, export: impl FnOnce(&F) -> Result<R, Errno>) -> Result<R, Errno> {
        let answer = self.served.names_call(Rc::new(self.facts.clone()), export);
        let mut world = self.served.world.borrow_mut();
        let next = world.last_connection + 1;
        match world.disconnected.remove(&next) {
            Some(_) => Err(Errno::Eshutdown),
            None => answer,
        }
    }
}
