//! The text of the file with the place of every value, so that findings about the meaning can
//! point at it too; and the environment on top of it.
//!
//! serde stops at the first mistake. To report all of them, the value that a mistake points at is
//! noted and taken out, and the rest is read again until it is accepted.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use super::fault::{FAULTS_MAX, Fault, Faults, Place, Severity, did_you_mean, one_slip_away};
use super::file::File;

/// Environment variables that override the file start with this.
pub const ENV_PREFIX: &str = "KILLICK__";
/// Variables of ours with another meaning.
const ENV_KNOWN: [&str; 2] = ["KILLICK_SOCKET", "KILLICK_CONFIG"];
/// Overrides looked at; a container has a handful.
const OVERRIDES_MAX: usize = 1_000;

/// A file that was read, with the mistakes taken out.
pub struct Document<'t> {
    text: &'t str,
    table: Spanned<DeTable<'t>>,
    /// Path → environment variable that set it.
    overrides: BTreeMap<String, String>,
    /// Paths of what was taken out, or was probably meant: not "missing" as well.
    taken: Vec<String>,
    /// Nothing could be read at all.
    pub syntax_error: bool,
    pub faults: Faults,
}

/// Reads `text` and, when `environment` is given, what it overrides.
pub fn read<'t>(
    name: &str,
    text: &'t str,
    environment: Option<&[(String, String)]>,
) -> (File, Document<'t>) {
    let (table, syntax_errors) = DeTable::parse_recoverable(text);
    let mut document = Document {
        text,
        table,
        overrides: BTreeMap::new(),
        taken: Vec::new(),
        syntax_error: !syntax_errors.is_empty(),
        faults: Faults::new(name),
    };
    if document.syntax_error {
        for error in syntax_errors {
            let place = error.span().map_or(Place::Whole, |span| document.place_of_span(span));
            document.error_at(place, error.message().to_owned(), None);
        }
        // What the parser made up to go on would only lead to made-up findings.
        return (File::default(), document);
    }
    let file = document.read_file();
    let file = match environment {
        Some(environment) => document.read_environment(file, environment),
        None => file,
    };
    (file, document)
}

impl<'t> Document<'t> {
    fn read_file(&mut self) -> File {
        for _ in 0..FAULTS_MAX {
            let deserializer = toml::Deserializer::from(self.table.clone());
            let error = match File::deserialize(deserializer) {
                Ok(file) => return file,
                Err(error) => error,
            };
            let (what, hint) = in_plain_words(error.message());
            let Some(span) = error.span() else {
                self.error_at(Place::Whole, what, hint);
                return File::default();
            };
            let place = self.place_of_span(span.clone());
            let mut path = String::new();
            let found = take_out(self.table.get_mut(), &span, &mut path);
            if let Some((_, meant)) = &hint {
                let parent = path.rfind('.').map_or("", |end| &path[..=end]);
                self.taken.push(format!("{parent}{meant}"));
            }
            self.error_at(place, what, hint);
            if !found {
                return File::default();
            }
            self.taken.push(path);
        }
        File::default()
    }

    /// Puts the environment on top. Each variable is tried alone first, so that a bad one is
    /// named; the good ones are then applied together.
    fn read_environment(&mut self, file: File, environment: &[(String, String)]) -> File {
        let base = match config::Config::try_from(&file) {
            Ok(base) => base,
            Err(e) => {
                self.error_at(Place::Whole, format!("cannot be merged: {e}"), None);
                return file;
            }
        };
        let mut good = Vec::new();
        for (name, value) in environment.iter().take(OVERRIDES_MAX) {
            let Some(keys) = name.strip_prefix(ENV_PREFIX) else { continue };
            let merged = self
                .path_of_variable(keys)
                .and_then(|path| merge(&base, &[(path.clone(), value_of(value))]).map(|_| path));
            match merged {
                Ok(path) => good.push((name, path, value_of(value))),
                Err(message) => {
                    let (what, hint) = in_plain_words(&message);
                    let hint = hint.map(|(_, key)| {
                        let stem = name.rsplit_once("__").map_or("", |(stem, _)| stem);
                        let key = key.replace('-', "_").to_uppercase();
                        (format!("did you mean {stem}__{key}?"), key)
                    });
                    self.error_at(Place::Environment(name.clone()), what, hint);
                }
            }
        }
        let all: Vec<_> =
            good.iter().map(|(_, path, value)| (path.clone(), value.clone())).collect();
        match merge(&base, &all) {
            Ok(merged) => {
                self.overrides =
                    good.into_iter().map(|(name, path, _)| (path, name.clone())).collect();
                merged
            }
            Err(message) => {
                let names: Vec<&str> = good.iter().map(|(name, _, _)| name.as_str()).collect();
                let place = Place::Environment(names.join(", "));
                self.error_at(place, in_plain_words(&message).0, None);
                file
            }
        }
    }

    /// `BGP__NEIGHBOR__0__HOLD_TIME` → `bgp.neighbor[0].hold-time`.
    fn path_of_variable(&self, keys: &str) -> Result<String, String> {
        let mut path = String::new();
        for key in keys.split("__") {
            if !key.is_empty() && key.bytes().all(|b| b.is_ascii_digit()) {
                // An override may change an element or add one, not invent a million.
                let len = self.array_len(&path);
                let index: usize = key.parse().map_err(|_| "index out of range".to_owned())?;
                if index > len {
                    return Err(format!("index {index} of {path}, which has {len} in the file"));
                }
                path.push_str(&format!("[{index}]"));
            } else if key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') && !key.is_empty()
            {
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(&key.to_ascii_lowercase().replace('_', "-"));
            } else {
                return Err("not the name of a key (expected KILLICK__SECTION__KEY)".to_owned());
            }
        }
        Ok(path)
    }

    fn array_len(&self, path: &str) -> usize {
        match self.find(path).map(|(_, value)| value.get_ref()) {
            Some(DeValue::Array(array)) => array.len(),
            Some(_) | None => 0,
        }
    }

    /// Key and value at a path such as `bgp.neighbor[1].address`.
    fn find(&self, path: &str) -> Option<(Range<usize>, &Spanned<DeValue<'t>>)> {
        let mut table = Some(self.table.get_ref());
        let mut found: Option<(Range<usize>, &Spanned<DeValue<'t>>)> = None;
        for step in path.split('.') {
            let (key, indices) = match step.split_once('[') {
                Some((key, indices)) => (key, indices),
                None => (step, ""),
            };
            let (key, mut value) = table?.iter().find(|(k, _)| k.get_ref() == key)?;
            let mut key_span = key.span();
            for index in indices.split('[').filter(|s| !s.is_empty()) {
                let index: usize = index.trim_end_matches(']').parse().ok()?;
                let DeValue::Array(array) = value.get_ref() else { return None };
                value = array.get(index)?;
                key_span = value.span();
            }
            table = match value.get_ref() {
                DeValue::Table(t) => Some(t),
                _ => None,
            };
            found = Some((key_span, value));
        }
        found
    }

    /// The place of the value at `path`, or of the nearest table around it.
    pub fn place(&self, path: &str) -> Place {
        let mut path = path;
        loop {
            if let Some(name) = self.overrides.get(path) {
                return Place::Environment(name.clone());
            }
            if let Some((key, value)) = self.find(path) {
                let span = match value.get_ref() {
                    DeValue::Table(_) => key,
                    DeValue::Array(array) if array.iter().any(|v| v.get_ref().is_table()) => key,
                    _ => value.span(),
                };
                return self.place_of_span(span);
            }
            match path.rfind(['.', '[']) {
                Some(end) => path = &path[..end],
                None => return Place::Whole,
            }
        }
    }

    /// The line of the value at `path`, to refer to from elsewhere.
    pub fn line(&self, path: &str) -> Option<usize> {
        match self.place(path) {
            Place::File { line, .. } => Some(line),
            Place::Environment(_) | Place::Whole => None,
        }
    }

    fn place_of_span(&self, span: Range<usize>) -> Place {
        let start = span.start.min(self.text.len());
        let line_start = self.text[..start].rfind('\n').map_or(0, |at| at + 1);
        let excerpt = self.text[line_start..].lines().next().unwrap_or("");
        let line = self.text[..start].matches('\n').count() + 1;
        let column = self.text[line_start..start].chars().count() + 1;
        let end = span.end.min(line_start + excerpt.len()).max(start);
        // Tabs would shift the caret away from what it points at.
        Place::File {
            line,
            column,
            width: self.text[start..end].chars().count(),
            excerpt: excerpt.replace('\t', " "),
        }
    }

    /// True when `path` was written but not understood: it is not missing as well.
    pub fn was_taken_out(&self, path: &str) -> bool {
        self.taken.iter().any(|taken| {
            taken == path || path.strip_prefix(taken.as_str()).is_some_and(|r| r.starts_with('.'))
        })
    }

    /// True when something below `path` was.
    pub fn was_anything_taken_out_of(&self, path: &str) -> bool {
        self.taken.iter().any(|taken| taken.starts_with(path))
    }

    fn error_at(&mut self, place: Place, what: String, hint: Option<(String, String)>) {
        let hint = hint.map(|(hint, _)| hint);
        self.faults.push(Fault { severity: Severity::Error, place, what, hint });
    }

    pub fn error(&mut self, path: &str, what: impl Into<String>, hint: Option<String>) {
        let place = self.place(path);
        self.faults.push(Fault { severity: Severity::Error, place, what: what.into(), hint });
    }

    pub fn warn(&mut self, path: &str, what: impl Into<String>, hint: Option<String>) {
        let place = self.place(path);
        self.faults.push(Fault { severity: Severity::Warning, place, what: what.into(), hint });
    }

    /// Variables that look like ours and did nothing: a typing error that would stay unseen.
    pub fn report_unused_variables(&mut self, environment: &[(String, String)], used: bool) {
        for (name, _) in environment.iter().take(OVERRIDES_MAX) {
            let ours = name.starts_with("KILLICK") && !ENV_KNOWN.contains(&name.as_str());
            let (what, hint) = match (ours, name.starts_with(ENV_PREFIX)) {
                (false, _) => continue,
                (true, true) if used => continue,
                (true, true) => (
                    "overrides a key of the configuration, but overrides were not asked for",
                    "run with --env, or unset it".to_owned(),
                ),
                (true, false) => {
                    let override_ = name.replacen("KILLICK_", ENV_PREFIX, 1);
                    let hint = match did_you_mean(name, ENV_KNOWN.into_iter()) {
                        Some(known) if !name.contains("__") => known,
                        Some(_) | None => &override_,
                    };
                    ("is not a variable that killick knows", format!("did you mean {hint}?"))
                }
            };
            self.faults.push(Fault {
                severity: Severity::Warning,
                place: Place::Environment(name.clone()),
                what: format!("{name} {what}"),
                hint: Some(hint),
            });
        }
    }
}

/// The value of a variable, as TOML where it is TOML (lists, numbers), as text otherwise.
fn value_of(text: &str) -> config::Value {
    #[derive(Deserialize)]
    struct Just {
        v: config::Value,
    }
    toml::from_str::<Just>(&format!("v = {text}"))
        .map_or_else(|_| config::Value::from(text), |just| just.v)
}

fn merge(base: &config::Config, overrides: &[(String, config::Value)]) -> Result<File, String> {
    let mut builder = config::Config::builder().add_source(base.clone());
    for (path, value) in overrides {
        builder = builder.set_override(path.as_str(), value.clone()).map_err(|e| e.to_string())?;
    }
    let merged = builder.build().map_err(|e| e.to_string())?;
    serde_path_to_error::deserialize(merged).map_err(|e: serde_path_to_error::Error<_>| {
        match e.inner() {
            // Its own text repeats the key, which is the name of the variable here.
            config::ConfigError::At { error, .. } => error.to_string(),
            config::ConfigError::Type { unexpected, expected, .. } => {
                format!("invalid type: {unexpected}, expected {expected}")
            }
            other => other.to_string(),
        }
    })
}

/// serde's words into ours; the second part is (hint, the key that was probably meant).
fn in_plain_words(message: &str) -> (String, Option<(String, String)>) {
    let names = |text: &str| -> Vec<String> {
        text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    };
    for (start, kind) in [("unknown field", "unknown key"), ("unknown variant", "unknown word")] {
        if let Some(rest) = message.strip_prefix(start) {
            let names = names(rest);
            let Some((word, expected)) = names.split_first() else { break };
            let candidates = || expected.iter().map(String::as_str);
            let meant =
                did_you_mean(word, candidates()).or_else(|| one_slip_away(word, candidates()));
            let hint = match (meant, start) {
                (Some(meant), _) => format!("did you mean `{meant}`?"),
                (None, _) => format!("expected one of: {}", expected.join(", ")),
            };
            let meant = meant.unwrap_or_default().to_owned();
            return (format!("{kind} `{word}`"), Some((hint, meant)));
        }
    }
    if let Some(rest) = message.strip_prefix("missing field") {
        let key = names(rest).into_iter().next().unwrap_or_default();
        return (format!("`{key}` is missing"), None);
    }
    // "invalid type: integer `5`, expected a string" and the messages of our own types.
    (message.trim_end().to_owned(), None)
}

/// Removes the innermost key or element that `span` points at; its path goes to `path`.
fn take_out(table: &mut DeTable<'_>, span: &Range<usize>, path: &mut String) -> bool {
    let here = path.len();
    let mut hit = None;
    for (key, value) in table.iter_mut() {
        path.truncate(here);
        if here > 0 {
            path.push('.');
        }
        path.push_str(key.get_ref());
        let inside = match value.get_mut() {
            DeValue::Table(inner) => take_out(inner, span, path),
            DeValue::Array(array) => take_out_of_array(array, span, path),
            _ => false,
        };
        if inside {
            return true;
        }
        if covers(&key.span(), span) || covers(&value.span(), span) {
            hit = Some(key.get_ref().to_string());
        }
    }
    path.truncate(here);
    let Some(key) = hit else { return false };
    if here > 0 {
        path.push('.');
    }
    path.push_str(&key);
    let all = std::mem::take(table);
    table.extend(all.into_iter().filter(|(k, _)| k.get_ref() != &key));
    true
}

fn take_out_of_array(array: &mut DeArray<'_>, span: &Range<usize>, path: &mut String) -> bool {
    let here = path.len();
    for index in 0..array.len() {
        path.truncate(here);
        path.push_str(&format!("[{index}]"));
        let inside = match (&mut **array)[index].get_mut() {
            DeValue::Table(inner) => take_out(inner, span, path),
            DeValue::Array(inner) => take_out_of_array(inner, span, path),
            _ => false,
        };
        if inside {
            return true;
        }
        if covers(&array[index].span(), span) {
            let mut rest = DeArray::new();
            for (i, value) in array.iter().enumerate() {
                if i != index {
                    rest.push(value.clone());
                }
            }
            *array = rest;
            return true;
        }
    }
    path.truncate(here);
    false
}

fn covers(outer: &Range<usize>, inner: &Range<usize>) -> bool {
    outer.start <= inner.start && inner.end <= outer.end && !outer.is_empty()
}
