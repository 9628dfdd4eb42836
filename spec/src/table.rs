//! What a row is; the rows themselves are in [`process`](mod@process), [`container`] and [`linux`].

mod container;
mod linux;
mod names;
mod process;
mod resources;

pub use container::CONFIG;
pub use names::{
    ARCHITECTURES, CAPABILITIES, NAMESPACES, RLIMITS, SECCOMP_ACTIONS, SECCOMP_FLAGS,
    SECCOMP_OPERATORS,
};
pub use process::PROCESS;
pub use resources::RESOURCES;

use crate::error::SpecError;

/// What becomes of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Treatment {
    /// The guest applies it as it is.
    Applied,
    /// It is honoured another way than on a host.
    Translated(&'static str),
    /// It is about the host and never reaches the guest.
    HostOnly(&'static str),
    /// It is an error to set it.
    Refused(&'static str),
}

/// What a value looks like.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// true or false.
    Bool,
    /// A whole number between two bounds.
    Number(i64, u64),
    /// A string without NUL.
    Text,
    /// One of these strings.
    Word(&'static [&'static str]),
    /// A list.
    List(&'static Kind),
    /// Names of the user's choice, each with a value.
    Map(&'static Kind),
    /// Known fields.
    Object(&'static [Field]),
    /// Whatever it is, nobody reads it.
    Any,
}

/// A number that fits `u16`.
pub const U16: Kind = Kind::Number(0, u16::MAX as u64);
/// A number that fits `u32`.
pub const U32: Kind = Kind::Number(0, u32::MAX as u64);
/// A number that fits `u64`.
pub const U64: Kind = Kind::Number(0, u64::MAX);
/// A number that fits `i32`.
pub const I32: Kind = Kind::Number(i32::MIN as i64, i32::MAX as u64);
/// A number that fits `i64`.
pub const I64: Kind = Kind::Number(i64::MIN, i64::MAX as u64);
/// A list of strings.
pub const TEXTS: Kind = Kind::List(&Kind::Text);
/// Strings by name.
pub const TEXT_MAP: Kind = Kind::Map(&Kind::Text);

/// A row.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// As in JSON.
    pub name: &'static str,
    /// What its value looks like.
    pub kind: Kind,
    /// What becomes of it. For objects: of the whole, unless a field of it says otherwise.
    pub treatment: Treatment,
    /// It must be there.
    pub required: bool,
}

const fn field(name: &'static str, kind: Kind, treatment: Treatment) -> Field {
    Field { name, kind, treatment, required: false }
}

const fn applied(name: &'static str, kind: Kind) -> Field {
    field(name, kind, Treatment::Applied)
}

const fn translated(name: &'static str, kind: Kind, how: &'static str) -> Field {
    field(name, kind, Treatment::Translated(how))
}

const fn host_only(name: &'static str, kind: Kind, how: &'static str) -> Field {
    field(name, kind, Treatment::HostOnly(how))
}

const fn refused(name: &'static str, kind: Kind, why: &'static str) -> Field {
    field(name, kind, Treatment::Refused(why))
}

const fn required(field: Field) -> Field {
    Field { required: true, ..field }
}

/// What becomes of one field of a configuration.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Explained {
    /// Path of the field; `[]` stands for every element of a list.
    pub field: String,
    /// `applied`, `translated`, `host only`, `refused`, `wrong` or `unknown`.
    pub treatment: &'static str,
    /// How or why, where there is more to say.
    pub detail: String,
}

impl Explained {
    pub(crate) fn new(field: &str, treatment: Treatment) -> Self {
        let (treatment, detail) = match treatment {
            Treatment::Applied => ("applied", ""),
            Treatment::Translated(how) => ("translated", how),
            Treatment::HostOnly(how) => ("host only", how),
            Treatment::Refused(why) => ("refused", why),
        };
        Self { field: field.to_owned(), treatment, detail: detail.to_owned() }
    }

    pub(crate) fn unknown(field: String) -> Self {
        let detail = "not a field of the OCI runtime specification that this version knows; ignored, as it requires";
        Self { field, treatment: "unknown", detail: detail.to_owned() }
    }

    /// The answer that an error is about one field; none about the document as a whole.
    pub(crate) fn of_error(error: &SpecError) -> Option<Self> {
        let (field, treatment, detail) = match error {
            SpecError::Field { field, why, .. } => (field, "wrong", why.clone()),
            SpecError::Refused { field, why, .. } => (field, "refused", why.clone()),
            SpecError::HostPath { field, path, source, .. } => {
                (field, "wrong", format!("{}: {source}", path.display()))
            }
            SpecError::Read { .. } | SpecError::Syntax { .. } => return None,
        };
        Some(Self { field: field.clone(), treatment, detail })
    }

    /// True when no container comes of a configuration with this answer.
    pub fn is_fatal(&self) -> bool {
        matches!(self.treatment, "refused" | "wrong")
    }

    pub(crate) fn translated(field: String, detail: String) -> Self {
        Self { field, treatment: "translated", detail }
    }
}

/// The whole table, one line a field that is not an object itself.
pub fn rows() -> Vec<Explained> {
    let mut rows = Vec::new();
    flatten("", CONFIG, &mut rows);
    rows
}

fn flatten(parent: &str, fields: &[Field], rows: &mut Vec<Explained>) {
    for field in fields {
        let path = join(parent, field.name);
        match (field.kind, field.treatment) {
            (Kind::Object(fields), Treatment::Applied) => flatten(&path, fields, rows),
            (Kind::List(Kind::Object(fields)), Treatment::Applied) => {
                flatten(&format!("{path}[]"), fields, rows);
            }
            (_, treatment) => rows.push(Explained::new(&path, treatment)),
        }
    }
}

pub(crate) fn join(parent: &str, name: &str) -> String {
    if parent.is_empty() { name.to_owned() } else { format!("{parent}.{name}") }
}
