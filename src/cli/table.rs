//! Columns for people.

use std::fmt::Write;

/// Rows of text under a head; widths follow the widest cell, the last column is not padded.
pub struct Table {
    head: Vec<&'static str>,
    rows: Vec<Vec<String>>,
    /// Columns of numbers stand at the right.
    right: Vec<bool>,
}

impl Table {
    /// A name that starts with `>` is a column of numbers.
    pub fn new(head: &[&'static str]) -> Self {
        Self {
            head: head.iter().map(|name| name.trim_start_matches('>')).collect(),
            rows: Vec::new(),
            right: head.iter().map(|name| name.starts_with('>')).collect(),
        }
    }

    /// Empty cells are shown as `-`, so that columns can be cut by a script.
    pub fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.head.len());
        self.rows.push(
            cells
                .into_iter()
                .map(|c| if c.is_empty() { "-".to_owned() } else { plain(&c) })
                .collect(),
        );
    }

    /// At least as wide as `widths`, which remembers the widest so far over the pages of a listing.
    pub fn render(&self, widths: &mut Vec<usize>, with_head: bool) -> String {
        let head: Vec<String> = self.head.iter().map(|name| name.to_uppercase()).collect();
        let head = with_head.then_some(&head);
        widths.resize(self.head.len(), 0);
        for row in head.into_iter().chain(&self.rows) {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut out = String::new();
        for row in head.into_iter().chain(&self.rows) {
            let mut line = String::new();
            for ((cell, width), right) in row.iter().zip(&*widths).zip(&self.right) {
                if !line.is_empty() {
                    line.push_str("  ");
                }
                // Writing into a string cannot fail.
                let _ = match right {
                    true => write!(line, "{cell:>width$}"),
                    false => write!(line, "{cell:<width$}"),
                };
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }
}

/// What a neighbour or a user wrote must not command the terminal.
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// `1d02h`, `3h04m`, `5m06s`, `7s`.
pub fn age(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{:02}s", seconds % 60),
        (0, _, _) => format!("{hours}h{minutes:02}m"),
        (_, _, _) => format!("{days}d{hours:02}h"),
    }
}

/// Microseconds as milliseconds, to the microsecond.
pub fn milliseconds(us: u64) -> String {
    format!("{}.{:03}", us / 1_000, us % 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_have_no_tail() {
        let mut table = Table::new(&["name", ">count", "note"]);
        table.row(vec!["a".into(), "5".into(), String::new()]);
        table.row(vec!["longer".into(), "12345678".into(), "x\u{1b}[31m".into()]);
        let mut widths = Vec::new();
        assert_eq!(
            table.render(&mut widths, true),
            "NAME       COUNT  NOTE\n\
             a              5  -\n\
             longer  12345678  x\u{fffd}[31m\n"
        );
        let mut next = Table::new(&["name", ">count", "note"]);
        next.row(vec!["b".into(), "6".into(), "y".into()]);
        assert_eq!(next.render(&mut widths, false), "b              6  y\n");
    }

    #[test]
    fn times() {
        for (seconds, text) in
            [(0, "0s"), (59, "59s"), (61, "1m01s"), (3_600, "1h00m"), (90_061, "1d01h")]
        {
            assert_eq!(age(seconds), text);
        }
        assert_eq!(milliseconds(12_345), "12.345");
        assert_eq!(milliseconds(7), "0.007");
    }
}
