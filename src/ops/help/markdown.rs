//! A chapter of the guide on a terminal: the Markdown that the chapters use, wrapped to the width. Code and tables are not wider than
//! they need be; a table without room becomes a list.

use clap::builder::styling::Style;

use super::super::layout::{columns, wrapped};
use crate::guide::TOPICS;

/// Longest line of prose, however wide the terminal is.
const PROSE: usize = 100;

/// Columns between two of a table.
const GAP: usize = 2;

/// `markdown` in lines of at most `width` columns, but for code, which keeps its lines.
pub(super) fn rendered(markdown: &str, width: usize) -> String {
    let mut text = String::new();
    let mut lines = markdown.lines().peekable();
    while let Some(line) = lines.next() {
        if line.starts_with("```") {
            text.extend(lines.by_ref().take_while(|line| !line.starts_with("```")).map(|line| format!("    {line}\n")));
        } else if line.starts_with('|') {
            let rest = std::iter::from_fn(|| lines.next_if(|line| line.starts_with('|')));
            text +=
                &table(&std::iter::once(line).chain(rest).filter(|row| !is_rule(row)).map(cells).collect::<Vec<_>>(), width);
        } else if let Some(title) = line.strip_prefix('#') {
            let title = styled(title.trim_start_matches('#').trim(), true);
            text.extend(wrapped(&title, width, 0).iter().map(|line| format!("{line}\n")));
        } else if line.is_empty() {
            text.push('\n');
        } else {
            let rest = std::iter::from_fn(|| lines.next_if(|line| continues(line)));
            let words = std::iter::once(line).chain(rest).map(str::trim).collect::<Vec<_>>().join(" ");
            let hang = if is_item(line) { line.find(' ').unwrap_or_default() + 1 } else { 0 };
            text.extend(wrapped(&styled(&words, false), width.min(PROSE), hang).iter().map(|line| format!("{line}\n")));
        }
    }
    text
}

/// True for a line that belongs to the paragraph or item above it.
fn continues(line: &str) -> bool {
    !line.is_empty() && !is_item(line) && !["|", "#", "```"].iter().any(|start| line.starts_with(start))
}

fn is_item(line: &str) -> bool {
    let number = line.trim_start_matches(|c: char| c.is_ascii_digit());
    line.starts_with("- ") || (number.len() < line.len() && number.starts_with(". "))
}

/// `text` with emphasis, code and links as a terminal shows them. Each word has a style of its own, since lines end between them.
fn styled(text: &str, is_bold: bool) -> String {
    let (mut out, mut rest) = (String::new(), text);
    let (mut bold, mut code, mut emphasis) = (is_bold, false, false);
    let (mut open, mut before) = (Style::new(), ' ');
    while let Some(c) = rest.chars().next() {
        if !code && let Some((label, address, behind)) = link(rest) {
            rest = behind;
            out += &format!("{open:#}{}", styled(label, bold));
            out += &shown_address(address);
            open = Style::new();
            continue;
        }
        let skipped = match c {
            '`' => Some((&mut code, 1)),
            '*' if !code && rest.starts_with("**") => Some((&mut bold, 2)),
            '*' if !code && (emphasis || before == ' ') => Some((&mut emphasis, 1)),
            _ => None,
        };
        if let Some((state, length)) = skipped {
            *state = !*state;
            rest = &rest[length..];
            continue;
        }
        let wanted = match c {
            ' ' => Style::new(),
            _ if bold || code => Style::new().bold(),
            _ if emphasis => Style::new().underline(),
            _ => Style::new(),
        };
        if wanted != open {
            out += &format!("{open:#}{wanted}");
            open = wanted;
        }
        out.push(c);
        before = c;
        rest = &rest[c.len_utf8()..];
    }
    out + &format!("{open:#}")
}

/// Label and address of the link that `text` begins with, and what is behind it.
fn link(text: &str) -> Option<(&str, &str, &str)> {
    let (label, rest) = text.strip_prefix('[')?.split_once("](")?;
    let (address, behind) = rest.split_once(')')?;
    (!label.contains(']')).then_some((label, address, behind))
}

/// Where a link leads, if one can go there from a terminal.
fn shown_address(address: &str) -> String {
    let file = address.split('#').next().unwrap_or_default();
    match TOPICS.iter().find(|(topic, _)| file.strip_suffix(".md") == Some(topic)) {
        Some((topic, _)) => format!(" (claude-run help {topic})"),
        None if address.starts_with("https:") => format!(" ({address})"),
        None => String::new(),
    }
}

/// True for the row of dashes below the head of a table.
fn is_rule(row: &str) -> bool {
    row.chars().all(|c| "|-: ".contains(c))
}

fn cells(row: &str) -> Vec<String> {
    let row = row.trim().trim_start_matches('|').replace("\\|", "\0");
    let row = row.trim_end().strip_suffix('|').unwrap_or(&row);
    row.split('|').map(|cell| styled(&cell.trim().replace('\0', "|"), false)).collect()
}

fn table(rows: &[Vec<String>], width: usize) -> String {
    let Some((head, rows)) = rows.split_first() else { return String::new() };
    let bold = Style::new().bold();
    let head: Vec<_> = head.iter().map(|cell| format!("{bold}{cell}{bold:#}")).collect();
    let Some(widths) = widths(&head, rows, width) else { return list(&head, rows, width) };
    let all: Vec<_> = std::iter::once(&head).chain(rows).map(|row| laid_out(row, &widths)).collect();
    // Rows of several lines would run into each other.
    let end = if all.iter().any(|row| row.lines().count() > 1) { "\n" } else { "" };
    all.join(end)
}

/// Widths of the columns: as wide as their cells where there is room, else as their longest word and a share of what is left.
fn widths(head: &[String], rows: &[Vec<String>], width: usize) -> Option<Vec<usize>> {
    let widest = |column: usize, of: fn(&str) -> usize| {
        std::iter::once(head)
            .chain(rows.iter().map(Vec::as_slice))
            .filter_map(|row| Some(of(row.get(column)?)))
            .max()
            .unwrap_or_default()
    };
    let longest_word = |cell: &str| cell.split(' ').map(columns).max().unwrap_or_default();
    let room = width.saturating_sub(GAP * (head.len() - 1));
    let whole: Vec<_> = (0..head.len()).map(|column| widest(column, columns)).collect();
    if whole.iter().sum::<usize>() <= room {
        return Some(whole);
    }
    let least: Vec<_> = (0..head.len()).map(|column| widest(column, longest_word)).collect();
    let left = room.checked_sub(least.iter().sum())?;
    let wanted: usize = whole.iter().zip(&least).map(|(whole, least)| whole - least).sum();
    Some(whole.iter().zip(&least).map(|(whole, least)| least + left * (whole - least) / wanted.max(1)).collect())
}

fn laid_out(row: &[String], widths: &[usize]) -> String {
    let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| wrapped(cell, *width, 0)).collect();
    let height = cells.iter().map(Vec::len).max().unwrap_or_default();
    let mut text = String::new();
    for line in 0..height {
        let parts = cells.iter().zip(widths).map(|(cell, width)| {
            let part = cell.get(line).map_or("", String::as_str);
            format!("{part}{:1$}", "", width + GAP - columns(part))
        });
        text += &format!("{}\n", parts.collect::<String>().trim_end());
    }
    text
}

/// A table without room: a row is its first cell, with the others below it.
fn list(head: &[String], rows: &[Vec<String>], width: usize) -> String {
    let items = rows.iter().map(|row| {
        let others = head.iter().zip(row).skip(1).filter(|(_, cell)| !cell.is_empty());
        let others = others.map(|(name, cell)| format!("  {name}: {cell}"));
        let lines = row.first().cloned().into_iter().chain(others).flat_map(|line| wrapped(&line, width, 4));
        lines.map(|line| format!("{line}\n")).collect::<String>()
    });
    items.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(markdown: &str, width: usize) -> String {
        anstream::adapter::strip_str(&rendered(markdown, width)).to_string()
    }

    #[test]
    fn markdown_reads_as_text() {
        let markdown =
            "# The `x`\n\nOne **two\nthree** [four](modes.md#a), *five* a*b.\n- six\n  seven\n\n```sh\n# code `kept`\n```\n";
        assert_eq!(
            plain(markdown, 80),
            "The x\n\nOne two three four (claude-run help modes), five a*b.\n- six seven\n\n    # code `kept`\n"
        );
        assert_eq!(plain("- one two\n1. three four", 8), "- one\n  two\n1. three\n   four\n");
    }

    #[test]
    fn tables_have_columns_where_there_is_room() {
        let table = "| a | bb |\n|---|---:|\n| `c\\|d` | one two |\n| e | f |\n";
        assert_eq!(plain(table, 20), "a    bb\nc|d  one two\ne    f\n");
        assert_eq!(plain(table, 9), "a    bb\n\nc|d  one\n     two\n\ne    f\n");
        assert_eq!(plain(table, 7), "c|d\n  bb:\n    one\n    two\n\ne\n  bb: f\n");
    }

    #[test]
    fn chapters_fit_and_lose_no_word() {
        for (topic, chapter) in TOPICS {
            for width in [40, 79, 199] {
                let text = plain(chapter, width);
                let mut prose = text.lines().filter(|line| !line.starts_with("    "));
                assert_eq!(prose.find(|line| columns(line) > width), None, "{topic}");
                let letters = |text: &str| text.chars().filter(|c| c.is_alphanumeric()).count();
                // A table that became a list names its columns in each row; a link may name its chapter.
                assert!(letters(&text) * 10 > letters(chapter) * 9, "{topic}, {width}: {text}");
                assert!(!text.lines().any(|line| line.starts_with(['|', '#'])), "{topic}: {text}");
            }
        }
    }
}
