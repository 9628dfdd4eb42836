//! A block of ours at the end of a file of somebody else's, between two lines by which it is found again.

const BEGIN: &str =
    "# >>> kata: written by kata-runtime install, removed by the same with --uninstall";
/// The line before the block had no end, and is to have none again.
const BEGIN_JOINED: &str = "# >>> kata (after an open line): written by kata-runtime install, removed by the same with --uninstall";
const END: &str = "# <<< kata";

/// A text with `lines` as its block, whatever block it had.
pub(super) fn with(text: &str, lines: &str) -> String {
    let text = without(text);
    match text.is_empty() || text.ends_with('\n') {
        true => format!("{text}{BEGIN}\n{lines}{END}\n"),
        false => format!("{text}\n{BEGIN_JOINED}\n{lines}{END}\n"),
    }
}

/// A text without its block, byte for byte as it was.
pub(super) fn without(text: &str) -> String {
    let mut kept = String::new();
    let mut inside = false;
    for line in text.split_inclusive('\n') {
        match line.trim_end_matches('\n') {
            BEGIN => inside = true,
            BEGIN_JOINED => {
                inside = true;
                kept.truncate(kept.trim_end_matches('\n').len());
            }
            END if inside => inside = false,
            _ if !inside => kept += line,
            _ => {}
        }
    }
    // A block whose end somebody has cut off is not taken for one: what follows it may be theirs.
    if inside { text.to_owned() } else { kept }
}

/// Whether there is one.
pub(super) fn is_in(text: &str) -> bool {
    without(text) != text
}

#[cfg(test)]
mod tests {
    use super::{is_in, with, without};

    #[test]
    fn a_block_goes_without_a_trace() {
        for text in ["", "a\n", "a", "a\n\n# b"] {
            let one = with(text, "x\n");
            assert!(is_in(&one) && one.contains("\nx\n"), "{one}");
            assert_eq!(with(&with(text, "y\n"), "x\n"), one);
            assert_eq!(without(&one), text);
            assert!(!is_in(text));
        }
    }

    #[test]
    fn what_somebody_has_written_after_it_stays() {
        let text = with("a\n", "x\n") + "b\n";
        assert_eq!(without(&text), "a\nb\n");
    }

    #[test]
    fn a_block_without_an_end_is_left() {
        let text = with("a\n", "x\n").replace("# <<< kata\n", "b\n");
        assert_eq!(without(&text), text);
    }
}
