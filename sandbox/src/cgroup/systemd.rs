//! Where systemd would put a group: the path of a `slice:prefix:name`.
//!
//! The group is made there by ourselves, with systemd or without: nothing here speaks to systemd.

/// Parent of scopes whose slice is not said.
const DEFAULT_SLICE: &str = "system.slice";

/// The path for `slice:prefix:name`; none for what has not that form.
pub(super) fn path(form: &str) -> Option<String> {
    let parts: Vec<&str> = form.split(':').collect();
    let [slice, prefix, name] = parts[..] else { return None };
    if form.contains('/') || name.is_empty() {
        return None;
    }
    let slice = slices(if slice.is_empty() { DEFAULT_SLICE } else { slice })?;
    let unit = match (prefix, name.ends_with(".slice")) {
        (_, true) => name.to_owned(),
        ("", false) => format!("{name}.scope"),
        (prefix, false) => format!("{prefix}-{name}.scope"),
    };
    Some(format!("{slice}/{unit}"))
}

/// A slice lies in those that its name begins with: `a-b.slice` in `a.slice`.
fn slices(slice: &str) -> Option<String> {
    let name = slice.strip_suffix(".slice")?;
    if name == "-" {
        return Some(String::new());
    }
    let mut path = String::new();
    let mut so_far = String::new();
    for part in name.split('-') {
        if part.is_empty() {
            return None;
        }
        if !so_far.is_empty() {
            so_far.push('-');
        }
        so_far.push_str(part);
        path.push_str(&format!("/{so_far}.slice"));
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::path;

    #[test]
    fn units_lie_where_systemd_puts_them() {
        for (form, wanted) in [
            ("machine.slice:libpod:12ab", Some("/machine.slice/libpod-12ab.scope")),
            (":crio:x", Some("/system.slice/crio-x.scope")),
            ("user-1-a.slice::x", Some("/user.slice/user-1.slice/user-1-a.slice/x.scope")),
            ("-.slice:docker:x", Some("/docker-x.scope")),
            ("a.slice::b.slice", Some("/a.slice/b.slice")),
            ("a:b:c", None),
            ("a--b.slice:p:n", None),
            ("a.slice:p:", None),
            ("/a:b:c", None),
            ("/plain/path", None),
        ] {
            assert_eq!(path(form).as_deref(), wanted, "{form}");
        }
    }
}
