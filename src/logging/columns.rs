//! Widths of text on a terminal.

/// Columns that `text` fills on a terminal.
pub(crate) fn columns(text: &str) -> usize {
    with_columns(text).map(|(_, columns)| columns).sum()
}

/// Each character with its columns; our own colours have none.
pub(crate) fn with_columns(text: &str) -> impl Iterator<Item = (char, usize)> {
    let mut is_colour = false;
    text.chars().map(move |c| {
        let is_shown = !is_colour && c != '\x1b';
        is_colour = c == '\x1b' || (is_colour && c != 'm');
        (c, if is_shown { columns_of(c) } else { 0 })
    })
}

/// As much of `text` as fits into `width` columns.
pub(super) fn cut(text: &str, width: usize) -> String {
    let mut used = 0;
    let fits = |c: &char| {
        used += columns_of(*c);
        used <= width
    };
    text.chars().take_while(fits).collect()
}

/// `text` in `width` columns: cut with a mark, or filled up with spaces.
pub(crate) fn fitted(text: &str, width: usize) -> String {
    if columns(text) <= width {
        return format!("{text}{:1$}", "", width - columns(text));
    }
    let cut = cut(text, width.saturating_sub(1));
    format!("{cut}…{:1$}", "", width.saturating_sub(columns(&cut) + 1))
}

/// Columns of a character: none for those that combine with another, two for the wide ones of East Asia and for emoji.
fn columns_of(c: char) -> usize {
    match c {
        '\u{300}'..='\u{36f}' | '\u{1ab0}'..='\u{1aff}' | '\u{20d0}'..='\u{20ff}' | '\u{fe00}'..='\u{fe0f}' => 0,
        '\u{1100}'..='\u{115f}' | '\u{2e80}'..='\u{a4cf}' | '\u{ac00}'..='\u{d7a3}' | '\u{f900}'..='\u{faff}' => 2,
        '\u{fe30}'..='\u{fe6f}' | '\u{ff00}'..='\u{ff60}' | '\u{ffe0}'..='\u{ffe6}' | '\u{1f300}'..='\u{1faff}' => 2,
        '\u{20000}'..='\u{3fffd}' => 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_is_cut_with_a_mark() {
        assert_eq!(
            (fitted("abc", 5), fitted("abcdef", 5), fitted("漢字漢字", 5)),
            ("abc  ".into(), "abcd…".into(), "漢字…".into())
        );
        assert_eq!([0, 3, 4, 9].map(|width| cut("漢字", width)), ["", "漢", "漢字", "漢字"]);
    }
}
