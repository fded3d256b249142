//! What a process writes, line by line.

use std::io::{BufRead, BufReader, PipeWriter, Write, pipe};
use std::process::Stdio;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;

use crate::env::CEILING;

/// A pipe, and the lines that a thread has read from it.
pub(crate) struct Lines {
    read: Receiver<String>,
    writer: PipeWriter,
}

/// What we write into the pipe of a process that has ended, behind all that it has written.
const END: &[u8] = b"\0end of the process\n";

impl Lines {
    pub(crate) fn new() -> Self {
        let (reader, writer) = pipe().expect("a pipe");
        let (sender, read) = channel();
        thread::spawn(move || {
            let mut reader = BufReader::new(reader);
            let mut line = Vec::new();
            while reader.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
                let (text, is_last) = line.strip_suffix(END).map_or((&line[..], false), |text| (text, true));
                if !(is_last && text.is_empty()) {
                    let text = String::from_utf8_lossy(text).trim_end_matches(['\n', '\r']).to_owned();
                    if sender.send(text).is_err() {
                        return;
                    }
                }
                if is_last {
                    return;
                }
                line.clear();
            }
        });
        Self { read, writer }
    }

    pub(crate) fn stdio(&self) -> Stdio {
        self.writer.try_clone().expect("a descriptor").into()
    }

    pub(crate) fn next(&self) -> Result<String, RecvTimeoutError> {
        self.read.recv_timeout(CEILING)
    }

    pub(crate) fn so_far(&self) -> Vec<String> {
        self.read.try_iter().collect()
    }

    /// Lines left to read, of a process that has ended. A descendant that is kept on purpose may still hold the pipe open.
    pub(crate) fn rest(&mut self) -> Vec<String> {
        self.writer.write_all(END).expect("a pipe");
        self.read.iter().collect()
    }
}
