//! A client of a filter's control socket.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::wait::TIMEOUT;

/// A connection to a control socket.
pub struct Control(pub UnixStream);

impl Control {
    /// Connects.
    ///
    /// # Panics
    /// Nobody listens.
    pub fn connect(path: &Path) -> Control {
        let stream = UnixStream::connect(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        stream.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
        stream.set_write_timeout(Some(TIMEOUT)).expect("a timeout");
        Control(stream)
    }

    /// Sends bytes.
    ///
    /// # Errors
    /// The connection is closed.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    /// Receives so many bytes.
    ///
    /// # Errors
    /// The connection is closed.
    pub fn receive(&mut self, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.0.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Sends bytes and receives an answer of this length, as text.
    ///
    /// # Panics
    /// The connection is closed.
    pub fn say(&mut self, bytes: &[u8], length: usize) -> String {
        self.send(bytes).expect("a command");
        String::from_utf8_lossy(&self.receive(length).expect("an answer")).into_owned()
    }

    /// Whether the server has closed the connection, without a further answer.
    pub fn is_closed(&mut self) -> bool {
        match self.0.read(&mut [0; 1]) {
            Ok(0) => true,
            // Closed while bytes were under way.
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
            Ok(_) => false,
        }
    }
}
