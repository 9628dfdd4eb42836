//! `oci:DIR[:TAG]`, `oci-archive:FILE[:TAG]`, `docker-archive:FILE[:TAG]`: the words that skopeo and podman have for it.

use std::{fmt, path::PathBuf, str::FromStr};

/// Where an image is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// In what form.
    pub form: Form,
    /// Directory or file.
    pub path: PathBuf,
    /// Which of several images.
    pub tag: Option<String>,
}

/// Forms in which images are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// An OCI image layout.
    Directory,
    /// An archive of one.
    Archive,
    /// What `docker save` writes.
    DockerArchive,
}

impl FromStr for Reference {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "{word:?} is not oci:DIR[:TAG], oci-archive:FILE[:TAG] or docker-archive:FILE[:TAG]"
            )
        };
        let (form, rest) = word.split_once(':').ok_or_else(wrong)?;
        let form = match form {
            "oci" => Form::Directory,
            "oci-archive" => Form::Archive,
            "docker-archive" => Form::DockerArchive,
            "docker" => {
                return Err(format!(
                    "{word:?}: images are not fetched; save one as an OCI layout first, with skopeo for example"
                ));
            }
            _ => return Err(wrong()),
        };
        let (path, tag) = match rest.split_once(':') {
            Some((path, tag)) => (path, Some(tag.to_owned())),
            None => (rest, None),
        };
        if path.is_empty() || tag.as_ref().is_some_and(String::is_empty) {
            return Err(wrong());
        }
        Ok(Self { form, path: path.into(), tag })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let form = match self.form {
            Form::Directory => "oci",
            Form::Archive => "oci-archive",
            Form::DockerArchive => "docker-archive",
        };
        write!(f, "{form}:{}", self.path.display())?;
        self.tag.as_ref().map_or(Ok(()), |tag| write!(f, ":{tag}"))
    }
}

#[cfg(test)]
mod tests {
    use super::{Form, Reference};

    #[test]
    fn a_reference_has_a_form_a_path_and_perhaps_a_tag() {
        let reference: Reference = "oci:a/b:docker.io/library/busybox:1".parse().unwrap();
        assert_eq!((reference.form, reference.path.to_str()), (Form::Directory, Some("a/b")));
        assert_eq!(reference.tag.as_deref(), Some("docker.io/library/busybox:1"));
        assert_eq!(reference.to_string(), "oci:a/b:docker.io/library/busybox:1");
        let reference: Reference = "oci-archive:/x.tar".parse().unwrap();
        assert_eq!((reference.form, reference.tag), (Form::Archive, None));
        for word in ["", "oci", "oci:", "oci::x", "oci:x:", "busybox", "dir:x"] {
            assert!(word.parse::<Reference>().is_err(), "{word}");
        }
        assert!("docker://x".parse::<Reference>().unwrap_err().contains("not fetched"));
    }
}
