//! The man page, and the scripts by which shells complete a command line.

use std::io::{self, Write};

use clap::builder::{PossibleValuesParser, ValueHint};
use clap::{Arg, Command, ValueEnum};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, italic, roman};

use crate::config::cli::{self, LOCK_MODE, MODES, OPTIONS, Takes};
use crate::config::help::{Body, MAN, WHATIS};

const NAME: &str = "claude-run";

/// The script by which `shell` completes a command line.
pub(crate) fn completions(shell: &str) -> io::Result<String> {
    let shell = Shell::from_str(shell, false).map_err(io::Error::other)?;
    let (command, operations) = cli::parsers();
    // Without COMMAND, which could be anything, and would keep zsh from what is behind the name of an operation.
    let options = command.get_arguments().filter(|arg| !arg.is_positional()).cloned().map(with_hints);
    let operations = operations.into_iter().map(|operation| operation.mut_args(with_hints));
    let mut command = Command::new(NAME).disable_help_subcommand(true).version("").args(options).subcommands(operations);
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, NAME, &mut script);
    let script = String::from_utf8(script).map_err(io::Error::other)?;
    // clap issue 6421: with a hyphen in the program's name, the script for bash calls a place by two names.
    Ok(script.replace("claude__subcmd__run", "claude__run"))
}

/// Tells what can be the value of `arg`. The parser itself does not know, since it is `settings` that refuses a value, wherever
/// that comes from.
fn with_hints(arg: Arg) -> Arg {
    let option = OPTIONS.into_iter().find(|option| arg.get_id() == option.flag);
    match option.map(|option| option.takes) {
        Some(Takes::Words(words)) => arg.value_parser(PossibleValuesParser::new(words)),
        Some(Takes::Switch) => arg.value_parser(PossibleValuesParser::new(["on", "off"])),
        Some(Takes::Directory) => arg.value_hint(ValueHint::DirPath),
        Some(Takes::File) => arg.value_hint(ValueHint::FilePath),
        Some(Takes::Program) => arg.value_hint(ValueHint::ExecutablePath),
        Some(Takes::Text) => arg.value_hint(ValueHint::Other),
        None if arg.get_id() == LOCK_MODE => arg.value_parser(PossibleValuesParser::new(MODES)),
        None => arg,
    }
}

/// claude-run(1), of `date`.
pub(crate) fn man_page(date: &str) -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    let (command, operations) = cli::parsers();
    let man = Man::new(built(command.about(WHATIS)))
        .title("CLAUDE-RUN")
        .source(concat!("claude-run ", env!("CARGO_PKG_VERSION")))
        .date(date)
        .manual("User Commands");
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    let mut roff = Roff::new();
    roff.control("SH", ["OPERATIONS"]);
    roff.text([roman(
        "A program of that name goes behind `--`. Each knows --help; those that look into a config dir take --json, ",
    )]);
    roff.text([roman(
        "--config-dir and --lock-file as well. They end with 0 if all is well, and with 1 if they have found trouble.",
    )]);
    roff.to_writer(&mut page)?;
    for operation in operations {
        let own =
            |arg: Arg| if ["json", "config-dir", "lock-file"].contains(&arg.get_id().as_str()) { arg.hide(true) } else { arg };
        render_operation(built(operation.disable_help_flag(true).mut_args(own)), &mut page)?;
    }
    render_sections(&mut page)?;
    Ok(page)
}

fn render_operation(mut operation: Command, page: &mut Vec<u8>) -> io::Result<()> {
    let usage = operation.render_usage().to_string();
    let about = operation.get_long_about().or(operation.get_about()).map(ToString::to_string);
    let mut roff = Roff::new();
    roff.control("SS", [operation.get_name()]);
    roff.text([italic(usage.trim_start_matches("Usage: "))]);
    roff.control("PP", []);
    roff.text([roman(about.unwrap_or_default())]);
    roff.to_writer(page)?;
    // The options alone, without the heading of a section of their own.
    let mut options = Vec::new();
    Man::new(operation).render_options_section(&mut options)?;
    for line in options.split_inclusive(|&byte| byte == b'\n').filter(|line| !line.starts_with(b".SH ")) {
        page.write_all(line)?;
    }
    Ok(())
}

fn render_sections(page: &mut Vec<u8>) -> io::Result<()> {
    let mut roff = Roff::new();
    for (title, section) in MAN {
        roff.control("SH", [title]);
        match section.body {
            Body::Prose(text) => drop(roff.text([roman(text)])),
            Body::Terms(terms) => {
                for (term, meaning) in terms {
                    roff.control("TP", []).text([bold(*term)]).text([roman(*meaning)]);
                }
            }
        }
    }
    roff.control("SH", ["SEE ALSO"]);
    let others = [("claude", "(1), "), ("flock", "(1), "), ("timeout", "(1), "), ("flock", "(2)")];
    roff.text(others.into_iter().flat_map(|(name, section)| [bold(name), roman(section)]).collect::<Vec<_>>());
    roff.to_writer(page)
}

/// What a parser knows of itself is settled when it is built.
fn built(mut command: Command) -> Command {
    command.build();
    command
}
