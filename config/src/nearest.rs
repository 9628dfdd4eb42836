//! What somebody probably meant.

/// The candidate that differs least from `typed`, if any is near enough to be a slip of the finger.
///
/// Near enough is a third of the longer word, at least two edits.
pub fn nearest<'a>(typed: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| (distance(typed, candidate), candidate))
        .filter(|(edits, candidate)| *edits <= (typed.len().max(candidate.len()) / 3).max(2))
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance in bytes, except that a changed separator is no edit.
fn distance(left: &str, right: &str) -> usize {
    let left: Vec<u8> = left.bytes().map(fold).collect();
    let mut row: Vec<usize> = (0..=left.len()).collect();
    for (line, byte) in right.bytes().map(fold).enumerate() {
        let mut diagonal = row[0];
        row[0] = line + 1;
        for column in 0..left.len() {
            let replaced = diagonal + usize::from(left[column] != byte);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[left.len()]
}

fn fold(byte: u8) -> u8 {
    if byte == b'-' { b'_' } else { byte.to_ascii_lowercase() }
}

#[cfg(test)]
mod tests {
    use super::{distance, nearest};

    #[test]
    fn distances_are_levenshtein_s() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("abc", ""), 3);
        assert_eq!(distance("memory-mib", "memory_mib"), 0);
    }

    #[test]
    fn a_slip_finds_its_word_and_nonsense_finds_none() {
        let words = ["vm.memory_mib", "vm.vcpus", "kernel.path"];
        assert_eq!(nearest("vm.memory", words), Some("vm.memory_mib"));
        assert_eq!(nearest("vm.vcpu", words), Some("vm.vcpus"));
        assert_eq!(nearest("completely.different.thing", words), None);
    }
}
