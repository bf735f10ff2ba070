//! The conversation that takes a plugin's process from its start to its first connection.
//!
//! The server holds it with the process that it starts itself. For one that is started later the
//! helper holds it, with the parameters that it was given before the server was confined. So a
//! server that was taken over cannot give the plugin other parameters.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rbdkit_launcher::packet;
use rbdkit_plugin_api::ThreadModel;

use crate::wire::{Fields, MAX_PACKET, Packet, kind, shown};

/// What the process has to know before it loads the plugin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Switches {
    /// Whether debug messages are wanted.
    pub(crate) verbose: bool,
    /// Whether the plugin may use standard input and output while it is configured.
    pub(crate) stdio_safe: bool,
    /// The most threads of a connection.
    pub(crate) threads: u32,
    /// Whether the server goes into the background, where the process leaves its standard streams.
    pub(crate) background: bool,
    /// The plugin's name, the flag's name and the value.
    pub(crate) debug_flags: Vec<(String, String, i32)>,
}

/// What a plugin says of itself when it is loaded. The texts are the plugin's and may be anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) name: String,
    pub(crate) longname: Option<String>,
    pub(crate) version: Option<String>,
    pub(crate) description: Option<String>,
    pub(crate) config_help: Option<String>,
    pub(crate) magic_config_key: Option<String>,
    pub(crate) api_version: i64,
    pub(crate) struct_size: u64,
    pub(crate) max_thread_model: i64,
    pub(crate) errno_is_preserved: bool,
    /// Whether the plugin can ask for the export's name, so that names may lead to different disks.
    pub(crate) uses_export_name: bool,
    /// The functions that it has, by nbdkit's names.
    pub(crate) functions: Vec<String>,
}

/// The most functions that a plugin can have; nbdkit has 42.
const MAX_FUNCTIONS: u64 = 100;

impl Hello {
    pub(crate) fn packet(&self) -> Packet {
        let text = |text: &Option<String>| text.clone().map(String::into_bytes);
        let mut packet = Packet::new(kind::HELLO).text(self.name.as_bytes());
        for part in [&self.longname, &self.version, &self.description, &self.config_help, &self.magic_config_key] {
            packet = packet.optional(text(part).as_deref());
        }
        packet = packet.signed(self.api_version).number(self.struct_size).signed(self.max_thread_model);
        packet = packet
            .byte(self.errno_is_preserved.into())
            .byte(self.uses_export_name.into())
            .number(self.functions.len() as u64);
        self.functions.iter().fold(packet, |packet, name| packet.text(name.as_bytes()))
    }

    fn read(mut fields: Fields<'_>) -> Option<Hello> {
        let owned = |text: &[u8]| String::from_utf8_lossy(text).into_owned();
        let name = owned(fields.text()?);
        let mut optional = || fields.optional().map(|text| text.map(owned));
        let (longname, version, description) = (optional()?, optional()?, optional()?);
        let (config_help, magic_config_key) = (optional()?, optional()?);
        let (api_version, struct_size, max_thread_model) = (fields.signed()?, fields.number()?, fields.signed()?);
        let (errno_is_preserved, uses_export_name) = (fields.byte()? != 0, fields.byte()? != 0);
        let count = fields.number().filter(|count| *count <= MAX_FUNCTIONS)?;
        let functions = (0..count).map(|_| fields.text().map(owned)).collect::<Option<_>>()?;
        Some(Hello {
            name,
            longname,
            version,
            description,
            config_help,
            magic_config_key,
            api_version,
            struct_size,
            max_thread_model,
            errno_is_preserved,
            uses_export_name,
            functions,
        })
    }

    /// Whether the plugin has the function.
    pub(crate) fn has(&self, function: &str) -> bool {
        self.functions.iter().any(|name| name == function)
    }
}

/// Why the conversation failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The plugin refused, with this message.
    Refused(String),
    /// The process has ended, or does not keep to the protocol.
    Ended,
}

/// Where the messages of the plugin go meanwhile.
pub(crate) type Messages<'a> = &'a mut dyn FnMut(u8, &str);

/// The conversation. It blocks.
pub(crate) struct Setup {
    control: OwnedFd,
    switches: Switches,
    /// Standard input for the plugin.
    input: Option<OwnedFd>,
    /// The parameters that the plugin has taken.
    given: Vec<(Vec<u8>, Vec<u8>)>,
    /// The last error message, which says why a call failed.
    last_error: Option<String>,
    pub(crate) hello: Hello,
}

impl Setup {
    /// Loads the plugin.
    pub(crate) fn begin(
        control: OwnedFd,
        switches: Switches,
        input: Option<OwnedFd>,
        messages: Messages<'_>,
    ) -> Result<Setup, Failure> {
        let (given, last_error) = (Vec::new(), None);
        let mut setup = Setup { control, switches, input, given, last_error, hello: Hello::default() };
        setup.load(messages)?;
        Ok(setup)
    }

    fn load(&mut self, messages: Messages<'_>) -> Result<(), Failure> {
        let switches = &self.switches;
        let init = Packet::new(kind::INIT).byte(switches.verbose.into()).byte(switches.stdio_safe.into());
        let init = init.byte(switches.background.into()).number(switches.threads.into());
        let flag = |init: Packet, (name, flag, value): &(String, String, i32)| {
            init.text(name.as_bytes()).text(flag.as_bytes()).signed((*value).into())
        };
        let init = switches.debug_flags.iter().fold(init, flag);
        let input: Vec<BorrowedFd<'_>> = self.input.iter().map(AsFd::as_fd).collect();
        packet::send(self.control.as_fd(), init.bytes(), &input).map_err(|_| Failure::Ended)?;
        match self.answer(messages)? {
            Said::Hello(hello) => {
                self.hello = *hello;
                Ok(())
            }
            Said::Done(_, message) => Err(Failure::Refused(message)),
            Said::Again | Said::Text(_) => Err(Failure::Ended),
        }
    }

    /// Gives the plugin a parameter.
    pub(crate) fn config(&mut self, key: &[u8], value: &[u8], messages: Messages<'_>) -> Result<(), Failure> {
        self.given.push((key.to_vec(), value.to_vec()));
        let packet = Packet::new(kind::CONFIG).text(key).text(value);
        self.call(&packet, messages).map(drop)
    }

    /// Calls the plugin without arguments. Returns what it answered.
    pub(crate) fn call_plain(&mut self, kind: u8, messages: Messages<'_>) -> Result<i64, Failure> {
        self.call(&Packet::new(kind), messages)
    }

    /// The thread model that the plugin wants now.
    pub(crate) fn thread_model(&mut self, messages: Messages<'_>) -> Result<ThreadModel, Failure> {
        model(self.call_plain(kind::THREAD_MODEL, messages)?).ok_or(Failure::Ended)
    }

    /// Tells the plugin which user serves. The process becomes that user.
    pub(crate) fn after_fork(&mut self, messages: Messages<'_>) -> Result<(), Failure> {
        let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
        let groups = rustix::process::getgroups().unwrap_or_default();
        let packet = Packet::new(kind::AFTER_FORK).number(user.as_raw().into()).number(group.as_raw().into());
        let packet = groups.iter().fold(packet, |packet, group| packet.number(group.as_raw().into()));
        self.call(&packet, messages).map(drop)
    }

    /// What the plugin prints about itself.
    pub(crate) fn dump(&mut self, messages: Messages<'_>) -> Result<Vec<u8>, Failure> {
        Packet::new(kind::DUMP).send(self.control.as_fd()).map_err(|_| Failure::Ended)?;
        let mut text = Vec::new();
        loop {
            match self.answer(messages)? {
                Said::Text(part) if text.len() + part.len() <= MAX_DUMP => text.extend(part),
                Said::Done(..) => return Ok(text),
                _ => return Err(Failure::Ended),
            }
        }
    }

    /// The socket, for a process that is ready.
    pub(crate) fn into_control(self) -> OwnedFd {
        self.control
    }

    fn call(&mut self, packet: &Packet, messages: Messages<'_>) -> Result<i64, Failure> {
        // A plugin starts its program anew at most once for each of a few reasons.
        for _ in 0..MAX_STARTS {
            packet.send(self.control.as_fd()).map_err(|_| Failure::Ended)?;
            match self.answer(messages)? {
                Said::Done(result, _) if result >= 0 => return Ok(result),
                Said::Done(_, message) => return Err(Failure::Refused(message)),
                Said::Again => self.repeat(packet, messages)?,
                Said::Hello(_) | Said::Text(_) => return Err(Failure::Ended),
            }
        }
        Err(Failure::Ended)
    }

    /// The plugin has started its program again: everything before `packet` is repeated.
    fn repeat(&mut self, packet: &Packet, messages: Messages<'_>) -> Result<(), Failure> {
        self.load(messages)?;
        // The call that is under way may be that of the last parameter.
        let before = self.given.len() - usize::from(packet.bytes()[0] == kind::CONFIG);
        for nth in 0..before {
            let (key, value) = &self.given[nth];
            let config = Packet::new(kind::CONFIG).text(key).text(value);
            config.send(self.control.as_fd()).map_err(|_| Failure::Ended)?;
            match self.answer(messages)? {
                Said::Done(0.., _) => {}
                Said::Done(_, message) => return Err(Failure::Refused(message)),
                _ => return Err(Failure::Ended),
            }
        }
        let before_ready = matches!(packet.bytes()[0], kind::CONFIG | kind::CONFIG_COMPLETE);
        if before_ready { Ok(()) } else { Err(Failure::Ended) }
    }

    fn answer(&mut self, messages: Messages<'_>) -> Result<Said, Failure> {
        let mut bytes = vec![0; MAX_PACKET];
        loop {
            let (count, _) = packet::receive(self.control.as_fd(), &mut bytes).map_err(|_| Failure::Ended)?;
            let mut fields = Fields::new(&bytes[..count]);
            match fields.byte().ok_or(Failure::Ended)? {
                kind::HELLO => return Hello::read(fields).map(Box::new).map(Said::Hello).ok_or(Failure::Ended),
                kind::AGAIN => return Ok(Said::Again),
                kind::TEXT => return fields.text().map(|text| Said::Text(text.to_vec())).ok_or(Failure::Ended),
                kind::DONE => {
                    let result = fields.signed().ok_or(Failure::Ended)?;
                    let message = fields.text().map(shown).ok_or(Failure::Ended)?;
                    let last = self.last_error.take();
                    if result >= 0 {
                        last.iter().for_each(|text| messages(kind::ERROR, text));
                        return Ok(Said::Done(result, message));
                    }
                    return Ok(Said::Done(result, last.unwrap_or(message)));
                }
                which @ (kind::ERROR | kind::DEBUG) => {
                    let text = fields.number().and(fields.text()).map(shown).ok_or(Failure::Ended)?;
                    let text = if which == kind::ERROR { self.last_error.replace(text) } else { Some(text) };
                    text.iter().for_each(|text| messages(which, text));
                }
                // The server is not there yet that it could end.
                kind::SHUTDOWN | kind::DISCONNECT => {}
                _ => return Err(Failure::Ended),
            }
        }
    }
}

/// How often a plugin may start its program again.
const MAX_STARTS: usize = 4;

/// The longest text for `--dump-plugin`, in bytes.
const MAX_DUMP: usize = 1 << 20;

enum Said {
    Hello(Box<Hello>),
    Done(i64, String),
    Again,
    Text(Vec<u8>),
}

/// nbdkit's number of a thread model.
pub(crate) fn model(number: i64) -> Option<ThreadModel> {
    Some(match number {
        0 => ThreadModel::SerializeConnections,
        1 => ThreadModel::SerializeAllRequests,
        2 => ThreadModel::SerializeRequests,
        3 => ThreadModel::Parallel,
        _ => return None,
    })
}
