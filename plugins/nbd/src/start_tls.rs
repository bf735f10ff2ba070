//! STARTTLS: encrypting the connection before anything else is negotiated.

use std::sync::Arc;

use rbdkit_plugin_api::Errno;
use rbdkit_stream::{ConnectionError, Input};
use rbdkit_tls::ClientTls;

use crate::handshake::{Greeting, Negotiation, OpenError, quoted};
use crate::tls::Tls;
use crate::wire::{opt, rep};

impl Negotiation {
    /// Encrypts the connection if `tls` asks for it.
    ///
    /// # Errors
    /// TLS is required and the server does not have it, or the two do not agree.
    pub(crate) async fn secure(&mut self, greeting: &Greeting, tls: &Tls) -> Result<(), OpenError> {
        let (client, required) = match tls {
            Tls::Off => return Ok(()),
            Tls::On(client) => (client, false),
            Tls::Require(client) => (client, true),
        };
        let refusal = match greeting {
            Greeting::Fixed => {
                self.option(opt::STARTTLS, &[]).await?;
                let reply = self.reply(opt::STARTTLS).await?;
                match reply.kind {
                    rep::ACK => return self.encrypt(client).await,
                    _ => format!("it does not encrypt the connection: \"{}\"", quoted(&reply.data)),
                }
            }
            _ => "it has no TLS, because it is too old".to_owned(),
        };
        match required {
            true => Err(OpenError::Refused(Errno::Eperm, format!("{refusal} (tls=require)"))),
            false => Ok(()),
        }
    }

    async fn encrypt(&mut self, client: &ClientTls) -> Result<(), OpenError> {
        let failed = |error: &dyn std::fmt::Display| OpenError::from(ConnectionError::new(format!("TLS: {error}")));
        // What came before TLS must not count as having come within it.
        let before = std::mem::replace(&mut self.input, Input::new(Arc::clone(&self.socket)));
        before.finish()?;
        let session = client.connect().map_err(|error| failed(&error))?;
        let algorithms = self.socket.start_tls(session).await.map_err(|error| failed(&error))?;
        tracing::debug!("nbd: the connection is encrypted: {algorithms}");
        Ok(())
    }
}
