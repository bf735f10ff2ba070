//! `rbdkit:filter/alarms`.

use std::sync::Arc;

use rbdkit_plugin_api::Errno;

use super::phases::{NOT_CONFIGURE, OPEN_DATA};
use crate::connection::alarms::ALARMS;
use crate::connection::bindings::host::alarms::Host;
use crate::connection::bindings::host::types::{Errno as WitErrno, Scope};
use crate::connection::conn::Connection;
use crate::connection::import_error::ImportError;
use crate::guest::context::Context;

/// Whose alarm a call names.
enum AlarmOwner {
    Connection(Arc<Connection>),
    Server,
}

impl Context {
    /// Whose alarm this is.
    fn owner_of_alarm(&self, scope: Scope, id: u32) -> Result<AlarmOwner, WitErrno> {
        self.allow(NOT_CONFIGURE)?;
        if id >= ALARMS {
            return Err(WitErrno::Einval);
        }
        if !self.hears_alarms {
            return Err(WitErrno::Enotsup);
        }
        match scope {
            Scope::Connection => {
                self.allow(OPEN_DATA)?;
                self.call.conn.clone().map(AlarmOwner::Connection).ok_or(WitErrno::Enxio)
            }
            Scope::Server => Ok(AlarmOwner::Server),
            Scope::Exportname => Err(WitErrno::Einval),
        }
    }
}

impl Host for Context {
    fn set(&mut self, scope: Scope, id: u32, at: u64) -> Result<(), ImportError> {
        let now = self.clock.pulse().now();
        match self.owner_of_alarm(scope, id)? {
            AlarmOwner::Connection(conn) => conn.alarms.set(id, at, now),
            AlarmOwner::Server => self.shared.alarms.set(id, at, now),
        }
        Ok(())
    }

    fn cancel(&mut self, scope: Scope, id: u32) -> Result<(), ImportError> {
        match self.owner_of_alarm(scope, id)? {
            AlarmOwner::Connection(conn) => conn.alarms.cancel(id),
            AlarmOwner::Server => self.shared.alarms.cancel(id),
        }
        Ok(())
    }
}

impl Context {
    /// Checks whether the filter may use a power.
    pub(super) fn may(&self, power: crate::connection::powers::Power) -> Result<(), Errno> {
        self.shared.powers.check(&self.shared.name, power)
    }
}
