//! `rbdkit:filter/scripts`.

use std::sync::Arc;
use std::time::Duration;

use rbdkit_launcher::{Order, check_variables};
use rbdkit_plugin_api::Errno;

use super::phases::NOT_CONFIGURE;
use crate::connection::bindings::host::scripts::Host;
use crate::connection::charge::Charge;
use crate::connection::import_error::ImportError;
use crate::connection::log::Level;
use crate::connection::scripts::MAX_OUTPUT;
use crate::connection::waiting::WaitPolicy;
use crate::guest::call::Phase;
use crate::guest::context::Context;

/// How long a command may still run that finalize, close or cleanup needs when the server stops.
/// The cleanup of all layers has three seconds.
const STOP_GRACE: Duration = Duration::from_secs(2);

impl Host for Context {
    async fn run(
        &mut self,
        param: String,
        nth: u32,
        variables: Vec<(String, String)>,
    ) -> Result<(i32, Vec<u8>), ImportError> {
        self.allow(NOT_CONFIGURE)?;
        let number = self.shared.files.command(&param, nth)? as u64;
        if let Err(error) = check_variables(&variables) {
            self.shared.log.write(Level::Error, &format!("{param}: {error}"));
            return Err(Errno::Einval.into());
        }
        let _charge = Charge::new(&self.shared.buffers, MAX_OUTPUT as u64).ok_or(Errno::Enomem)?;
        let client = self.call.client().cloned();
        let goes_on = self.call.wait_policy() == WaitPolicy::UntilDone || self.call.phase.is_in(Phase::READY);
        let shared = Arc::clone(&self.shared);
        let run = Arc::clone(&shared.scripts).run(&param, Order { which: 0, number, variables }, &shared.log);
        let gone = async {
            match client {
                Some(client) if !goes_on => client.until_gone().await,
                _ => std::future::pending().await,
            }
        };
        let stopped = async {
            shared.stopping.wait().await;
            if goes_on {
                tokio::time::sleep(STOP_GRACE).await;
            }
        };
        let wait = async {
            tokio::select! {
                biased;
                () = gone => Err(Errno::Eshutdown),
                () = stopped => Err(Errno::Eshutdown),
                answer = run => answer,
            }
        };
        Ok(self.clock.waiting(|| wait).await?)
    }
}
