//! Frames on claude's stdout: results, and background tasks that are still open. They are found by parsing, since their keys
//! come in any order and their text may quote other frames. Long strings in them are cut before they are parsed.

mod abridged;

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::mem;

use memchr::memchr;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use self::abridged::Abridged;
use super::arguments::{is_headless, value_of};
use crate::redact::kept;

/// A frame, as far as the watchdog needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameEvent {
    /// A result frame. A run can print several.
    Result {
        /// The frame's `is_error`.
        is_error: bool,
    },
    /// The number of open background tasks after a change.
    OpenTasks(u32),
    /// The first frame of a turn after a result: the next result is still to come.
    TurnStarted,
    /// Another frame between a result and the next turn.
    Other,
}

/// Fields of the last result frame, which sums up the run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LastResult {
    /// `subtype`
    pub subtype: String,
    /// `is_error`
    pub is_error: bool,
    /// `session_id`
    pub session_id: Option<String>,
    /// `num_turns`
    pub turns: Option<u64>,
    /// `duration_ms`
    pub duration_ms: Option<u64>,
    /// `total_cost_usd`
    pub cost_usd: Option<f64>,
    /// True if the API has refused the login, and claude could not refresh it.
    pub auth_refused: bool,
    /// True if a turn has begun behind it, or a frame that is cut off: what was to come is missing.
    pub is_outdated: bool,
}

impl LastResult {
    /// True if claude did its task; its exit code alone does not say so.
    pub fn is_success(&self) -> bool {
        !self.is_error && !self.is_outdated && self.subtype == "success"
    }
}

/// True if claude's arguments ask for an output format that has frames.
pub fn are_expected(arguments: &[OsString]) -> bool {
    output_format(arguments).is_some_and(|format| format == "json" || format == "stream-json")
}

/// True if claude, by its arguments, prints nothing before its end.
pub fn come_all_at_once(arguments: &[OsString]) -> bool {
    is_headless(arguments) && output_format(arguments).is_none_or(|format| format != "stream-json")
}

/// True if claude's arguments say that messages come on stdin, one after the other.
pub fn input_is_streamed(arguments: &[OsString]) -> bool {
    value_of(arguments, "--input-format").is_some_and(|format| format == "stream-json")
}

fn output_format(arguments: &[OsString]) -> Option<&OsStr> {
    value_of(arguments, "--output-format")
}

/// Reader of claude's stdout, in whatever pieces it comes.
#[derive(Debug, Default)]
pub struct FrameReader {
    line: Line,
    /// The beginning of a frame.
    frame: Abridged,
    /// The frame is the whole of its line so far, and reported.
    is_read: bool,
    last_result: Option<LastResult>,
    session_id: Option<String>,
    /// Hashes of their ids: an id can be as long as a frame.
    tasks: HashSet<u64>,
    is_between_turns: bool,
}

/// Kind of a line, by its first byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Line {
    #[default]
    Empty,
    /// One frame, in `json` and `stream-json`.
    Frame,
    /// An array of frames, in `json --verbose`.
    Array(Nesting),
    /// Text of other formats, and the rest of an array.
    Text,
}

/// Place in an element of an array.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Nesting {
    depth: usize,
    in_string: bool,
    is_escaped: bool,
}

impl Nesting {
    /// Steps over `byte`. True if it ends the element: a comma, or the end of the array.
    fn ends_at(&mut self, byte: u8) -> bool {
        if self.in_string {
            self.in_string = self.is_escaped || byte != b'"';
            self.is_escaped = !self.is_escaped && byte == b'\\';
            return false;
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => self.depth += 1,
            b',' | b']' if self.depth == 0 => return true,
            b'}' | b']' => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
        false
    }
}

impl FrameReader {
    /// Reads the next bytes, and reports the frames that end in them.
    pub fn feed(&mut self, mut bytes: &[u8], mut report: impl FnMut(FrameEvent)) {
        while let Some(end) = memchr(b'\n', bytes) {
            let (head, rest) = bytes.split_at(end);
            bytes = &rest[1..];
            if self.line == Line::Empty && head.starts_with(b"{") {
                self.read_frame(head, &mut report); // most lines come whole, and need no copy
                continue;
            }
            self.continue_line(head, &mut report);
            if self.line == Line::Frame && !self.is_read {
                self.end_frame(&mut report);
            }
            (self.line, self.is_read) = (Line::Empty, false);
            self.frame.clear();
        }
        self.continue_line(bytes, &mut report);
    }

    /// True if the bytes so far end in a frame without its newline, which may have come to its end all the same.
    pub fn may_be_complete(&self) -> bool {
        self.line == Line::Frame && !self.is_read && self.frame.bytes.trim_ascii_end().ends_with(b"}")
    }

    /// Reads such a frame: nothing has come behind it for a while.
    pub fn pause(&mut self, mut report: impl FnMut(FrameEvent)) {
        if self.may_be_complete() {
            let frame = mem::take(&mut self.frame.bytes);
            self.is_read = serde_json::from_slice::<IgnoredAny>(&frame).is_ok();
            if self.is_read {
                self.read_frame(&frame, &mut report);
            }
            self.frame.bytes = frame;
        }
    }

    /// Ends the output: the last line may lack its newline. False if it ends in the middle of a frame.
    pub fn end(&mut self, report: impl FnMut(FrameEvent)) -> bool {
        let is_complete = match self.line {
            Line::Empty | Line::Text => true,
            Line::Frame => {
                self.frame.is_too_long || self.is_read || serde_json::from_slice::<IgnoredAny>(&self.frame.bytes).is_ok()
            }
            Line::Array(_) => false,
        };
        let is_frame = match self.line {
            Line::Frame => {
                matches!(self.frame.bytes.get(1..).unwrap_or_default().trim_ascii_start().first(), None | Some(b'"'))
            }
            _ => true,
        };
        self.feed(b"\n", report);
        // Not by text that begins with a brace.
        let is_cut = !is_complete && is_frame;
        self.last_result.iter_mut().for_each(|result| result.is_outdated |= is_cut);
        is_complete
    }

    /// The last result frame so far.
    pub fn last_result(&self) -> Option<&LastResult> {
        self.last_result.as_ref()
    }

    /// The session that the last turn belongs to, by the frame that begins it.
    pub(crate) fn session_id(&self) -> Option<&str> {
        self.session_id.as_deref()
    }

    fn continue_line(&mut self, mut bytes: &[u8], report: &mut impl FnMut(FrameEvent)) {
        if self.line == Line::Empty {
            bytes = bytes.trim_ascii_start();
            self.line = match bytes.first() {
                None => Line::Empty,
                Some(b'{') => Line::Frame,
                Some(b'[') => Line::Array(Nesting::default()),
                Some(_) => Line::Text,
            };
            if let Line::Array(_) = self.line {
                bytes = &bytes[1..];
            }
        }
        match self.line {
            Line::Frame => self.frame.push(bytes),
            Line::Array(nesting) => self.read_array(nesting, bytes, report),
            Line::Empty | Line::Text => {}
        }
    }

    /// Reads more of an array, element by element: it may be longer than what is kept.
    fn read_array(&mut self, mut nesting: Nesting, mut bytes: &[u8], report: &mut impl FnMut(FrameEvent)) {
        while let Some(end) = bytes.iter().position(|&byte| nesting.ends_at(byte)) {
            self.frame.push(&bytes[..end]);
            let is_frame = self.frame.is_too_long || self.frame.bytes.trim_ascii_start().starts_with(b"{");
            if !is_frame || bytes[end] == b']' {
                self.line = Line::Text;
            }
            if is_frame {
                self.end_frame(report);
            }
            if self.line == Line::Text {
                return;
            }
            bytes = &bytes[end + 1..];
        }
        self.frame.push(bytes);
        self.line = Line::Array(nesting);
    }

    fn end_frame(&mut self, report: &mut impl FnMut(FrameEvent)) {
        let mut frame = mem::take(&mut self.frame);
        if !frame.is_too_long {
            self.read_frame(&frame.bytes, report);
        }
        frame.clear();
        self.frame = frame;
    }

    fn read_frame(&mut self, text: &[u8], report: &mut impl FnMut(FrameEvent)) {
        let event = match leading_type(text) {
            Some(kind) if !matches!(kind, b"result" | b"system") => self.other(kind, None),
            // Anything else is text: claude prints that in other formats.
            _ => serde_json::from_slice(text).ok().and_then(|frame| self.on_frame(&frame)),
        };
        event.into_iter().for_each(report);
    }

    fn on_frame(&mut self, frame: &Frame) -> Option<FrameEvent> {
        let kind: String = member(frame, "type")?;
        let subtype: Option<String> = member(frame, "subtype");
        let task = task_of(frame);
        match (&*kind, subtype.as_deref()) {
            ("result", Some(subtype)) => {
                // Other programs print results as well; those of claude have both of these, in every version.
                let is_error = member(frame, "is_error")?;
                self.last_result = Some(LastResult {
                    subtype: kept(subtype),
                    is_error,
                    session_id: member(frame, "session_id").map(|id: String| kept(&id)),
                    turns: member(frame, "num_turns"),
                    duration_ms: member(frame, "duration_ms"),
                    cost_usd: member(frame, "total_cost_usd"),
                    auth_refused: is_error && says_auth_refused(frame),
                    is_outdated: false,
                });
                self.is_between_turns = true;
                return Some(FrameEvent::Result { is_error });
            }
            ("system", Some("init")) => {
                self.last_result.iter_mut().for_each(|result| result.is_outdated = true);
                self.session_id = member(frame, "session_id").map(|id: String| kept(&id));
                return self.other(b"system", subtype.as_deref());
            }
            ("system", Some("task_started")) => self.tasks.extend(task),
            ("system", Some("task_notification")) => self.tasks.retain(|open| Some(*open) != task),
            ("system", Some("background_tasks_changed")) => {
                let tasks: Vec<Frame> = member(frame, "tasks")?;
                self.tasks = tasks.iter().filter_map(task_of).collect();
            }
            (kind, subtype) => return self.other(kind.as_bytes(), subtype),
        }
        Some(FrameEvent::OpenTasks(u32::try_from(self.tasks.len()).unwrap_or(u32::MAX)))
    }

    fn other(&mut self, kind: &[u8], subtype: Option<&str>) -> Option<FrameEvent> {
        let was_between_turns = self.is_between_turns;
        self.is_between_turns &=
            !matches!((kind, subtype), (b"assistant" | b"user" | b"stream_event", _) | (b"system", Some("init")));
        let event = if self.is_between_turns { FrameEvent::Other } else { FrameEvent::TurnStarted };
        was_between_turns.then_some(event)
    }
}

/// The type of a frame that has it as its first key, as most frames do but results. Every byte of claude's output passes
/// here, and reading JSON to its end is many times slower than this.
fn leading_type(line: &[u8]) -> Option<&[u8]> {
    let key = line.strip_prefix(b"{")?.trim_ascii_start().strip_prefix(br#""type""#)?;
    let value = key.trim_ascii_start().strip_prefix(b":")?.trim_ascii_start().strip_prefix(b"\"")?;
    let kind = &value[..value.iter().position(|&byte| !(byte.is_ascii_lowercase() || byte == b'_'))?];
    (value.get(kind.len()) == Some(&b'"') && line.trim_ascii_end().ends_with(b"}")).then_some(kind)
}

/// Hash of the id of the task that a frame is about.
fn task_of(frame: &Frame) -> Option<u64> {
    let id: String = member(frame, "task_id")?;
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    Some(hasher.finish())
}

/// The members of a frame. Their values are not read until they are wanted: the text of a result can be large.
type Frame<'a> = HashMap<String, &'a RawValue>;

/// Beginning of the text of a result that says so, in every version from 2.1.84 to 2.1.332. Not all of them have the status, which is 401, in a member.
const AUTH_REFUSED: &str = "Failed to authenticate";

/// True if the API has refused the login, by a result.
fn says_auth_refused(frame: &Frame) -> bool {
    let text: Option<String> = member(frame, "result");
    text.is_some_and(|text| text.starts_with(AUTH_REFUSED)) || member(frame, "api_error_status") == Some(401)
}

/// The member `key`, unless it is missing or of another type.
fn member<'a, T: Deserialize<'a>>(frame: &Frame<'a>, key: &str) -> Option<T> {
    serde_json::from_str(frame.get(key)?.get()).ok()
}

#[cfg(test)]
mod tests;
