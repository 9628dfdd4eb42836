//! One TOML file as a list of keys with their lines; no key is judged here.

use toml::de::{DeTable, DeValue};

use crate::field::Given;

/// A key as it stood in a file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) value: Given,
    pub(crate) line: usize,
}

/// Why a file could not be read as TOML.
#[derive(Debug)]
pub(crate) struct Malformed {
    pub(crate) line: usize,
    pub(crate) message: String,
}

/// Reads the text of a file. Tables nest; a key's name is its path.
pub(crate) fn entries(text: &str) -> Result<Vec<Entry>, Malformed> {
    let table = DeTable::parse(text).map_err(|error| Malformed {
        line: error.span().map_or(1, |span| line_at(text, span.start)),
        message: error.message().replace('\n', " "),
    })?;
    let mut found = Vec::new();
    collect(text, "", table.get_ref(), &mut found);
    Ok(found)
}

fn collect(text: &str, above: &str, table: &DeTable<'_>, found: &mut Vec<Entry>) {
    for (key, value) in table {
        let name = format!("{above}{}", key.get_ref());
        let line = line_at(text, key.span().start);
        let value = match value.get_ref() {
            DeValue::Table(inner) if inner.is_empty() => continue,
            // The TOML reader bounds the depth.
            DeValue::Table(inner) => {
                collect(text, &format!("{name}."), inner, found);
                continue;
            }
            DeValue::String(string) => Given::Text(string.to_string()),
            DeValue::Integer(integer) => i64::from_str_radix(integer.as_str(), integer.radix())
                .map_or_else(|_| Given::Other("number without measure"), Given::Number),
            other => Given::Other(other.type_str()),
        };
        found.push(Entry { name, value, line });
    }
}

fn line_at(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::{Given, entries};

    #[test]
    fn dotted_keys_and_tables_are_the_same() {
        let table = entries("[vm]\nvcpus = 2\n").unwrap();
        assert_eq!((table[0].name.as_str(), table[0].line), ("vm.vcpus", 2));
        assert_eq!(table[0].value, Given::Number(2));
        assert_eq!(entries("vm.vcpus = 2").unwrap()[0].name, "vm.vcpus");
        assert_eq!(entries("vm = { vcpus = 2 }").unwrap()[0].name, "vm.vcpus");
    }

    #[test]
    fn a_syntax_error_has_its_line() {
        let malformed = entries("[vm]\nvcpus = \n").unwrap_err();
        assert_eq!(malformed.line, 2);
        assert!(!malformed.message.contains('\n'));
    }

    #[test]
    fn hexadecimal_and_huge_numbers() {
        assert_eq!(entries("a = 0x10").unwrap()[0].value, Given::Number(16));
        assert!(matches!(
            entries("a = 99999999999999999999").map(|mut found| found.remove(0).value),
            Ok(Given::Other(_)) | Err(_)
        ));
    }
}
