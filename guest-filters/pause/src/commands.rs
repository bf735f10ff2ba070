//! What a client of the control socket says: one character for each command.

/// A command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Pause,
    Resume,
    Unknown,
}

impl Command {
    /// The commands in what was received. Blanks, tabs and newlines are none.
    pub fn all(received: &[u8]) -> impl Iterator<Item = Command> {
        received.iter().filter(|byte| !matches!(byte, b' ' | b'\t' | b'\n')).map(|byte| match byte {
            b'p' => Command::Pause,
            b'r' => Command::Resume,
            _ => Command::Unknown,
        })
    }

    /// The answer once the command is carried out.
    pub fn done(self) -> u8 {
        match self {
            Command::Pause => b'P',
            Command::Resume => b'R',
            Command::Unknown => FAILED,
        }
    }
}

/// The answer to a command that is unknown, or that could not be carried out.
pub const FAILED: u8 = b'X';

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_character_but_blanks_tabs_and_newlines_is_a_command() {
        let answers = |received: &[u8]| Command::all(received).map(Command::done).collect::<Vec<u8>>();
        assert_eq!(answers(b"p\n"), b"P");
        assert_eq!(answers(b"pr\0 q"), b"PRXX");
        assert_eq!(answers(b"P\tr\r\n"), b"XRX");
        assert_eq!(answers(b" \n"), b"");
        assert_eq!(answers(&(0..=255).collect::<Vec<u8>>()).len(), 253);
    }
}
