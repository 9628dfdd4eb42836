//! `-info`: what this program is, as protobuf.

use std::io::{self, Write};

use anyhow::Context;
use kata_engine_api::containerd::{
    any::Any,
    introspection::{RuntimeInfo, RuntimeVersion},
};
use protobuf::Message;

use super::start::read_stdin;

const NAME: &str = "io.containerd.kata.v2";

/// Type of OCI's document about features, whose value is JSON.
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// Prints it, and nothing else.
pub fn info() -> anyhow::Result<()> {
    let stdin = read_stdin()?;
    let bytes = describe(&stdin)?.write_to_bytes().context("encode the answer")?;
    io::stdout().write_all(&bytes).context("print the answer")
}

fn describe(stdin: &[u8]) -> anyhow::Result<RuntimeInfo> {
    let options = match stdin {
        [] => None,
        bytes => Some(Any::parse_from_bytes(bytes).context("read the engine's options")?),
    };
    let version =
        RuntimeVersion { version: env!("CARGO_PKG_VERSION").into(), ..RuntimeVersion::default() };
    let features = Any {
        type_url: FEATURES.into(),
        value: kata_spec::features().to_string().into_bytes(),
        ..Any::default()
    };
    Ok(RuntimeInfo {
        name: NAME.into(),
        version: Some(version).into(),
        options: options.into(),
        features: Some(features).into(),
        ..RuntimeInfo::default()
    })
}

#[cfg(test)]
mod tests {
    use kata_engine_api::containerd::any::Any;
    use protobuf::Message;
    use serde_json::Value;

    use super::describe;

    #[test]
    fn it_tells_name_version_and_features_and_hands_the_options_back() {
        let options = Any { type_url: "t".into(), value: vec![1], ..Any::default() };
        let info = describe(&options.write_to_bytes().unwrap()).unwrap();
        assert_eq!(
            (info.name.as_str(), &info.options.unwrap()),
            ("io.containerd.kata.v2", &options)
        );
        assert!(!info.version.version.is_empty());
        let features: Value = serde_json::from_slice(&info.features.value).unwrap();
        assert_eq!(features["ociVersionMin"], "1.0.0");
        assert!(describe(b"").unwrap().options.is_none());
    }
}
