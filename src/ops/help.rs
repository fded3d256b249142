//! `claude-run help`: the guide, and the help of each operation.

use anyhow::{Result, bail};

use crate::config::cli::{command, nearest};
use crate::guide::TOPICS;

/// A chapter of the guide, or the help of an operation; without a topic, all of the help, and the topics.
pub(super) fn topic(topic: Option<&str>) -> Result<String> {
    let mut command = command();
    command.build();
    let topics = || TOPICS.iter().map(|(name, _)| *name);
    let Some(topic) = topic else {
        let topics = topics().collect::<Vec<_>>().join(", ");
        return Ok(format!("{}\nTopics of `claude-run help TOPIC`: {topics}\n", command.render_long_help().ansi()));
    };
    if let Some((_, chapter)) = TOPICS.iter().find(|(name, _)| *name == topic) {
        return Ok((*chapter).to_owned());
    }
    if let Some(operation) = command.find_subcommand_mut(topic) {
        return Ok(operation.render_long_help().ansi().to_string());
    }
    let names = topics().chain(command.get_subcommands().map(|operation| operation.get_name()));
    let similar = nearest(topic, names, 0.7).map(|similar| format!("; did you mean {similar:?}?")).unwrap_or_default();
    bail!("there is no topic {topic:?}{similar} (topics are {})", topics().collect::<Vec<_>>().join(", "))
}
