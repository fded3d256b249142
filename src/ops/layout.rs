//! Layout of text for people: rows of a name and a value, which is wrapped with a hanging indent where the terminal ends, and
//! colours with a meaning.

use std::io::stdout;

use clap::builder::styling::{AnsiColor, Style};

pub(super) use crate::logging::{columns, fitted};
use crate::logging::{escaped, with_columns};
use crate::sys::terminal;

/// Columns of stdout that text may fill; elsewhere than on a terminal it is not wrapped.
pub(super) fn width() -> usize {
    // In the last column, some terminals begin a new line.
    terminal::size_of(stdout()).map_or(usize::MAX, |size| usize::from(size.ws_col) - 1)
}

/// Meaning of a row, by its colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Look {
    #[default]
    Plain,
    Good,
    Odd,
    Bad,
    /// A remark.
    Faint,
}

impl Look {
    pub(super) fn style(self) -> Style {
        match self {
            Self::Plain => Style::new(),
            Self::Good => AnsiColor::Green.on_default(),
            Self::Odd => AnsiColor::Yellow.on_default(),
            Self::Bad => AnsiColor::Red.on_default().bold(),
            Self::Faint => Style::new().dimmed(),
        }
    }
}

/// A value, with its name if it is the first of that.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) value: String,
    pub(super) look: Look,
    /// Columns by which the lines after the first are indented further.
    pub(super) hang: usize,
}

/// Columns of the names.
const NAMES: usize = 15;

/// Width below which a value begins on a line of its own.
const NARROW: usize = 40;

impl Row {
    pub(super) fn new(name: &'static str, value: impl Into<String>) -> Self {
        Self { name, value: value.into(), look: Look::Plain, hang: 0 }
    }

    pub(super) fn looks(self, look: Look) -> Self {
        Self { look, ..self }
    }

    /// Lines of at most `width` columns. Nothing in the value acts on a terminal.
    pub(super) fn to_text(&self, width: usize) -> String {
        let Self { name, value, look, hang } = self;
        let (bold, style) = (Style::new().bold(), look.style());
        let indent = if width < NARROW { 2 } else { NAMES };
        let lines = wrapped(&escaped(value), width.saturating_sub(indent), *hang);
        let mut text = match name {
            _ if width < NARROW && !name.is_empty() => format!("{bold}{name}{bold:#}\n{:indent$}", ""),
            &"" => format!("{:indent$}", ""),
            _ => format!("{bold}{name}{bold:#}{:1$}", "", NAMES.saturating_sub(name.len())),
        };
        for (index, line) in lines.iter().enumerate() {
            if index > 0 {
                text += &format!("{:indent$}", "");
            }
            text += &format!("{style}{line}{style:#}\n");
        }
        text
    }
}

/// `text` behind `indent` columns, which its first line has already, in lines that end before `width`.
pub(super) fn hanging(text: &str, indent: usize, width: usize) -> String {
    wrapped(&escaped(text), width.saturating_sub(indent), 0).join(&format!("\n{:indent$}", ""))
}

/// Breaks `text` into lines of at most `room` columns, at spaces where it can; all but the first are indented by `hang`.
pub(super) fn wrapped(text: &str, room: usize, hang: usize) -> Vec<String> {
    let room = room.max(hang + 2);
    let (mut lines, mut line, mut used) = (Vec::new(), String::new(), 0);
    for (index, word) in text.split(' ').enumerate() {
        let length = columns(word);
        if index > 0 && used + 1 + length > room && length <= room - hang {
            lines.push(std::mem::replace(&mut line, " ".repeat(hang)));
            used = hang;
        } else if index > 0 {
            line.push(' ');
            used += 1;
        }
        for (c, columns) in with_columns(word) {
            if used + columns > room {
                lines.push(std::mem::replace(&mut line, " ".repeat(hang)));
                used = hang;
            }
            line.push(c);
            used += columns;
        }
    }
    lines.push(line);
    lines.iter().map(|line| line.trim_end().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        let text =
            " 1. review-agent (pid 27486), exclusive, of /a/very/long/path/that/no/terminal/has/the/width/for, 漢字漢字漢字";
        for room in 4..140 {
            let lines = wrapped(text, room, 2);
            assert!(lines.iter().all(|line| columns(line) <= room), "{room}: {lines:?}");
            assert!(lines.iter().skip(1).all(|line| line.starts_with("  ")), "{room}: {lines:?}");
            let without_spaces = |text: &str| text.replace(' ', "");
            assert_eq!(without_spaces(&lines.concat()), without_spaces(text), "{room}");
        }
        assert_eq!(["…", "…", "o…"], [0, 1, 2].map(|width| fitted("one", width)));
        assert_eq!(wrapped("one two three", 7, 0), ["one two", "three"]);
        assert_eq!(wrapped("one \x1b[1mtwo\x1b[0m three", 7, 0), ["one \x1b[1mtwo\x1b[0m", "three"]);
        assert_eq!(wrapped("", 7, 0), [""]);
    }

    #[test]
    fn rows_are_aligned_where_there_is_room() {
        let row = Row::new("held by", "a\nb c");
        assert_eq!(anstream::adapter::strip_str(&row.to_text(usize::MAX)).to_string(), "held by        a\\nb c\n");
        assert_eq!(anstream::adapter::strip_str(&row.to_text(20)).to_string(), "held by\n  a\\nb c\n");
    }
}
