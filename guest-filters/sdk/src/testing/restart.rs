//! Losing instances, and loading another version of the filter.

use std::rc::{Rc, Weak};

use crate::host::client::Ending;
use crate::{Recovery, ThreadModel};

use super::call::{Call, Phase};
use super::exported::Exported;
use super::host::Served;
use super::parameters::assign;

impl<F: Exported> Served<F> {
    /// Loses every instance, as a trap in each of them would, and makes fresh ones. What the
    /// description says of `recovery` happens to the open connections:
    ///
    /// * `Stateless`: nothing.
    /// * `Replay`: `open` with `replayed`, and `prepare`, are called again for each connection. A
    ///   connection for which one of them fails is lost.
    /// * `Lost`: they are lost.
    ///
    /// The requests of a lost connection fail with `Eshutdown`. A parallel filter keeps nothing in
    /// its instances, so nothing is replayed.
    pub fn restart(&self) {
        let count = self.instances.borrow().len();
        let fresh = (0..count).map(|_| self.another_instance()).collect();
        self.instances.replace(fresh);
        let live: Vec<_> = self.connections.borrow().iter().filter_map(Weak::upgrade).collect();
        for connection in live {
            let keeps_state = self.model != ThreadModel::Parallel;
            let is_lost = match self.recovery {
                Recovery::Replay if keeps_state && self.nature.exports("connection") => {
                    let filter = self.instance(&connection);
                    let call = |phase| Call::new(&self.world, phase, Some(&connection));
                    let (readonly, is_tls) = (connection.readonly, connection.facts.is_tls);
                    connection.is_replayed.set(true);
                    let (opened, _) = call(Phase::Open)
                        .serve(|| filter.open(readonly, &connection.exportname, is_tls, true).unwrap_or(Ok(0)));
                    let replayed = opened.and_then(|handle| {
                        connection.handle.set(handle);
                        call(Phase::Open).serve(|| filter.prepare().unwrap_or(Ok(()))).0
                    });
                    connection.is_replayed.set(false);
                    replayed.is_err()
                }
                Recovery::Lost => keeps_state,
                _ => false,
            };
            if is_lost {
                self.world.borrow_mut().disconnected.insert(connection.id, Ending::AtOnce);
            }
        }
    }

    /// Loads another version of the filter, `G`, which is served from now on by what this returns.
    /// It shares the disk, the files, the log and the state that the host keeps: slots, maps and
    /// scratch of the export and of the server, and counters. Clients of the old version stay with
    /// it until they close. Dropping the old version ends it.
    ///
    /// # Errors
    /// The line that the operator would see: it is another filter, its state or its thread model is
    /// another, or a parameter is wrong. The old version serves on.
    pub fn reload<G: Exported>(&self, words: &[&str]) -> Result<Served<G>, String> {
        let description = G::describe().into_contract(Vec::new());
        let (name, running) = (&description.name, &self.name);
        if name != running {
            return Err(format!("it is the filter {name}, and {running} is running"));
        }
        if description.state_version != self.state_version {
            return Err(format!(
                "its state-version is {}, and that of the running version is {}: the server has to be started again",
                description.state_version, self.state_version
            ));
        }
        let before = {
            let world = self.world.borrow();
            (world.paths.clone(), world.kinds.clone(), world.hears_alarms)
        };
        let next = Served::<G>::configured(Rc::clone(&self.world), |declared| assign(name, declared, words));
        let ready = next.and_then(|next| match next.model == self.model {
            true => next.get_ready().map(|()| next),
            false => Err(format!(
                "its thread model is {}, and that of the running version is {}",
                model_name(next.model),
                model_name(self.model)
            )),
        });
        ready.inspect_err(|_| {
            let mut world = self.world.borrow_mut();
            (world.paths, world.kinds, world.hears_alarms) = before;
        })
    }
}

/// The contract's name of a thread model.
fn model_name(model: ThreadModel) -> &'static str {
    match model {
        ThreadModel::Parallel => "parallel",
        ThreadModel::SerializeRequests => "serialize_requests",
        ThreadModel::SerializeAllRequests => "serialize_all_requests",
        ThreadModel::SerializeConnections => "serialize_connections",
    }
}
