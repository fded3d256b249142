//! Tests of which frames are found, however they come.

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
fn result_is_found_in_any_layout() {
    let fine = FrameEvent::Result { is_error: false };
    let bad = FrameEvent::Result { is_error: true };
    let spaced = "  { \"is_error\" : false , \"type\" : \"result\" , \"subtype\":\"success\" }\r";
    let escaped = r#"{"t\u0079pe":"res\u0075lt","is_error":false,"subtype":"success"}"#;
    let array = format!("[{{\"type\":\"system\",\"subtype\":\"init\"}},{NEW}]");
    let signs = format!(r#"[{{"t":"\"],[,\\"}},{NEW}]"#);
    for (line, expected) in [(NEW, fine), (OLD, bad), (spaced, fine), (escaped, fine), (&array, fine), (&signs, fine)] {
        assert_eq!(events_of(&[line.as_bytes()]), [expected], "{line}");
        assert_eq!(events_of(&[line.as_bytes(), b"\n"]), [expected], "{line}");
    }
}

#[test]
fn last_result_is_kept_with_its_fields() {
    let mut reader = FrameReader::default();
    assert_eq!(reader.last_result(), None);
    let text = format!(
        "{NEW}\n{}\n",
        r#"{"type":"result","subtype":"error_max_turns","is_error":false,"session_id":"s","num_turns":3,"duration_ms":5,"total_cost_usd":0.25}"#
    );
    reader.feed(text.as_bytes(), |_| {});
    let expected = LastResult {
        auth_refused: false,
        is_outdated: false,
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
fn result_is_outdated_by_a_new_turn_or_a_cut_frame() {
    let init = r#"{"type":"system","subtype":"init","session_id":"s"}"#;
    let task = r#"{"type":"system","subtype":"task_notification","task_id":"1"}"#;
    for (text, expected) in [
        (format!("{NEW}\n"), false),
        (NEW.to_owned(), false),
        (format!("{NEW}\n{init}\n"), true),
        (format!("{NEW}\n{init}\n{NEW}\n"), false),
        (format!("{NEW}\n{task}\n"), false),
        (format!("{NEW}\n{}", &OLD[..OLD.len() - 9]), true),
        (format!("[{init},{NEW}]"), false),
        (format!("[{init},{NEW},"), true),
        (format!("{NEW}\ntext\n"), false),
        (format!("{NEW}\n{{text"), false),
        (format!("{NEW}\n{{"), true),
    ] {
        let mut reader = FrameReader::default();
        reader.feed(text.as_bytes(), |_| {});
        reader.end(|_| {});
        assert_eq!(reader.last_result().map(|result| result.is_outdated), Some(expected), "{text}");
    }
}

#[test]
fn refused_login_is_known_by_text_or_status() {
    let is_refused = |members: &str| {
        let mut reader = FrameReader::default();
        reader.feed(format!("{{\"type\":\"result\",\"subtype\":\"success\",{members}}}\n").as_bytes(), |_| {});
        reader.last_result().map(|result| result.auth_refused)
    };
    for (members, refused) in [
        (r#""is_error":true,"result":"Failed to authenticate. API Error: 401""#, true),
        (r#""is_error":true,"result":"x","api_error_status":401"#, true),
        (r#""is_error":true,"api_error_status":529,"result":"It said: Failed to authenticate""#, false),
        (r#""is_error":true"#, false),
        (r#""is_error":false,"result":"Failed to authenticate is what it says""#, false),
    ] {
        assert_eq!(is_refused(members), Some(refused), "{members}");
    }
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
    let text = format!("{NEW}\nplain text\n{OLD}\n\n [{{\"type\":\"assistant\"}} ,{NEW}] \n");
    let whole = events_of(&[text.as_bytes()]);
    let [fine, bad] = [false, true].map(|is_error| FrameEvent::Result { is_error });
    assert_eq!(whole, [fine, bad, FrameEvent::TurnStarted, fine]);
    for first in 0..text.len() {
        for second in first..text.len() {
            let bytes = text.as_bytes();
            assert_eq!(events_of(&[&bytes[..first], &bytes[first..second], &bytes[second..]]), whole, "{first}, {second}");
        }
    }
}

#[test]
fn overlong_frame_is_skipped_alone() {
    for (open, close) in [("", "\n"), ("[{}, ", ", ")] {
        let mut reader = FrameReader::default();
        let mut seen = Vec::new();
        let piece = vec![b'x'; 1 << 20];
        reader
            .feed(format!("{open}{{\"type\":\"result\",\"is_error\":false,\"result\":\"").as_bytes(), |event| seen.push(event));
        for _ in 0..9 {
            reader.feed(&piece, |event| seen.push(event));
            assert!(reader.frame.bytes.capacity() <= 2 * abridged::MAX_FRAME);
        }
        reader.feed(format!("\"}}{close}{OLD}\n").as_bytes(), |event| seen.push(event));
        let expected = if open.is_empty() { &[FrameEvent::Result { is_error: true }][..] } else { &[] };
        assert_eq!(seen, expected, "an element ends with a comma");
        // The rest of a skipped line may look like a whole one.
        seen.clear();
        reader.feed(&vec![b'x'; abridged::MAX_FRAME + 1], |event| seen.push(event));
        reader.feed(format!("{OLD}\n").as_bytes(), |event| seen.push(event));
        assert_eq!(seen, []);
        reader.feed(format!("{{{}", " ".repeat(abridged::MAX_FRAME)).as_bytes(), |event| seen.push(event));
        assert!(reader.end(|event| seen.push(event)), "what is skipped is not missed");
    }
}

#[test]
fn frame_of_maximum_length_is_read() {
    for (length, expected) in
        [(abridged::MAX_FRAME, &[FrameEvent::Result { is_error: true }][..]), (abridged::MAX_FRAME + 1, &[])]
    {
        let line = format!("{{{}{}", " ".repeat(length - OLD.len()), &OLD[1..]);
        let (first, second) = line.as_bytes().split_at(length / 2);
        assert_eq!(events_of(&[first, second]), expected, "{length}");
    }
}

#[test]
fn array_of_any_length_is_read() {
    let mut reader = FrameReader::default();
    let mut seen = Vec::new();
    let element = format!("{{\"type\":\"user\",\"content\":[\"{}\\\\\", \"\\\"]\", {NEW}]}} ,\n", "x".repeat(1 << 20));
    reader.feed(b"[", |event| seen.push(event));
    for _ in 0..20 {
        reader.feed(element.trim_end().as_bytes(), |event| seen.push(event));
        assert!(reader.frame.bytes.capacity() <= 2 * abridged::MAX_FRAME);
    }
    reader.feed(OLD.as_bytes(), |event| seen.push(event));
    assert_eq!(seen, []);
    reader.feed(b"]", |event| seen.push(event));
    assert_eq!(seen, [FrameEvent::Result { is_error: true }]);
    assert!(reader.end(|event| seen.push(event)));
    assert_eq!(seen.len(), 1);
}

/// A megabyte of screenshot, or of answer, in the result itself.
#[test]
fn result_with_a_text_of_any_length_is_read() {
    let text = "x".repeat(9 << 20);
    let result = format!(r#"{{"duration_ms":1,"result":"{text}","type":"result","is_error":true,"subtype":"success"}}"#);
    for (open, close) in [("", "\n"), ("[{}, ", "]\n")] {
        let mut seen = Vec::new();
        let mut reader = FrameReader::default();
        for piece in format!("{open}{result}{close}").as_bytes().chunks(1 << 16) {
            reader.feed(piece, |event| seen.push(event));
            assert!(reader.frame.bytes.capacity() <= 1 << 18);
        }
        assert_eq!(seen, [FrameEvent::Result { is_error: true }], "{open}");
        assert_eq!(reader.last_result().and_then(|result| result.duration_ms), Some(1));
    }
}

#[test]
fn frame_without_its_newline_is_read_at_a_pause() {
    let mut seen = Vec::new();
    for (text, expected) in [(NEW, 1), (&NEW[..NEW.len() - 1], 0), ("{\"type\":\"result\"}}", 0), ("text}", 0), (" [{}", 0)] {
        let mut reader = FrameReader::default();
        reader.feed(text.as_bytes(), |event| seen.push(event));
        assert_eq!((seen.len(), reader.may_be_complete()), (0, text.starts_with('{') && text.ends_with('}')), "{text}");
        reader.pause(|event| seen.push(event));
        reader.pause(|event| seen.push(event));
        assert_eq!(seen.len(), expected, "{text}");
        reader.feed(b"\r\n{", |event| seen.push(event));
        reader.feed(format!("{}\n", &OLD[1..]).as_bytes(), |event| seen.push(event));
        assert_eq!(seen.len(), expected + 1, "{text}");
        seen.clear();
    }
    let mut reader = FrameReader::default();
    let (head, tail) = NEW.split_at(NEW.find("},").map_or(0, |at| at + 1));
    reader.feed(head.as_bytes(), |event| seen.push(event));
    reader.pause(|event| seen.push(event));
    assert!(seen.is_empty(), "it ends with the end of a member");
    reader.feed(format!("{tail}\n").as_bytes(), |event| seen.push(event));
    assert_eq!(seen, [FrameEvent::Result { is_error: false }]);
}

#[test]
fn output_that_ends_within_a_frame_is_noticed() {
    for (text, is_complete) in [
        ("", true),
        ("text", true),
        (NEW, true),
        (&NEW[..NEW.len() - 1], false),
        (" [{}, {}", false),
        ("[{}]", true),
        ("{}\n{\n", true),
    ] {
        let mut reader = FrameReader::default();
        reader.feed(text.as_bytes(), |_| {});
        assert_eq!(reader.end(|_| {}), is_complete, "{text}");
    }
}

#[test]
fn cut_line_is_no_frame() {
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
    for words in
        [&["claude"][..], &["claude", "--output-format"], &["claude", "--output-format", "text"], &["--output-format=jsonl"]]
    {
        assert!(!expected(words), "{words:?}");
    }
}

#[test]
fn output_comes_all_at_once_by_format() {
    let at_once = |words: &[&str]| come_all_at_once(&words.iter().map(OsString::from).collect::<Vec<_>>());
    assert!(at_once(&["claude", "-p", "x"]));
    assert!(at_once(&["claude", "--output-format", "json", "--print"]));
    assert!(at_once(&["claude", "-p", "x", "--output-format=text"]));
    assert!(!at_once(&["claude", "-p", "x", "--output-format=stream-json"]));
    assert!(!at_once(&["claude", "--output-format", "stream-json", "-p"]));
    assert!(!at_once(&["claude"]));
}

#[test]
fn input_is_streamed_only_where_it_is_said() {
    let streamed = |words: &[&str]| input_is_streamed(&words.iter().map(OsString::from).collect::<Vec<_>>());
    assert!(streamed(&["claude", "-p", "--input-format", "stream-json"]));
    assert!(!streamed(&["claude", "-p", "--output-format", "stream-json", "--input-format=text"]));
}

#[test]
fn session_is_that_of_the_last_init() {
    let mut reader = FrameReader::default();
    for id in ["a", "b"] {
        let frame = format!("{{\"type\":\"system\",\"subtype\":\"init\",\"session_id\":\"{id}\"}}\n");
        reader.feed(frame.as_bytes(), |_| {});
        assert_eq!(reader.session_id(), Some(id));
    }
}
