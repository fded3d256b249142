//! The man page, and the scripts by which shells complete a command line.

use std::any::TypeId;
use std::fs;
use std::io::{self, Write};

use clap::builder::{PossibleValue, PossibleValuesParser};
use clap::{Arg, Command, ValueEnum, ValueHint};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, italic, roman};

use crate::config::cli;
use crate::config::help::{OTHER_VARIABLES, SECTIONS, USAGE, WHATIS};
use crate::config::options::{OPTIONS, VERBOSITY};
use crate::config::values::{LockMode, Shell, Value, Words};

#[path = "completions.rs"]
mod completions;

const NAME: &str = "claude-run";

/// Script by which `shell` completes a command line.
pub(crate) fn completions(shell: &str) -> io::Result<String> {
    let shell = clap_complete::Shell::from_str(shell, false).map_err(io::Error::other)?;
    let described = cli::command();
    // Without COMMAND, which could be anything, and would keep zsh from what follows the name of an operation.
    let options = described.get_arguments().filter(|arg| !arg.is_positional()).cloned();
    let operations = described.get_subcommands().cloned();
    let mut command = bare().version("").args(options).subcommands(operations);
    let topics = PossibleValuesParser::new(topics());
    command = command
        .mut_args(|arg| {
            let words = OPTIONS.iter().find(|option| arg.get_id() == option.name).map_or(&[][..], |option| option.words);
            with_hint(arg, words)
        })
        .mut_subcommands(|operation| operation.mut_args(|arg| with_hint(arg.clone(), words_of_type(&arg))))
        .mut_subcommand("help", |help| help.mut_arg("topic", |topic| topic.value_parser(topics)));
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, NAME, &mut script);
    let script = String::from_utf8(script).map_err(io::Error::other)?;
    match shell {
        // clap issue 6421: with a hyphen in the program's name, the script for bash calls a place by two names.
        clap_complete::Shell::Bash => completions::for_bash(&script.replace("claude__subcmd__run", "claude__run"), &command),
        clap_complete::Shell::Fish => completions::for_fish(&script, &command),
        _ => completions::for_zsh(&script, &command),
    }
}

/// A command with the flags of the parser alone.
fn bare() -> Command {
    Command::new(NAME).disable_help_subcommand(true).disable_help_flag(true).disable_version_flag(true)
}

/// Words that the value of an operation's `arg` can be. By its type: operations share names of arguments, and those of options.
fn words_of_type(arg: &Arg) -> Words {
    let types = [(TypeId::of::<LockMode>(), LockMode::WORDS), (TypeId::of::<Shell>(), Shell::WORDS)];
    let own = arg.get_value_parser().type_id();
    types.into_iter().find(|(of_type, _)| own == *of_type).map_or(&[], |(_, words)| words)
}

/// Tells shells what can stand behind an option, and to complete file names only where one is wanted.
fn with_hint(arg: Arg, words: Words) -> Arg {
    if !words.is_empty() {
        let value = |(word, meaning): &(&'static str, &'static str)| {
            PossibleValue::new(*word).help((!meaning.is_empty()).then_some(*meaning))
        };
        return arg.value_parser(PossibleValuesParser::new(words.iter().map(value)));
    }
    let value_name = arg.get_value_names().and_then(|names| names.first()).map(|name| name.as_str());
    let hint = match (arg.get_id().as_str(), value_name) {
        ("claude", _) => ValueHint::ExecutablePath,
        (_, Some("DIR")) => ValueHint::DirPath,
        (_, Some("FILE" | "PATH")) => ValueHint::FilePath,
        _ => ValueHint::Other,
    };
    if arg.get_action().takes_values() { arg.value_hint(hint) } else { arg }
}

/// Topics of `help`: the chapters of the guide, and the operations.
fn topics() -> Vec<&'static str> {
    let chapters = fs::read_dir("src/guide").into_iter().flatten().flatten();
    let chapters = chapters.filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(".md")?.to_owned()));
    let mut topics: Vec<_> = chapters.collect();
    topics.sort();
    topics.extend(cli::command().get_subcommands().map(|operation| operation.get_name().to_owned()));
    topics.into_iter().map(|topic| &*topic.leak()).collect() // in the build script, whose end is near
}

/// claude-run(1), of `date`.
pub(crate) fn man_page(date: &str) -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    let described = cli::command();
    let description = described.get_long_about().cloned().unwrap_or_default();
    let options = described.get_arguments().filter(|arg| !arg.is_positional()).cloned();
    let command = bare().version("").about(WHATIS).long_about(description).args(options);
    let man = Man::new(built(command))
        .title("CLAUDE-RUN")
        .source(concat!("claude-run ", env!("CARGO_PKG_VERSION")))
        .date(date)
        .manual("User Commands");
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    render_synopsis(&mut page)?;
    man.render_description_section(&mut page)?;
    let mut options = Vec::new();
    man.render_options_section(&mut options)?;
    // Each of its headings is a part of the one section that man(7) knows.
    let options = String::from_utf8(options).map_err(io::Error::other)?.replace(".SH ", ".SS ");
    write!(page, ".SH OPTIONS\n{options}")?;
    let mut roff = Roff::new();
    roff.control("SH", ["OPERATIONS"]);
    roff.text([roman(
        "To run a program of such a name, put it after `--`. Each knows --help; those that look into a config dir take --json, ",
    )]);
    roff.text([roman(
        "--config-dir and --lock-file as well. They end with 0 if all is well, and with 1 if they have found trouble.",
    )]);
    roff.to_writer(&mut page)?;
    for operation in described.get_subcommands().cloned() {
        let name = format!("{NAME} {}", operation.get_name());
        let own = |arg: Arg| if arg.get_id() == "json" { arg.hide(true) } else { arg };
        render_operation(built(operation.bin_name(name).disable_help_flag(true).mut_args(own)), &mut page)?;
    }
    render_environment(&mut page)?;
    render_sections(&mut page)?;
    Ok(page)
}

/// The forms of a command line, with the names of what is to be put in.
fn render_synopsis(page: &mut Vec<u8>) -> io::Result<()> {
    let mut roff = Roff::new();
    roff.control("SH", ["SYNOPSIS"]);
    for form in USAGE.lines() {
        let names = form.trim().trim_start_matches(NAME);
        let parts = names.split_inclusive(|c: char| !c.is_ascii_uppercase()).flat_map(|part| {
            let name = part.trim_end_matches(|c: char| !c.is_ascii_uppercase());
            [italic(name), roman(&part[name.len()..])]
        });
        roff.text([bold(NAME)].into_iter().chain(parts).collect::<Vec<_>>()).control("br", []);
    }
    roff.to_writer(page)
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

/// All variables that are read; those that COMMAND gets have a section of their own.
fn render_environment(page: &mut Vec<u8>) -> io::Result<()> {
    let mut roff = Roff::new();
    roff.control("SH", ["ENVIRONMENT"]);
    for option in OPTIONS.iter().chain([&VERBOSITY]) {
        let meaning = match option.name {
            "verbosity" => format!("How much is said: {}", option.value_name),
            name => format!("As --{name}, which overrules it"),
        };
        roff.control("TP", []).text([bold(option.variable)]).text([roman(meaning)]);
    }
    for (name, meaning) in OTHER_VARIABLES {
        roff.control("TP", []).text([bold(name)]).text([roman(meaning)]);
    }
    roff.to_writer(page)
}

fn render_sections(page: &mut Vec<u8>) -> io::Result<()> {
    let mut roff = Roff::new();
    for section in SECTIONS {
        // man-pages(7) calls the exit codes so.
        let title = section.title.to_uppercase().replace("EXIT CODES", "EXIT STATUS");
        roff.control("SH", [title.as_str()]);
        roff.text([roman(section.text)]);
        for (term, meaning) in section.terms {
            roff.control("TP", []).text([bold(*term)]).text([roman(*meaning)]);
        }
    }
    roff.control("SH", ["SEE ALSO"]);
    let others = [("flock", "(1), "), ("timeout", "(1), "), ("flock", "(2), "), ("claude-run help", "")];
    roff.text(others.into_iter().flat_map(|(name, section)| [bold(name), roman(section)]).collect::<Vec<_>>());
    roff.to_writer(page)
}

/// Settles what clap derives of a command when it builds it.
fn built(mut command: Command) -> Command {
    command.build();
    command
}
