//! The line that a waiter shows on a terminal: rewritten in place, wiped when it is dropped.

use std::io::{IsTerminal, stderr};
use std::sync::atomic::{AtomicBool, Ordering};

use super::columns::{columns, cut};
use super::stderr::say;
use super::words::{escaped, masked};
use crate::sys::terminal;

static IS_ALLOWED: AtomicBool = AtomicBool::new(true);

/// Allows live lines or not, by the verbosity of this process.
pub(super) fn allow(allowed: bool) {
    IS_ALLOWED.store(allowed, Ordering::Relaxed);
}

/// Line of a waiter on a terminal.
pub struct LiveLine(());

impl LiveLine {
    /// A live line, if stderr is a terminal and the verbosity allows it.
    pub fn on_terminal() -> Option<Self> {
        // Not `then_some`: dropped, it writes.
        (IS_ALLOWED.load(Ordering::Relaxed) && stderr().is_terminal()).then(|| Self(()))
    }

    /// False in the background, where others type: it is not written until the shell brings it to the foreground.
    pub fn is_shown(&self) -> bool {
        !terminal::is_in_background(stderr())
    }

    /// Shows `head`, and as many of `names` as there is room for.
    pub fn show_list(&self, head: &str, names: &[String]) {
        let text = |count: usize| match names.len() - count {
            0 => format!("{head}{}", names.join(", ")),
            more => format!("{head}{} and {more} more", names[..count].join(", ")),
        };
        let fits = |text: &String| LEAD.len() + columns(text) <= width();
        self.show(&(1..=names.len()).rev().map(text).find(fits).unwrap_or_else(|| text(names.len())));
    }

    /// Shows `text` in place of the last.
    pub fn show(&self, text: &str) {
        let width = width();
        let text = format!("{LEAD}{}", escaped(&masked(text)));
        // A hint is shown whole, or not at all.
        let hint = text.find("; Ctrl-C").filter(|_| columns(&text) > width);
        self.rewrite(&cut(&text[..hint.unwrap_or(text.len())], width));
    }

    fn rewrite(&self, text: &str) {
        if self.is_shown() {
            say(&format!("\r\x1b[K{text}"));
        }
    }
}

const LEAD: &str = "claude-run: ";

/// Columns of the line. Text that does not fit would wrap to a second line, which no carriage return reaches.
fn width() -> usize {
    terminal::size_of(stderr()).map_or(usize::MAX, |size| usize::from(size.ws_col)).saturating_sub(1)
}

impl Drop for LiveLine {
    fn drop(&mut self) {
        self.rewrite("");
    }
}
