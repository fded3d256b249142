//! Any bytes, cut anywhere: the frame reader never panics, and reports the same frames wherever they are cut.
#![no_main]

use claude_run::claude::frames::FrameReader;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, &[u8])| {
    let (step, bytes) = input;
    let seen_in = |step: usize| {
        let (mut reader, mut seen) = (FrameReader::default(), Vec::new());
        for piece in bytes.chunks(step.max(1)) {
            reader.feed(piece, |event| seen.push(event));
        }
        let is_complete = reader.end(|event| seen.push(event));
        (seen, is_complete, reader.last_result().cloned())
    };
    assert_eq!(seen_in(step.into()), seen_in(bytes.len()));
});
