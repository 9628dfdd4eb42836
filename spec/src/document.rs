//! A JSON document held against the table.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::{
    error::SpecError,
    table::{Explained, Field, Kind, Treatment, join},
};

/// A document under examination: names it in errors, and collects what `explain` shows.
#[derive(Debug)]
pub(crate) struct Document {
    /// The file, or what the document is.
    pub(crate) name: String,
    /// What became of the fields that are there.
    pub(crate) explained: BTreeSet<Explained>,
    /// What a person should know although nothing is refused.
    pub(crate) warnings: Vec<String>,
    /// An error is one answer more, and the rest is looked at all the same.
    survey: bool,
}

impl Document {
    pub(crate) fn new(name: String) -> Self {
        Self { name, explained: BTreeSet::new(), warnings: Vec::new(), survey: false }
    }

    /// One whose errors are all to be found, not only the first.
    pub(crate) fn for_survey(name: String) -> Self {
        Self { survey: true, ..Self::new(name) }
    }

    /// The end of a check; in a survey an error becomes an answer, and there is no value.
    pub(crate) fn settle<T>(
        &mut self,
        checked: Result<T, SpecError>,
    ) -> Result<Option<T>, SpecError> {
        match checked {
            Ok(value) => Ok(Some(value)),
            Err(error) if self.survey => {
                self.explained.extend(Explained::of_error(&error));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Parses JSON.
    pub(crate) fn parse(&self, json: &[u8]) -> Result<Value, SpecError> {
        serde_json::from_slice(json)
            .map_err(|source| SpecError::Syntax { document: self.name.clone(), source })
    }

    /// An error about the value of a field.
    pub(crate) fn wrong(&self, field: impl Into<String>, why: impl Into<String>) -> SpecError {
        SpecError::Field { document: self.name.clone(), field: field.into(), why: why.into() }
    }

    /// An error about a field that Kata does not apply.
    pub(crate) fn refuse(&self, field: impl Into<String>, why: impl Into<String>) -> SpecError {
        SpecError::Refused { document: self.name.clone(), field: field.into(), why: why.into() }
    }

    /// Notes that a rule, not a row, decided what becomes of a field.
    pub(crate) fn translate(&mut self, field: impl Into<String>, how: impl Into<String>) {
        self.explained.insert(Explained::translated(field.into(), how.into()));
    }

    /// Checks an object against its rows; returns what of it is for the guest.
    pub(crate) fn object(
        &mut self,
        fields: &'static [Field],
        value: &Value,
        path: &str,
    ) -> Result<Value, SpecError> {
        let Some(object) = value.as_object() else {
            return Err(self.mismatch(path, "an object", value));
        };
        let mut kept = Map::new();
        for (name, value) in object.iter().filter(|(_, value)| !value.is_null()) {
            let path = join(path, name);
            match fields.iter().find(|field| field.name == name) {
                Some(field) => {
                    if let Some(value) = self.field(field, value, &path)? {
                        kept.insert(name.clone(), value);
                    }
                }
                None => {
                    self.explained.insert(Explained::unknown(pattern(&path)));
                }
            }
        }
        let absent =
            |field: &&Field| field.required && object.get(field.name).is_none_or(Value::is_null);
        match fields.iter().find(absent) {
            Some(field) => Err(self.wrong(join(path, field.name), "is missing")),
            None => Ok(Value::Object(kept)),
        }
    }

    fn field(
        &mut self,
        field: &'static Field,
        value: &Value,
        path: &str,
    ) -> Result<Option<Value>, SpecError> {
        if let Treatment::Refused(why) = field.treatment {
            let refused = if is_unset(value) { Ok(()) } else { Err(self.refuse(path, why)) };
            return Ok(self.settle(refused)?.and(None));
        }
        let kept = self.value(&field.kind, value, path);
        let Some(kept) = self.settle(kept)? else { return Ok(None) };
        let has_rows = matches!(field.kind, Kind::Object(_) | Kind::List(Kind::Object(_)));
        if !has_rows || field.treatment != Treatment::Applied {
            self.explained.insert(Explained::new(&pattern(path), field.treatment));
        }
        Ok((!matches!(field.treatment, Treatment::HostOnly(_))).then_some(kept))
    }

    fn value(
        &mut self,
        kind: &'static Kind,
        value: &Value,
        path: &str,
    ) -> Result<Value, SpecError> {
        match kind {
            Kind::Object(fields) => return self.object(fields, value, path),
            Kind::List(kind) => return self.list(kind, value, path),
            Kind::Map(kind) => return self.map(kind, value, path),
            Kind::Any => {}
            Kind::Bool if value.is_boolean() => {}
            Kind::Bool => return Err(self.mismatch(path, "true or false", value)),
            Kind::Number(lowest, highest) if is_between(value, *lowest, *highest) => {}
            Kind::Number(lowest, highest) => {
                let wanted = format!("a whole number from {lowest} to {highest}");
                return Err(self.mismatch(path, &wanted, value));
            }
            Kind::Text => match value.as_str() {
                None => return Err(self.mismatch(path, "a string", value)),
                Some(text) if text.contains('\0') => {
                    return Err(self.wrong(path, "must not contain a NUL character"));
                }
                Some(_) => {}
            },
            Kind::Word(words) if value.as_str().is_some_and(|word| words.contains(&word)) => {}
            Kind::Word(words) => {
                let words: Vec<_> = words.iter().copied().filter(|word| !word.is_empty()).collect();
                let wanted = format!("one of {}", words.join(", "));
                return Err(self.mismatch(path, &wanted, value));
            }
        }
        Ok(value.clone())
    }

    fn list(&mut self, kind: &'static Kind, value: &Value, path: &str) -> Result<Value, SpecError> {
        let Some(elements) = value.as_array() else {
            return Err(self.mismatch(path, "a list", value));
        };
        let elements = (0..)
            .zip(elements)
            .map(|(index, value): (usize, _)| self.value(kind, value, &format!("{path}[{index}]")));
        Ok(Value::Array(elements.collect::<Result<_, _>>()?))
    }

    fn map(&mut self, kind: &'static Kind, value: &Value, path: &str) -> Result<Value, SpecError> {
        let Some(entries) = value.as_object() else {
            return Err(self.mismatch(path, "an object", value));
        };
        let entries = entries.iter().map(|(name, value)| {
            // Quoted: names of annotations and sysctls contain dots.
            Ok((name.clone(), self.value(kind, value, &format!("{path}[{name:?}]"))?))
        });
        Ok(Value::Object(entries.collect::<Result<_, SpecError>>()?))
    }

    fn mismatch(&self, path: &str, wanted: &str, found: &Value) -> SpecError {
        let path = if path.is_empty() { "document" } else { path };
        self.wrong(path, format!("must be {wanted}, is {}", brief(found)))
    }
}

/// True for what engines write when they mean that nothing is asked for.
pub(crate) fn is_unset(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(on) => !on,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(elements) => elements.is_empty(),
        Value::Object(fields) => fields.values().all(is_unset),
    }
}

fn is_between(value: &Value, lowest: i64, highest: u64) -> bool {
    match (value.as_i64(), value.as_u64()) {
        (None, None) => false,
        (signed, unsigned) => {
            // What fits only one of the two types lies beyond every bound of the other.
            signed.is_none_or(|number| number >= lowest)
                && unsigned.is_none_or(|number| number <= highest)
        }
    }
}

/// A value as an error shows it: never a whole document.
fn brief(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(on) => on.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) if text.len() <= 64 => format!("{text:?}"),
        Value::String(_) => "a long string".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}

/// The path with its indices left out: `mounts[3].source` is `mounts[].source`.
fn pattern(path: &str) -> String {
    let mut pattern = String::new();
    let mut rest = path;
    while let Some((before, after)) = rest.split_once('[') {
        pattern.push_str(before);
        match after.split_once(']') {
            Some((index, after)) if index.bytes().all(|byte| byte.is_ascii_digit()) => {
                pattern.push_str("[]");
                rest = after;
            }
            _ => {
                pattern.push('[');
                rest = after;
            }
        }
    }
    pattern + rest
}
