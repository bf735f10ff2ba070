//! The simulated server: how it is set up, and what a test sees of it.

use std::cell::{Cell, Ref, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};

use crate::params::{Parameters, Params};
use crate::{Errno, Param, Recovery, ThreadModel, Unexported};

use super::call::{Call, ConnectionState, Phase};
use super::disk::Disk;
use super::exported::Exported;
use super::facts::ClientFacts;
use super::offers::Nature;
use super::parameters::{self, Assigned};
use super::world::{OPERATIONS, World};

/// A simulated server before it serves.
pub struct Host {
    pub(super) world: World,
}

impl Host {
    /// A server whose plugin is this disk.
    pub fn new(disk: Disk) -> Host {
        Host { world: World::new(disk) }
    }

    /// A file that a parameter may name: its path, and what it contains. No other file exists.
    pub fn file(mut self, path: &str, bytes: &[u8]) -> Host {
        self.world.files.insert(path.into(), bytes.to_vec());
        self
    }

    /// A disk beside the one below. `value` is what the test gives as a parameter's value.
    pub fn with_disk(mut self, value: &str, disk: Disk) -> Host {
        self.world.disks.insert(value.into(), disk);
        self
    }

    /// What a shell command answers that a parameter has: exit status and output.
    pub fn script(mut self, command: &str, status: i32, output: &[u8]) -> Host {
        self.world.scripts.insert(command.into(), (status, output.to_vec()));
        self
    }

    /// How many bytes each scratch file, and each file that is kept, may take. By default a TiB.
    pub fn quota(mut self, bytes: u64) -> Host {
        self.world.quota = bytes;
        self
    }

    /// The operator does not allow the filter to end the server or to disconnect clients. By
    /// default it may.
    pub fn without_powers(mut self) -> Host {
        self.world.may_use_powers = false;
        self
    }

    /// Configures the filter `F` with words `key=value`, as a user writes them, and starts.
    ///
    /// # Errors
    /// The line that the user would see: a parameter is wrong, or the filter refuses to start.
    pub fn serve<F: Exported>(self, words: &[&str]) -> Result<Served<F>, String> {
        Served::start(Rc::new(RefCell::new(self.world)), |declared| {
            parameters::assign(&F::describe().into_contract(Vec::new()).name, declared, words)
        })
    }
}

impl<F: Exported> Served<F> {
    /// Makes the filter's instances and starts them. `assign` gives its parameters.
    pub(super) fn start(
        world: Rc<RefCell<World>>,
        assign: impl FnOnce(&[Param]) -> Result<Assigned, String>,
    ) -> Result<Served<F>, String> {
        let served = Served::configured(world, assign)?;
        served.get_ready()?;
        Ok(served)
    }

    /// Makes the filter's instances.
    pub(super) fn configured(
        world: Rc<RefCell<World>>,
        assign: impl FnOnce(&[Param]) -> Result<Assigned, String>,
    ) -> Result<Served<F>, String> {
        let declared = F::Params::declare();
        let description = F::describe().into_contract(F::Params::declare());
        let name = description.name;
        let transparent = description.unexported == Unexported::Transparent;
        let nature = Nature { interfaces: F::INTERFACES, transparent };
        if !transparent && !nature.exports("reads") {
            return Err(format!("{name}: it is opaque and does not export reads: nothing could be read through it"));
        }
        let Assigned { values, paths } = assign(&declared)?;
        let kind_of = |name: &str| declared.iter().map(Param::contract).find(|p| p.name == name).map(|p| &*p.kind);
        for (param, value) in paths.iter().filter(|(param, _)| kind_of(param) == Some("disk")) {
            if !world.borrow().disks.contains_key(value) {
                return Err(format!("{name}: {param}={value}: there is no such disk (Host::with_disk makes one)"));
            }
        }
        {
            let mut world = world.borrow_mut();
            world.paths = paths;
            world.hears_alarms = nature.exports("on_alarm");
            world.kinds = declared.iter().map(Param::contract).map(|p| (p.name.clone(), p.kind.clone())).collect();
        }
        let given = Params::from_host::<F::Params>(values);
        let configure_another = move || F::configure(F::Params::read(&given)?);
        let configure = || {
            let configured = Call::new(&world, Phase::Configure, None).run(&configure_another).0;
            configured.map(Rc::new).map_err(|error| format!("{name}: {error}"))
        };
        let first = configure()?;
        let model = Call::new(&world, Phase::Configure, None).run(|| first.thread_model()).0;
        let model = model.unwrap_or(description.thread_model);
        let mut instances = vec![first];
        if model == ThreadModel::Parallel {
            instances.push(configure()?);
        }
        Ok(Served {
            world,
            instances: RefCell::new(instances),
            turn: Cell::new(0),
            name,
            model,
            recovery: description.recovery,
            state_version: description.state_version,
            nature,
            connections: RefCell::default(),
            configure_another: Box::new(configure_another),
            is_started: Cell::new(false),
        })
    }

    pub(super) fn get_ready(&self) -> Result<(), String> {
        self.is_started.set(true);
        self.server_call(|filter| filter.get_ready()).unwrap_or(Ok(()))?;
        self.server_call(|filter| filter.after_fork()).unwrap_or(Ok(()))
    }
}

/// What a simulated server leaves that has stopped.
pub struct Stopped {
    /// See [`Served::take_log`].
    pub log: Vec<String>,
    /// See [`Served::take_calls`].
    pub calls: Vec<String>,
    /// The files, by path.
    pub files: BTreeMap<String, Vec<u8>>,
}

/// A simulated server that serves a filter over a disk. Dropping it stops it.
pub struct Served<F: Exported> {
    pub(super) world: Rc<RefCell<World>>,
    pub(super) instances: RefCell<Vec<Rc<F>>>,
    /// Which instance serves next, if any of them can.
    turn: Cell<usize>,
    pub(super) name: String,
    pub(super) model: ThreadModel,
    pub(super) recovery: Recovery,
    pub(super) state_version: u32,
    pub(super) nature: Nature,
    pub(super) connections: RefCell<Vec<Weak<ConnectionState>>>,
    configure_another: Box<dyn Fn() -> Result<F, String>>,
    /// What did not start needs no cleanup.
    is_started: Cell<bool>,
}

impl<F: Exported> Served<F> {
    /// The bytes of the disk below, as they are now.
    pub fn disk(&self) -> Ref<'_, [u8]> {
        Ref::map(self.world.borrow(), |world| world.disk.bytes())
    }

    /// The lines that the filter has logged since the last time, each with its level: `warning:
    /// ...`.
    pub fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut self.world.borrow_mut().log)
    }

    /// What the filter has called since the last time, for example `open`, `pread 0 512`, `pwrite 0
    /// 512 fua`, `flush`, `prefetch 0 65536`, `sleep 1000`: the operation, offset and length or
    /// time, and the flags. A script is `script COMMAND name=value ...`. Operations of a disk that
    /// a parameter names begin with `disk-` and the parameter's value: `disk-open base.img`,
    /// `disk-pread base.img 0 512`.
    pub fn take_calls(&self) -> Vec<String> {
        std::mem::take(&mut self.world.borrow_mut().calls)
    }

    /// Makes the next call of an operation fail. Several faults of one operation count one after
    /// another. The operations are `open`, `block-size`, `pread`, `pwrite`, `flush`, `trim`,
    /// `zero`, `cache` and `extents` of the layer below, `disk-open`, `disk-pread`, `disk-extents`
    /// and `disk-cache` of another disk, and `alloc`, `scratch-pread`, `scratch-pwrite`, `sleep`,
    /// `storage-pread`, `storage-pwrite`, `storage-flush`, `sync`, `script` and `gate-close`.
    ///
    /// # Panics
    /// For another operation.
    pub fn fail_next(&self, operation: &str, error: Errno) {
        let known = OPERATIONS.iter().find(|name| **name == operation);
        let name = known.unwrap_or_else(|| panic!("{operation} cannot fail here, only {}", OPERATIONS.join(", ")));
        self.world.borrow_mut().faults.push((name, error));
    }

    /// Stops the server, and returns what it leaves.
    pub fn stop(self) -> Stopped {
        let world = Rc::clone(&self.world);
        drop(self);
        let mut world = world.borrow_mut();
        Stopped {
            log: std::mem::take(&mut world.log),
            calls: std::mem::take(&mut world.calls),
            files: std::mem::take(&mut world.files),
        }
    }

    /// Nanoseconds since the server started. It starts at 0, and only sleeping and
    /// [`Served::pass_time`] move it.
    pub fn time(&self) -> u64 {
        self.world.borrow().time
    }

    /// What a file contains, or None if it does not exist.
    pub fn file(&self, path: &str) -> Option<Vec<u8>> {
        self.world.borrow().files.get(path).cloned()
    }

    /// Replaces a file, or removes it. A filter that watches it is told.
    pub fn set_file(&self, path: &str, bytes: Option<&[u8]>) {
        self.changing(|served| {
            let mut world = served.world.borrow_mut();
            match bytes {
                Some(bytes) => world.files.insert(path.into(), bytes.to_vec()),
                None => world.files.remove(path),
            };
        });
    }

    /// The instance for calls without a connection.
    pub(super) fn first_instance(&self) -> Rc<F> {
        Rc::clone(&self.instances.borrow()[0])
    }

    /// A call of the phase R.
    fn server_call<R>(&self, export: impl FnOnce(&F) -> R) -> R {
        let filter = Rc::clone(&self.instances.borrow()[0]);
        Call::new(&self.world, Phase::Server, None).run(|| export(&filter)).0
    }

    /// A call of the phase N.
    pub(super) fn names_call<R>(&self, client: Rc<ClientFacts>, export: impl FnOnce(&F) -> R) -> R {
        let filter = Rc::clone(&self.instances.borrow()[0]);
        Call::new(&self.world, Phase::Names, None).of(client).run(|| export(&filter)).0
    }

    /// The index of the instance for a new connection.
    pub(super) fn instance_for_connection(&self) -> usize {
        if self.model != ThreadModel::SerializeRequests {
            return 0;
        }
        let filter = self.another_instance();
        self.instances.borrow_mut().push(filter);
        self.instances.borrow().len() - 1
    }

    /// A fresh instance.
    pub(super) fn another_instance(&self) -> Rc<F> {
        let configured = Call::new(&self.world, Phase::Configure, None).run(|| (self.configure_another)()).0;
        Rc::new(configured.unwrap_or_else(|error| panic!("configure fails the second time: {error}")))
    }

    /// The instance that serves the next call of a connection.
    pub(super) fn instance(&self, connection: &ConnectionState) -> Rc<F> {
        let instances = self.instances.borrow();
        let index = match self.model {
            ThreadModel::Parallel => {
                self.turn.set((self.turn.get() + 1) % instances.len());
                self.turn.get()
            }
            _ => connection.instance,
        };
        Rc::clone(&instances[index])
    }
}

impl<F: Exported> Drop for Served<F> {
    fn drop(&mut self) {
        if !std::thread::panicking() && self.is_started.get() {
            self.server_call(|filter| filter.cleanup());
        }
    }
}
