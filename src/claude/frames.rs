//! What claude's stdout says of the run: result frames, and background tasks that are still open. Frames are found by
//! parsing, since their keys come in any order and their text may quote frames; a line that is too long is passed over.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use memchr::{memchr, memmem};
use serde::Deserialize;
use serde_json::value::RawValue;

/// What a frame told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameEvent {
    /// A result frame. A run can print several.
    Result {
        /// Its `is_error`.
        is_error: bool,
    },
    /// So many background tasks are open now.
    OpenTasks(u32),
    /// Another frame, after a result: the run goes on. Before the first result these are not told.
    Other,
}

/// What the last result frame says of the whole run; of a field that it lacks, nothing.
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
    /// Whether claude has done what it was asked for: its exit code alone does not tell.
    pub fn is_success(&self) -> bool {
        !self.is_error && self.subtype == "success"
    }
}

/// The longest line that is looked at.
const LONGEST_LINE: usize = 8 << 20;

/// Whether claude is asked, by its arguments, for output that has frames.
pub fn are_expected(arguments: &[OsString]) -> bool {
    let framed = |format: &[u8]| matches!(format, b"json" | b"stream-json");
    arguments.iter().enumerate().any(|(at, word)| match word.as_bytes().strip_prefix(b"--output-format") {
        Some(b"") => arguments.get(at + 1).is_some_and(|format| framed(format.as_bytes())),
        Some(format) => format.strip_prefix(b"=").is_some_and(framed),
        None => false,
    })
}

/// Looks at claude's stdout as it comes, in whatever pieces.
#[derive(Debug, Default)]
pub struct FrameReader {
    line: Vec<u8>,
    too_long: bool,
    last_result: Option<LastResult>,
    tasks: HashSet<String>,
}

impl FrameReader {
    /// Takes the next bytes and tells what the lines that end in them say.
    pub fn feed(&mut self, mut bytes: &[u8], mut tell: impl FnMut(FrameEvent)) {
        while let Some(end) = memchr(b'\n', bytes) {
            let (head, rest) = bytes.split_at(end);
            bytes = &rest[1..];
            if self.line.is_empty() && !self.too_long {
                self.look_at(head, &mut tell); // most lines come whole, and need no copy
                continue;
            }
            self.keep(head);
            let line = std::mem::take(&mut self.line);
            if !std::mem::take(&mut self.too_long) {
                self.look_at(&line, &mut tell);
            }
        }
        self.keep(bytes);
    }

    /// The output has ended: a last line may lack its newline.
    pub fn end(&mut self, mut tell: impl FnMut(FrameEvent)) {
        self.feed(b"\n", &mut tell);
    }

    /// The last result frame until now.
    pub fn last_result(&self) -> Option<&LastResult> {
        self.last_result.as_ref()
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.too_long |= self.line.len() + bytes.len() > LONGEST_LINE;
        if self.too_long {
            self.line = Vec::new();
        } else {
            self.line.extend_from_slice(bytes);
        }
    }

    fn look_at(&mut self, line: &[u8], tell: &mut impl FnMut(FrameEvent)) {
        if type_in_front(line).is_some_and(|kind| !matches!(kind, b"result" | b"system")) {
            // Of another frame it matters only that it came.
            if self.last_result.is_some() {
                tell(FrameEvent::Other);
            }
            return;
        }
        if self.last_result.is_none() && !may_matter(line) {
            return;
        }
        // A line that is no JSON, or JSON of another shape, is text: claude prints that in other formats.
        for frame in frames_of(line).unwrap_or_default() {
            if let Some(sighting) = self.understand(&frame) {
                tell(sighting);
            }
        }
    }

    fn understand(&mut self, frame: &Frame) -> Option<FrameEvent> {
        let kind: String = value(frame, "type")?;
        let subtype: Option<String> = value(frame, "subtype");
        let task: Option<String> = value(frame, "task_id");
        match (&*kind, subtype.as_deref()) {
            ("result", Some(subtype)) => {
                // Other programs have results, too: claude's have both of these, in every version.
                let is_error = value(frame, "is_error")?;
                self.last_result = Some(LastResult {
                    subtype: subtype.to_owned(),
                    is_error,
                    session_id: value(frame, "session_id"),
                    turns: value(frame, "num_turns"),
                    duration_ms: value(frame, "duration_ms"),
                    cost_usd: value(frame, "total_cost_usd"),
                });
                return Some(FrameEvent::Result { is_error });
            }
            ("system", Some("task_started")) => self.tasks.extend(task),
            ("system", Some("task_notification")) => self.tasks.retain(|open| Some(open) != task.as_ref()),
            ("system", Some("background_tasks_changed")) => {
                let tasks: Vec<Frame> = value(frame, "tasks")?;
                self.tasks = tasks.iter().filter_map(|task| value(task, "task_id")).collect();
            }
            _ => return self.last_result.is_some().then_some(FrameEvent::Other),
        }
        Some(FrameEvent::OpenTasks(u32::try_from(self.tasks.len()).unwrap_or(u32::MAX)))
    }
}

/// The type of a frame, where it is the first of its keys, as in most. Reading no further is many times as fast as reading
/// JSON. A result has it there in one version alone.
fn type_in_front(line: &[u8]) -> Option<&[u8]> {
    let key = line.strip_prefix(b"{")?.trim_ascii_start().strip_prefix(br#""type""#)?;
    let value = key.trim_ascii_start().strip_prefix(b":")?.trim_ascii_start().strip_prefix(b"\"")?;
    let kind = &value[..value.iter().position(|&byte| !(byte.is_ascii_lowercase() || byte == b'_'))?];
    (value.get(kind.len()) == Some(&b'"') && line.trim_ascii_end().ends_with(b"}")).then_some(kind)
}

/// Whether a line before the first result can be one, or be about tasks. It may say yes to any line, never no to such a
/// one: finding a word is several times as fast as reading JSON, and most lines have none of these.
fn may_matter(line: &[u8]) -> bool {
    [&b"result"[..], b"task", b"\\u"].into_iter().any(|word| memmem::find(line, word).is_some())
}

/// The keys of one object, its values not looked into.
type Frame<'a> = HashMap<String, &'a RawValue>;

/// The frames of a line: one object in `stream-json` and `json`, an array of them in `json --verbose`.
fn frames_of(line: &[u8]) -> serde_json::Result<Vec<Frame<'_>>> {
    match line.trim_ascii_start().first() {
        Some(b'{') => serde_json::from_slice(line).map(|frame| vec![frame]),
        Some(b'[') => serde_json::from_slice(line),
        _ => Ok(Vec::new()),
    }
}

/// The value of a frame's own key, if it has one of this type.
fn value<'a, T: Deserialize<'a>>(frame: &Frame<'a>, key: &str) -> Option<T> {
    serde_json::from_str(frame.get(key)?.get()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW: &str =
        r#"{"duration_api_ms":65,"result":"x","usage":{"type":"no"},"is_error":false,"subtype":"success","type":"result"}"#;
    const OLD: &str = r#"{"type":"result","subtype":"success","is_error":true,"result":"x"}"#;

    fn sightings(pieces: &[&[u8]]) -> Vec<FrameEvent> {
        let mut reader = FrameReader::default();
        let mut seen = Vec::new();
        pieces.iter().for_each(|piece| reader.feed(piece, |sighting| seen.push(sighting)));
        reader.end(|sighting| seen.push(sighting));
        seen
    }

    #[test]
    fn a_result_is_found_in_any_order_of_keys_with_spaces_and_in_arrays() {
        let fine = FrameEvent::Result { is_error: false };
        let bad = FrameEvent::Result { is_error: true };
        let spaced = "  { \"is_error\" : false , \"type\" : \"result\" , \"subtype\":\"success\" }\r";
        let escaped = r#"{"t\u0079pe":"res\u0075lt","is_error":false,"subtype":"success"}"#;
        let array = format!("[{{\"type\":\"system\",\"subtype\":\"init\"}},{NEW}]");
        for (line, expected) in [(NEW, fine), (OLD, bad), (spaced, fine), (escaped, fine), (&array, fine)] {
            assert_eq!(sightings(&[line.as_bytes()]), [expected], "{line}");
            assert_eq!(sightings(&[line.as_bytes(), b"\n"]), [expected], "{line}");
        }
    }

    #[test]
    fn the_last_result_is_kept_with_what_it_says_and_success_is_more_than_no_error() {
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
    fn text_that_looks_like_a_result_is_none() {
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
            "[[1,2],3]".into(),
            "{}".into(),
            "".into(),
        ] {
            assert_eq!(sightings(&[line.as_bytes()]), [], "{line}");
        }
    }

    #[test]
    fn it_does_not_matter_where_reads_split() {
        let text = format!("{NEW}\nplain text\n{OLD}\n\n{{\"type\":\"assistant\"}}\n");
        let whole = sightings(&[text.as_bytes()]);
        assert_eq!(whole, [FrameEvent::Result { is_error: false }, FrameEvent::Result { is_error: true }, FrameEvent::Other]);
        for first in 0..text.len() {
            for second in first..text.len() {
                let bytes = text.as_bytes();
                assert_eq!(sightings(&[&bytes[..first], &bytes[first..second], &bytes[second..]]), whole, "{first}, {second}");
            }
        }
    }

    #[test]
    fn a_line_that_is_too_long_is_passed_over_and_the_next_is_not() {
        let mut reader = FrameReader::default();
        let mut seen = Vec::new();
        let piece = vec![b'x'; 1 << 20];
        reader.feed(b"{\"type\":\"result\",\"is_error\":false,\"result\":\"", |sighting| seen.push(sighting));
        for _ in 0..9 {
            reader.feed(&piece, |sighting| seen.push(sighting));
            assert!(reader.line.capacity() <= 2 * LONGEST_LINE);
        }
        reader.feed(format!("\"}}\n{OLD}\n").as_bytes(), |sighting| seen.push(sighting));
        assert_eq!(seen, [FrameEvent::Result { is_error: true }]);
        // What is left of it is no line, even where it looks like one.
        seen.clear();
        reader.feed(&vec![b'x'; LONGEST_LINE + 1], |sighting| seen.push(sighting));
        reader.feed(format!("{OLD}\n").as_bytes(), |sighting| seen.push(sighting));
        assert_eq!(seen, []);
    }

    #[test]
    fn the_longest_line_is_looked_at_and_one_more_byte_is_too_much() {
        for (length, expected) in [(LONGEST_LINE, &[FrameEvent::Result { is_error: true }][..]), (LONGEST_LINE + 1, &[])] {
            let line = format!("{}{OLD}", " ".repeat(length - OLD.len()));
            let (first, second) = line.as_bytes().split_at(length / 2);
            assert_eq!(sightings(&[first, second]), expected, "{length}");
        }
    }

    #[test]
    fn what_is_cut_off_is_no_frame_behind_a_result_either() {
        for line in [r#"{"type":"assistant","message":"#, r#"{"type":"assistant"#, r#"{"type":"assistant","message":"x}"#] {
            let text = format!("{NEW}\n{line}\n");
            assert_eq!(sightings(&[text.as_bytes()]).len(), 1 + usize::from(line.ends_with('}')), "{line}");
        }
    }

    #[test]
    fn open_tasks_are_counted_as_both_versions_tell_them() {
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
            assert_eq!(sightings(&[text.as_bytes()]), expected);
        }
    }

    #[test]
    fn frames_are_expected_where_the_arguments_ask_for_them() {
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
