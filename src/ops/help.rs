//! `claude-run help`: the guide, and the help of each operation. On a terminal, what is longer than that goes through a pager.

mod markdown;

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Seek, Write, stdout};
use std::os::unix::process::CommandExt;
use std::process::Command;

use anstream::{AutoStream, ColorChoice};
use anyhow::{Context as _, Result, bail};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::{Context, layout, write_own};
use crate::config::cli::command;
use crate::config::values::nearest;
use crate::guide::TOPICS;
use crate::logging::in_locale;
use crate::outcome::Outcome;
use crate::sys::terminal;

/// Shows the help on `topic`. A chapter that no terminal shows stays the Markdown that it is.
pub(super) fn show(context: &Context, topic: Option<&str>, out: &mut impl Write) -> Result<Outcome> {
    let chapter = TOPICS.iter().find(|(name, _)| Some(*name) == topic).map(|(_, chapter)| *chapter);
    let size = terminal::size_of(stdout());
    // Prose has room for three points, where a mark for what is cut has one column.
    let in_prose =
        |text: &str| in_locale(&if in_locale("…") == "…" { text.into() } else { text.replace('…', "...") }).into_owned();
    let text = match chapter {
        Some(chapter) if size.is_some() => markdown::rendered(&in_prose(chapter), layout::width()),
        Some(chapter) => in_prose(chapter),
        None => in_prose(&topic_of_parser(topic)?),
    };
    if size.is_some_and(|size| text.lines().count() >= usize::from(size.ws_row)) {
        page(context, &text);
    }
    write_own(out, &text).map(|_| Outcome::Shown)
}

/// Help of an operation; without a topic, all of the help, and the topics.
fn topic_of_parser(topic: Option<&str>) -> Result<String> {
    let mut command = command();
    command.build();
    let topics = || TOPICS.iter().map(|(name, _)| *name);
    let Some(topic) = topic else {
        let names = topics().collect::<Vec<_>>();
        let topics = names.chunks(7).map(|row| row.join(", ")).collect::<Vec<_>>().join(",\n  ");
        return Ok(format!("{}\nTopics of `claude-run help TOPIC`:\n  {topics}\n", command.render_long_help().ansi()));
    };
    if let Some(operation) = command.find_subcommand_mut(topic) {
        return Ok(operation.render_long_help().ansi().to_string());
    }
    let names = topics().chain(command.get_subcommands().map(|operation| operation.get_name()));
    let similar =
        nearest(&topic.to_lowercase(), names, 0.7).map(|similar| format!("; did you mean {similar:?}?")).unwrap_or_default();
    bail!("there is no topic {topic:?}{similar} (topics are {})", topics().collect::<Vec<_>>().join(", "))
}

/// Becomes the pager of `text`. Returns if there is none: unwanted, not installed, or for a terminal that cannot.
fn page(context: &Context, text: &str) {
    let variable = |name: &str| (context.environment)(name);
    if variable("TERM").is_none_or(|kind| kind.is_empty() || kind == "dumb") {
        return;
    }
    let pagers = match variable("PAGER") {
        Some(pager) => vec![pager.to_str().and_then(|pager| shell_words::split(pager).ok()).unwrap_or_default()],
        None => vec![vec!["less".to_owned()], vec!["more".to_owned()]],
    };
    for words in pagers.iter().filter(|words| words.first().is_some_and(|name| name != "cat")) {
        // Without a way to pass the text, or without this pager, the next one is tried.
        let _ = start(words, text, variable("LESS"));
    }
}

/// Executes `words` with `text` as its stdin; nothing has to be waited for. Only less is known to show colours.
fn start(words: &[String], text: &str, options: Option<OsString>) -> Result<()> {
    let (name, arguments) = words.split_first().context("no pager")?;
    let shows_colours = match &options {
        None => is_less(name),
        Some(options) => is_less(name) && options.to_string_lossy().contains(['R', 'r']),
    };
    let has_colours = shows_colours && AutoStream::choice(&stdout()) != ColorChoice::Never;
    let text = if has_colours { text.to_owned() } else { anstream::adapter::strip_str(text).to_string() };
    let mut file = File::from(memfd_create(c"claude-run help", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(text.as_bytes())?;
    file.rewind()?;
    let mut pager = Command::new(name);
    pager.args(arguments).env("LESS", options.unwrap_or("R".into())).stdin(file);
    Err(pager.exec().into())
}

/// True if `name` leads to less itself, and not to busybox's.
fn is_less(name: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut dirs: Vec<_> = env::split_paths(&path).collect();
    if name.contains('/') {
        dirs = vec![".".into()];
    }
    dirs.iter().find_map(|dir| fs::canonicalize(dir.join(name)).ok()).is_some_and(|found| found.ends_with("less"))
}
