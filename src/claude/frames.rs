//! Frames on claude's stdout: results, and background tasks that are still open. They are found by parsing, since their keys
//! come in any order and their text may quote other frames. Lines that are too long are skipped.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use memchr::memchr;
use serde::Deserialize;
use serde_json::value::RawValue;

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
}

impl LastResult {
    /// True if claude did its task; its exit code alone does not say so.
    pub fn is_success(&self) -> bool {
        !self.is_error && self.subtype == "success"
    }
}

/// Length of the longest line that is parsed.
const MAX_LINE: usize = 8 << 20;

/// True if claude's arguments ask for an output format that has frames.
pub fn are_expected(arguments: &[OsString]) -> bool {
    have_format(arguments, b"--output-format", |format| matches!(format, b"json" | b"stream-json"))
}

/// True if claude's arguments say that messages come on stdin, one after the other.
pub fn input_is_streamed(arguments: &[OsString]) -> bool {
    have_format(arguments, b"--input-format", |format| format == b"stream-json")
}

fn have_format(arguments: &[OsString], option: &[u8], is_it: impl Fn(&[u8]) -> bool) -> bool {
    arguments.iter().enumerate().any(|(at, word)| match word.as_bytes().strip_prefix(option) {
        Some(b"") => arguments.get(at + 1).is_some_and(|format| is_it(format.as_bytes())),
        Some(format) => format.strip_prefix(b"=").is_some_and(&is_it),
        None => false,
    })
}

/// Reader of claude's stdout, in whatever pieces it comes.
#[derive(Debug, Default)]
pub struct FrameReader {
    line: Vec<u8>,
    too_long: bool,
    last_result: Option<LastResult>,
    session_id: Option<String>,
    tasks: HashSet<String>,
    is_between_turns: bool,
}

impl FrameReader {
    /// Reads the next bytes, and reports the frames of the lines that end in them.
    pub fn feed(&mut self, mut bytes: &[u8], mut report: impl FnMut(FrameEvent)) {
        while let Some(end) = memchr(b'\n', bytes) {
            let (head, rest) = bytes.split_at(end);
            bytes = &rest[1..];
            if self.line.is_empty() && !self.too_long {
                self.read_line(head, &mut report); // most lines come whole, and need no copy
                continue;
            }
            self.keep(head);
            let line = std::mem::take(&mut self.line);
            if !std::mem::take(&mut self.too_long) {
                self.read_line(&line, &mut report);
            }
        }
        self.keep(bytes);
    }

    /// Ends the output: the last line may lack its newline.
    pub fn end(&mut self, report: impl FnMut(FrameEvent)) {
        self.feed(b"\n", report);
    }

    /// The last result frame so far.
    pub fn last_result(&self) -> Option<&LastResult> {
        self.last_result.as_ref()
    }

    /// The session that the last turn belongs to, by the frame that begins it.
    pub(crate) fn session_id(&self) -> Option<&str> {
        self.session_id.as_deref()
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.too_long |= self.line.len() + bytes.len() > MAX_LINE;
        if self.too_long {
            self.line = Vec::new();
        } else {
            self.line.extend_from_slice(bytes);
        }
    }

    fn read_line(&mut self, line: &[u8], report: &mut impl FnMut(FrameEvent)) {
        if let Some(kind) = leading_type(line).filter(|kind| !matches!(*kind, b"result" | b"system")) {
            return self.other(kind, None).into_iter().for_each(report);
        }
        // Anything else is text: claude prints that in other formats.
        let frames = frames_of(line).unwrap_or_default();
        frames.iter().filter_map(|frame| self.on_frame(frame)).for_each(report);
    }

    fn on_frame(&mut self, frame: &Frame) -> Option<FrameEvent> {
        let kind: String = member(frame, "type")?;
        let subtype: Option<String> = member(frame, "subtype");
        let task: Option<String> = member(frame, "task_id");
        match (&*kind, subtype.as_deref()) {
            ("result", Some(subtype)) => {
                // Other programs print results as well; those of claude have both of these, in every version.
                let is_error = member(frame, "is_error")?;
                self.last_result = Some(LastResult {
                    subtype: clamped(subtype),
                    is_error,
                    session_id: member(frame, "session_id").map(|id: String| clamped(&id)),
                    turns: member(frame, "num_turns"),
                    duration_ms: member(frame, "duration_ms"),
                    cost_usd: member(frame, "total_cost_usd"),
                });
                self.is_between_turns = true;
                return Some(FrameEvent::Result { is_error });
            }
            ("system", Some("init")) => {
                self.session_id = member(frame, "session_id").map(|id: String| clamped(&id));
                return self.other(b"system", subtype.as_deref());
            }
            ("system", Some("task_started")) => self.tasks.extend(task),
            ("system", Some("task_notification")) => self.tasks.retain(|open| Some(open) != task.as_ref()),
            ("system", Some("background_tasks_changed")) => {
                let tasks: Vec<Frame> = member(frame, "tasks")?;
                self.tasks = tasks.iter().filter_map(|task| member(task, "task_id")).collect();
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

/// The members of a frame. Their values are not read until they are wanted: the text of a result can be large.
type Frame<'a> = HashMap<String, &'a RawValue>;

/// The frames of a line: one object in `stream-json` and `json`, an array of objects in `json --verbose`.
fn frames_of(line: &[u8]) -> serde_json::Result<Vec<Frame<'_>>> {
    match line.trim_ascii_start().first() {
        Some(b'{') => serde_json::from_slice(line).map(|frame| vec![frame]),
        Some(b'[') => serde_json::from_slice(line),
        _ => Ok(Vec::new()),
    }
}

/// As much of `text` as is kept: others can put anything into a frame.
fn clamped(text: &str) -> String {
    text.chars().take(1024).collect()
}

/// The member `key`, unless it is missing or of another type.
fn member<'a, T: Deserialize<'a>>(frame: &Frame<'a>, key: &str) -> Option<T> {
    serde_json::from_str(frame.get(key)?.get()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW: &str =
        r#"{"duration_api_ms":65,"result":"x","usage":{"type":"no"},"is_error":false,"subtype":"success","type":"result"}"#;
    const OLD: &str = r#"{"type":"result","subtype":"success","is_error":true,"result":"x"}"#;

    fn events_of(pieces: &[&[u8]]) -> Vec<FrameEvent> {
        let mut reader = FrameReader::default();
        let mut seen = Vec::new();
        pieces.iter().for_each(|piece| reader.feed(piece, |event| seen.push(event)));
        reader.end(|event| seen.push(event));
        seen
    }

    #[test]
    fn a_result_is_found_in_any_layout() {
        let fine = FrameEvent::Result { is_error: false };
        let bad = FrameEvent::Result { is_error: true };
        let spaced = "  { \"is_error\" : false , \"type\" : \"result\" , \"subtype\":\"success\" }\r";
        let escaped = r#"{"t\u0079pe":"res\u0075lt","is_error":false,"subtype":"success"}"#;
        let array = format!("[{{\"type\":\"system\",\"subtype\":\"init\"}},{NEW}]");
        for (line, expected) in [(NEW, fine), (OLD, bad), (spaced, fine), (escaped, fine), (&array, fine)] {
            assert_eq!(events_of(&[line.as_bytes()]), [expected], "{line}");
            assert_eq!(events_of(&[line.as_bytes(), b"\n"]), [expected], "{line}");
        }
    }

    #[test]
    fn the_last_result_is_kept_with_its_fields() {
        let mut reader = FrameReader::default();
        assert_eq!(reader.last_result(), None);
        let text = format!(
            "{NEW}\n{}\n",
            r#"{"type":"result","subtype":"error_max_turns","is_error":false,"session_id":"s","num_turns":3,"duration_ms":5,"total_cost_usd":0.25}"#
        );
        reader.feed(text.as_bytes(), |_| {});
        let expected = LastResult {
            subtype: "error_max_turns".into(),
            is_error: false,
            session_id: Some("s".into()),
            turns: Some(3),
            duration_ms: Some(5),
            cost_usd: Some(0.25),
        };
        assert_eq!(reader.last_result(), Some(&expected));
        assert!(!expected.is_success());
        assert!(LastResult { subtype: "success".into(), ..expected.clone() }.is_success());
        assert!(!LastResult { subtype: "success".into(), is_error: true, ..expected }.is_success());
    }

    #[test]
    fn quoted_and_foreign_results_do_not_count() {
        let quoted = serde_json::to_string(NEW).unwrap_or_default();
        for line in [
            format!(r#"{{"type":"assistant","message":{quoted}}}"#),
            format!(r#"{{"type":"user","content":{NEW}}}"#),
            format!(r#"{{"type":"user","content":[{NEW}]}}"#),
            quoted,
            format!("x{NEW}"),
            NEW[..NEW.len() - 1].to_owned(),
            format!("{NEW}{NEW}"),
            // Of other programs.
            r#"{"type":"result","status":"success","is_error":false}"#.into(),
            r#"{"type":"result","subtype":"success"}"#.into(),
            r#"{"type":"result","subtype":"success","is_error":"no"}"#.into(),
            format!("[3,{NEW}]"),
            r#"["result","success",false]"#.into(),
            r#"[["result","success",false]]"#.into(),
            "{}".into(),
            "".into(),
        ] {
            assert_eq!(events_of(&[line.as_bytes()]), [], "{line}");
        }
    }

    #[test]
    fn reads_may_split_anywhere() {
        let text = format!("{NEW}\nplain text\n{OLD}\n\n{{\"type\":\"assistant\"}}\n");
        let whole = events_of(&[text.as_bytes()]);
        assert_eq!(whole, [FrameEvent::Result { is_error: false }, FrameEvent::Result { is_error: true }, FrameEvent::Other]);
        for first in 0..text.len() {
            for second in first..text.len() {
                let bytes = text.as_bytes();
                assert_eq!(events_of(&[&bytes[..first], &bytes[first..second], &bytes[second..]]), whole, "{first}, {second}");
            }
        }
    }

    #[test]
    fn an_overlong_line_is_skipped_alone() {
        let mut reader = FrameReader::default();
        let mut seen = Vec::new();
        let piece = vec![b'x'; 1 << 20];
        reader.feed(b"{\"type\":\"result\",\"is_error\":false,\"result\":\"", |event| seen.push(event));
        for _ in 0..9 {
            reader.feed(&piece, |event| seen.push(event));
            assert!(reader.line.capacity() <= 2 * MAX_LINE);
        }
        reader.feed(format!("\"}}\n{OLD}\n").as_bytes(), |event| seen.push(event));
        assert_eq!(seen, [FrameEvent::Result { is_error: true }]);
        // The rest of a skipped line may look like a whole one.
        seen.clear();
        reader.feed(&vec![b'x'; MAX_LINE + 1], |event| seen.push(event));
        reader.feed(format!("{OLD}\n").as_bytes(), |event| seen.push(event));
        assert_eq!(seen, []);
    }

    #[test]
    fn a_line_of_maximum_length_is_read() {
        for (length, expected) in [(MAX_LINE, &[FrameEvent::Result { is_error: true }][..]), (MAX_LINE + 1, &[])] {
            let line = format!("{}{OLD}", " ".repeat(length - OLD.len()));
            let (first, second) = line.as_bytes().split_at(length / 2);
            assert_eq!(events_of(&[first, second]), expected, "{length}");
        }
    }

    #[test]
    fn a_cut_line_is_no_frame() {
        for line in [r#"{"type":"assistant","message":"#, r#"{"type":"assistant"#, r#"{"type":"assistant","message":"x}"#] {
            let text = format!("{NEW}\n{line}\n");
            assert_eq!(events_of(&[text.as_bytes()]).len(), 1 + usize::from(line.ends_with('}')), "{line}");
        }
    }

    #[test]
    fn open_tasks_are_counted_for_both_versions() {
        let old = [
            (r#"{"type":"system","subtype":"task_started","task_id":"a"}"#, 1),
            (r#"{"type":"system","subtype":"task_started","task_id":"b"}"#, 2),
            (r#"{"type":"system","subtype":"task_started","task_id":"c"}"#, 3),
            (r#"{"type":"system","subtype":"task_notification","task_id":"a"}"#, 2),
            (r#"{"type":"system","subtype":"task_notification","task_id":"a"}"#, 2),
        ];
        let new = [
            (r#"{"type":"system","subtype":"background_tasks_changed","tasks":[{"task_id":"a"},{"task_id":"b"}]}"#, 2),
            (r#"{"type":"system","subtype":"task_started","task_id":"a"}"#, 2),
            (r#"{"type":"system","subtype":"task_notification","task_id":"a"}"#, 1),
            (r#"{"type":"system","subtype":"background_tasks_changed","tasks":[]}"#, 0),
        ];
        for told in [&old[..], &new[..]] {
            let text: String = told.iter().map(|(line, _)| format!("{line}\n")).collect();
            let expected: Vec<_> = told.iter().map(|&(_, open)| FrameEvent::OpenTasks(open)).collect();
            assert_eq!(events_of(&[text.as_bytes()]), expected);
        }
    }

    #[test]
    fn frames_are_expected_by_output_format() {
        let expected = |words: &[&str]| are_expected(&words.iter().map(OsString::from).collect::<Vec<_>>());
        assert!(expected(&["claude", "-p", "x", "--output-format", "json"]));
        assert!(expected(&["claude", "--output-format=stream-json", "-p", "x"]));
        for words in [
            &["claude"][..],
            &["claude", "--output-format"],
            &["claude", "--output-format", "text"],
            &["--output-format=jsonl"],
        ] {
            assert!(!expected(words), "{words:?}");
        }
    }
}
