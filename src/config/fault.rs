//! What is wrong with a configuration, where, and what to do about it.

use std::fmt;

/// At most this many faults are listed; a file with more is a different file.
pub const FAULTS_MAX: usize = 100;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    Error,
    Warning,
}

/// Where the mistake is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// In the file; line and column count from 1, in characters.
    File { line: usize, column: usize, width: usize, excerpt: String },
    /// In an environment variable.
    Environment(String),
    /// In no particular place: something is missing altogether.
    Whole,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub severity: Severity,
    pub place: Place,
    pub what: String,
    pub hint: Option<String>,
}

/// Everything found, in the order of the file. Errors and warnings together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// The file as the user named it.
    pub file: String,
    pub list: Vec<Fault>,
}

impl Faults {
    pub fn new(file: &str) -> Self {
        Self { file: file.to_owned(), list: Vec::new() }
    }

    pub fn has_errors(&self) -> bool {
        self.list.iter().any(|f| f.severity == Severity::Error)
    }

    pub fn push(&mut self, fault: Fault) {
        if self.list.len() < FAULTS_MAX {
            self.list.push(fault);
        }
    }

    pub fn sort(&mut self) {
        self.list.sort_by(|a, b| a.place.cmp(&b.place).then(a.severity.cmp(&b.severity)));
    }
}

impl std::error::Error for Faults {}

impl fmt::Display for Faults {
    /// As a compiler shows it: sentence, place, excerpt with a caret, hint.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for fault in &self.list {
            let severity = match fault.severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
            };
            writeln!(f, "{severity}: {}", fault.what)?;
            match &fault.place {
                Place::File { line, column, width, excerpt } => {
                    let margin = line.to_string().len();
                    writeln!(f, "{:margin$}--> {}:{line}:{column}", "", self.file)?;
                    writeln!(f, "{:margin$} |", "")?;
                    writeln!(f, "{line} | {excerpt}")?;
                    let caret = "^".repeat((*width).max(1));
                    writeln!(f, "{:margin$} | {:skip$}{caret}", "", "", skip = column - 1)?;
                    if let Some(hint) = &fault.hint {
                        writeln!(f, "{:margin$} = help: {hint}", "")?;
                    }
                }
                Place::Environment(name) => {
                    writeln!(f, " --> environment variable {name}")?;
                    if let Some(hint) = &fault.hint {
                        writeln!(f, "  = help: {hint}")?;
                    }
                }
                Place::Whole => {
                    writeln!(f, " --> {}", self.file)?;
                    if let Some(hint) = &fault.hint {
                        writeln!(f, "  = help: {hint}")?;
                    }
                }
            }
            writeln!(f)?;
        }
        let count = |s| self.list.iter().filter(|f| f.severity == s).count();
        let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
        let plural = |n: usize| if n == 1 { "" } else { "s" };
        write!(f, "{}: {errors} error{}", self.file, plural(errors))?;
        if warnings > 0 {
            write!(f, ", {warnings} warning{}", plural(warnings))?;
        }
        Ok(())
    }
}

/// The candidate that `word` was probably meant to be.
pub fn did_you_mean<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .map(|c| (strsim::jaro_winkler(word, c), c))
        .filter(|(score, _)| *score > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, c)| c)
}

/// The only candidate one typing error away; for words too short to sound alike.
pub fn one_slip_away<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let mut near = candidates.filter(|c| strsim::osa_distance(word, c) == 1);
    let first = near.next();
    first.filter(|_| near.next().is_none())
}
